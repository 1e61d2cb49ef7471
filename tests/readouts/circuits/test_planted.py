"""Planted paths: path patching, EAP-IG and the circuit search each find what was put there, and nothing else."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import gatelens as gl
from readouts.planted_circuit import EDGES, NODES, Plant, model_of, pairs

PLANTS: tuple[Plant, ...] = ("v", "mlp", "k", "two")
planted = cache(model_of)


def edges_of(found: gl.Circuit) -> set[tuple[str, str]]:
    return set(zip(found.table["sender"], found.table["receiver"], strict=True))


@pytest.mark.parametrize("plant", PLANTS)
def test_the_circuit_is_the_planted_path(plant: Plant) -> None:
    found = gl.circuit(planted(plant), pairs(), share=0.95, random=3, progress=False)
    assert edges_of(found) == EDGES[plant]
    assert found.faithfulness == pytest.approx(1, abs=0.02) and found.completeness == pytest.approx(
        1, abs=0.02
    )
    each = 0.5 if plant == "two" else 0.0  # without an edge its whole way is gone
    assert found.table["without"].tolist() == pytest.approx([each] * len(EDGES[plant]), abs=0.02)
    random = found.curves.query("set == 'random' and measure == 'faithfulness'")
    assert float(random.set_index("size")["mean"][len(EDGES[plant])]) < 0.2


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("method", ["atp", "ig"])
def test_so_are_its_nodes(plant: Plant, method: str) -> None:
    found = gl.circuit(planted(plant), pairs(), scores=method, share=0.95, random=0, progress=False)
    assert set(found.table["node"]) == NODES[plant]
    assert found.faithfulness == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("plant", PLANTS)
def test_eap_ig_scores_the_planted_edges_first(plant: Plant) -> None:
    scores = gl.attribution_map(planted(plant), pairs(), method="eap-ig", check=0).mean().table
    scores = scores.dropna(subset="value").sort_values("value", key=np.abs, ascending=False)
    n = len(EDGES[plant])
    assert set(zip(scores["sender"][:n], scores["receiver"][:n], strict=True)) == EDGES[plant]
    first, rest = scores["value"].abs().iloc[:n], scores["value"].abs().iloc[n:]
    assert rest.max() < first.min() / 4, (first.min(), rest.max())


@pytest.mark.parametrize("plant", PLANTS)
def test_path_patching_finds_the_planted_edges(plant: Plant) -> None:
    """Of heads, and of the MLP of layer 0, with all else frozen: the direct paths, which are the edges."""
    model = planted(plant)
    receivers = [f"L1H{head}.{part}" for head in range(4) for part in "qkv"] + ["L0 mlp", "logits"]
    found = set()
    for receiver in receivers:
        senders = [f"L{layer}H{head}" for layer in range(2) for head in range(4)] + ["L0 mlp"]
        if receiver != "logits":
            senders = [one for one in senders if one[:2] == "L0" and not (one == receiver == "L0 mlp")]
        effects = gl.path_patch(model, pairs()[0], senders, receiver, mlps="frozen", progress=False)
        share = effects.table["value"] / (effects.table["corrupt"] - effects.table["clean"])
        moved = effects.table["sender"][share.abs() > 0.02]
        found |= {(sender, receiver.replace(".", " ")) for sender in moved}
    assert found == {edge for edge in EDGES[plant] if edge[0] != "embed"}


def test_two_ways_of_one_effect() -> None:
    """For half of the metric the search keeps one of two equal ways, and completeness tells of the other."""
    model = planted("two")
    found = gl.circuit(model, pairs(), share=0.45, random=0, progress=False)
    ways = [
        {("embed", f"L0H{a} v"), (f"L0H{a}", f"L1H{b} v"), (f"L1H{b}", "logits")} for a, b in ((1, 2), (2, 1))
    ]
    assert edges_of(found) in ways
    assert found.faithfulness == pytest.approx(0.5, abs=0.05)  # an emptier stream has another norm
    assert found.completeness == pytest.approx(0.5, abs=0.05)
    nodes = gl.circuit(model, pairs(), scores="ig", share=0.45, random=0, progress=False)
    assert set(nodes.table["node"]) in ({"L0H1", "L1H2"}, {"L0H2", "L1H1"})


def test_by_role_the_path_ends_at_the_last_words() -> None:
    """L0H1 writes wherever it has read the picture, L1H2 matters in the row that is measured: the question's."""
    found = gl.circuit(planted("v"), pairs(), scores="ig", share=0.95, by="role", random=0, progress=False)
    names = set(found.table["node"])
    assert names <= {"L0H1@image", "L0H1@query", "L1H2@query"} and {"L0H1@image", "L1H2@query"} <= names
    rest = gl.circuit(planted("v"), pairs(), scores="ig", share=0.95, by="pos", random=0, progress=False)
    assert {name.partition("@")[0] for name in rest.table["node"]} == {"L0H1", "L1H2"}
    ends = rest.table.query("layer == 1")["position"]
    assert ends.tolist() == [int(rest.tokens.n_pos) - 1]
