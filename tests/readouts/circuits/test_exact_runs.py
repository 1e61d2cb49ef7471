"""Runs of circuits against sums of the residual stream on plain transformers, and against patches by the engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gatelens as gl
from attack.compositions import subject
from gatelens.data import Example, Pair
from gatelens.errors import ModelError
from gatelens.examples import Labels
from gatelens.readouts.circuits.edge_patches import EdgePatches
from gatelens.readouts.circuits.node_patches import NodePatches
from gatelens.readouts.circuits.parts import parts_of
from gatelens.readouts.circuits.runs import CircuitRuns
from gatelens.readouts.gradients.edges import Graph
from gatelens.readouts.map_metrics import MapMetric
from readouts.circuits.by_hand import ByHand
from readouts.circuits.pairs_of_all import pair_of_all
from tiny_models import make_picture

TEXT = "this <image> animal is a"
RIGHT, WRONG = -1, -3  # words in every vocabulary
BAR = SimpleNamespace(update=lambda n: None)
# norms before attention, after it, before the MLP, after it
NORMS: dict[str, Any] = {
    "llava": lambda b: (b.input_layernorm, None, b.post_attention_layernorm, None),
    "chameleon": lambda b: (b.input_layernorm, None, b.post_attention_layernorm, None),
    "chameleon-34b": lambda b: (None, b.input_layernorm, None, b.post_attention_layernorm),
    "qwen2-vl": lambda b: (b.input_layernorm, None, b.post_attention_layernorm, None),
    "gemma3": lambda b: (
        b.input_layernorm,
        b.post_attention_layernorm,
        b.pre_feedforward_layernorm,
        b.post_feedforward_layernorm,
    ),
}


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


def pairs_of(text: str, picture: Any, n: int) -> list[Pair]:
    return [pair_of_all(text, picture, i) for i in range(n)]


def runs_of(model: Any, pairs: list[Pair], patches: Any) -> CircuitRuns:
    return CircuitRuns(model, pairs, MapMetric(metric, Labels(model)), patches, False, BAR)


@pytest.mark.parametrize("name", NORMS)
def test_edges_are_sums_over_senders(name: str) -> None:
    one = subject(name)
    model, case = one.built.model, one.built.case
    pairs = pairs_of(case.texts[0], case.picture, 2)
    graph = Graph.of(model)
    patches = EdgePatches(model, graph)
    runs = runs_of(model, pairs, patches)
    rng = np.random.default_rng(0)
    n = len(patches.edges)
    kept = np.stack([rng.random(n) < share for share in (0.3, 0.8, 0.97)])
    got = runs.values(kept)
    hand = ByHand(one.built.plain, NORMS[name])
    senders, receivers = graph.senders["sender"], graph.receivers["receiver"]
    names = [(senders[a], receivers[b]) for a, b in patches.edges]
    for j, pair in enumerate(pairs):
        clean, corrupt = (model.prepare(e.image, e.prompt).tensors for e in (pair.clean, pair.corrupt))
        there, sent = hand.run(corrupt, lambda sender, receiver: True, None)
        assert runs.corrupt[j] == pytest.approx(float(metric(there)), abs=1e-4)
        for i in range(len(kept)):
            some = {edge for edge, keep in zip(names, kept[i], strict=True) if keep}
            logits, _ = hand.run(clean, lambda sender, receiver, some=some: (sender, receiver) in some, sent)
            assert got[i, j] == pytest.approx(float(metric(logits)), abs=5e-4)
    assert np.ptp(got, axis=0).min() > 1e-2  # the circuits do differ


def test_nodes_are_patches(tiny: Any) -> None:
    """By head, layer and role, against the engine's patches; the rest of a batch stays as it is."""
    pairs = pairs_of(TEXT, lambda _, seed: make_picture(seed=seed), 2)
    maps = [
        gl.attribution_map(tiny, pairs, metric, over=("layer", "head", "role"), site="z", check=0),
        gl.attribution_map(tiny, pairs, metric, over=("layer", "pos"), site="mlp_out", check=0),
    ]
    parts = parts_of(maps, tiny)
    runs = runs_of(tiny, pairs, NodePatches(tiny, parts))
    kept = np.random.default_rng(1).random((3, len(parts))) < np.array([[0.2], [0.7], [1.1]])
    got = runs.values(kept)
    for j, pair in enumerate(pairs):
        clean, corrupt = (tiny.prepare(e.image, e.prompt) for e in (pair.clean, pair.corrupt))
        _, cache = tiny.run_with_cache(corrupt)
        for i in range(len(kept)):
            dropped = parts.labels[~kept[i]].to_dict("records")
            patches = [
                gl.patch(
                    cache,
                    at=node["role"] if node["kind"] == "head" else [int(node["position"])],
                    site=node["site"],
                    layers=[int(node["layer"])],
                    heads=[int(node["head"])] if node["kind"] == "head" else None,
                )
                for node in dropped
            ]
            want = metric(tiny.run(clean, patches) if patches else tiny(clean))
            assert got[i, j] == pytest.approx(float(want), abs=1e-4)


def test_parts_that_do_not_add_up_are_refused(tiny_llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is of the runs themselves: here a sender is forgotten."""
    pairs = [
        Pair(
            *(Example(make_picture(seed=i), "<image> is it a", ("dog",), "class", str(i)) for i in (0, 1)),
            differ="all",
            target="dog",
            base="cat",
        )
    ]
    send = EdgePatches.__init__

    def forgets(self: Any, *args: Any) -> None:
        send(self, *args)
        self.mlps[1] = []

    monkeypatch.setattr(EdgePatches, "__init__", forgets)
    with pytest.raises(ModelError, match="do not add up to the stream"):
        gl.circuit(tiny_llava, pairs, metric, scores="eap", random=0, progress=False)


def test_one_batch_or_one_by_one(tiny_llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(TEXT, lambda _, seed: make_picture(seed=seed), 3)
    graph = Graph.of(tiny_llava)
    patches = EdgePatches(tiny_llava, graph)
    kept = np.random.default_rng(2).random((4, len(patches.edges))) < 0.8
    together = runs_of(tiny_llava, pairs, patches).values(kept)
    monkeypatch.setattr("gatelens.readouts.circuits.runs.MOST_ROWS", 1)
    torch.testing.assert_close(
        torch.from_numpy(runs_of(tiny_llava, pairs, patches).values(kept)),
        torch.from_numpy(together),
        atol=1e-4,
        rtol=1e-4,
    )
