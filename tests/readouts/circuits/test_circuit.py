"""``gl.circuit`` as it is called: what it takes, gives, draws, and refuses in one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens as gl
from attack.compositions import subject
from gatelens.data import Example, Pair
from gatelens.errors import GatelensError
from tiny_models import make_picture

RIGHT, WRONG = 30, 33
METRIC = gl.metrics.logit_diff(RIGHT, WRONG)
SMALL = gl.metrics.logit_diff(20, 22)  # in the smallest vocabulary too
LONGER = "<image> is it a dog ?"
TEXT = "this <image> animal is a"


def pair_of(i: int, clean: str = TEXT, corrupt: str = TEXT, size: int = 16) -> Pair:
    sides = [
        Example(make_picture(size, 16, seed=2 * i + j), text, ("dog",), "class", f"{i}{j}")
        for j, text in enumerate((clean, corrupt))
    ]
    return Pair(*sides, differ="picture", target="dog", base="cat")


PAIRS = [pair_of(0), pair_of(1)]


def found(model: Any, **given: Any) -> gl.Circuit:
    asked = {"scores": "atp", "metric": METRIC, "random": 2, "progress": False} | given
    return gl.circuit(model, asked.pop("pairs", PAIRS), **asked)


def told(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_what_it_gives(tiny_llava: Any) -> None:
    got = found(tiny_llava, share=0.8)
    kept = got.parts[got.parts["kept"]]
    assert len(got.parts) == 15 and set(got.table["node"]) == set(kept["node"])
    assert got.faithfulness >= 0.8 and (got.table["without"] < 0.8).all()
    assert got.table["value"].abs().is_monotonic_decreasing
    assert repr(got) == (
        f"Circuit({len(kept)} of 15 nodes: faithfulness {got.faithfulness:.2f} (share 0.8), completeness "
        f"{got.completeness:.2f}; by atp, metric, 2 pairs)"
    ).replace("metric, 2", f"{got.metric}, 2")
    ends = got.curves.query("set == 'top' and size in (0, 15)")
    assert ends["mean"].tolist() == pytest.approx((ends["size"] == 15).astype(float).tolist())
    assert got.kind == "node" and got.sel(kind="mlp").tensor.shape[0] <= 3


@pytest.mark.parametrize("scores", ["eap", "atp"])
def test_pictures_say_what_is_there(tiny_llava: Any, scores: str) -> None:
    got = found(tiny_llava, scores=scores, share=0.5)
    words = told(got.show())
    if scores == "atp":
        assert set(got.table["node"]) <= set(words)
    else:
        ends = {*got.table["sender"], *got.table.query("reads in ('mlp', 'logits')")["receiver"]}
        assert ends <= set(words) and "into MLPs and logits" in words
    assert any(f"faithfulness {got.faithfulness:.2f}" in word for word in words)
    assert any("largest scores" in word for word in told(got.show_curves()))
    assert all(
        "mine" in " ".join(told(one)) for one in (got.show("mine"), got.show_curves("mine", dark=True))
    )


def test_scores_may_be_given(tiny_llava: Any) -> None:
    """A method's own maps, exact maps, and a part of the heads, of which the rest stays clean."""
    asked = {"direction": "noising", "check": 0}
    maps = [
        gl.attribution_map(tiny_llava, PAIRS, METRIC, over=("layer", "head"), site="z", **asked),
        gl.attribution_map(tiny_llava, PAIRS, METRIC, over="layer", site="mlp_out", **asked),
    ]
    want, got = found(tiny_llava), found(tiny_llava, scores=maps)
    torch.testing.assert_close(got.tensor, want.tensor)
    assert got.method == "given scores" and got.curves.equals(want.curves)
    exact = gl.patch_map(tiny_llava, PAIRS, METRIC, ("layer",), site="attn_out", progress=False)
    assert set(found(tiny_llava, scores=exact).parts["node"]) == {f"L{i} attention" for i in range(3)}
    some = found(tiny_llava, scores=maps[0].sel(layer=[1, 2]), share=1.0)
    assert set(some.parts["layer"]) == {1, 2} and len(some.parts) == 8
    edges = gl.attribution_map(tiny_llava, PAIRS, METRIC, "eap", **asked)
    assert found(tiny_llava, scores=edges, share=0.3).kind == "edge"


def test_without_pruning_it_is_a_prefix(tiny_llava: Any) -> None:
    got = found(tiny_llava, prune=False, share=0.8)
    scores = got.parts["score"].abs().sort_values(ascending=False)
    assert got.tensor.abs().tolist() == pytest.approx(scores[: len(got.tensor)].tolist())
    assert len(found(tiny_llava, share=0.8).tensor) <= len(got.tensor)


def test_metrics_that_compare_with_the_clean_run(tiny_llava: Any) -> None:
    got = found(tiny_llava, metric="kl", share=0.9)
    assert got.metric == "KL divergence" and got.faithfulness >= 0.9


def test_pairs_of_different_prompts_may_stand_together(tiny_llava: Any) -> None:
    other = "what is <image> this"
    got = found(tiny_llava, pairs=[PAIRS[0], pair_of(1, other, other)])
    assert got.n_pairs == 2


def test_noise_is_in_the_corrupt_run(tiny_llava: Any) -> None:
    pair = dataclasses.replace(PAIRS[0], corrupt=PAIRS[0].clean, noise=3.0)
    assert found(tiny_llava, pairs=pair, scores="eap").faithfulness >= 0.9


def maps_of(model: Any, **given: Any) -> Any:
    return gl.attribution_map(model, PAIRS, METRIC, check=0, **given)


def by_hand(logits: Tensor) -> Tensor:
    return logits.sum()


BAD: dict[str, tuple[Any, str]] = {
    "share 0": ({"share": 0}, "share=0: give a number above 0 and at most 1"),
    "share 1.1": ({"share": 1.1}, "share=1.1: give a number above 0"),
    "share True": ({"share": True}, "share=True: give a number"),
    "no pairs": ({"pairs": []}, r"pairs=\[\]: give pairs"),
    "method": ({"scores": "acdc"}, "scores='acdc': write one of atp"),
    "scores": ({"scores": 3}, "scores=3: write 'eap-ig'"),
    "by": ({"by": "head"}, "by='head': write 'role' or 'pos'"),
    "by of edges": ({"by": "role", "scores": "eap"}, "by='role' goes with nodes by a method"),
    "random": ({"random": -1}, "random=-1: give a whole number, 0 or more"),
    "lengths": ({"pairs": [PAIRS[0], pair_of(1, TEXT, TEXT + " dog")]}, "pair 1 .* have 21 and 22 positions"),
    "a scalar": ({"metric": by_hand}, "one number per example"),
    "site": (lambda m: {"scores": maps_of(m)}, "scores is a map of 'resid_pre': a node is a head"),
    "part of edges": (
        lambda m: {"scores": maps_of(m, method="eap").sel(sender="embed")},
        "scores holds a part of the edges",
    ),
    "edges and nodes": (
        lambda m: {"scores": [maps_of(m, method="eap"), maps_of(m, site="mlp_out")]},
        "a map of edges cannot be combined with others",
    ),
    "heads twice": (
        lambda m: {"scores": [maps_of(m, site=s, over="layer") for s in ("z", "attn_out")]},
        "heads and the whole attention of layer 0",
    ),
    "the same twice": (
        lambda m: {"scores": [maps_of(m, site="z", over=o) for o in ("layer", ("layer", "head"))]},
        "'L0H0' and 'L0 attention' share activations",
    ),
    "window": (
        lambda m: {"scores": gl.patch_map(m, PAIRS, METRIC, ("layer",), site="z", window=2, progress=False)},
        "several layers per cell",
    ),
    "another prompt": (
        lambda m: {
            "scores": maps_of(m, site="z"),
            "pairs": [pair_of(2, LONGER, LONGER)],
        },
        "with another layout than pair 0 .*: write 'role' for 'pos'",
    ),
    "nothing to carry": ({"metric": lambda logits: logits[:, 0, 0]}, "there is nothing to restore"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_means_nothing_is_one_line(tiny_llava: Any, name: str) -> None:
    given, words = BAD[name]
    with pytest.raises(GatelensError, match=words) as raised:
        found(tiny_llava, **(given(tiny_llava) if callable(given) else given))
    assert "\n" not in str(raised.value)


def test_pictures_of_different_grids() -> None:
    model = subject("qwen2-vl").built.model
    sides = [Example(make_picture(n, n), "<image> is it", ("dog",), "class", str(n)) for n in (28, 84)]
    with pytest.raises(GatelensError, match=r"picture 0 has .* tokens"):
        found(model, pairs=Pair(*sides, differ="size", target="dog", base="cat"), metric=SMALL)


def test_edges_of_parts_that_do_not_add_up() -> None:
    one = subject("qwen3-vl")
    sides = [
        Example(one.built.case.picture(0, i), one.built.case.texts[0], ("dog",), "class", str(i))
        for i in (0, 1)
    ]
    pair = Pair(*sides, differ="all", target="dog", base="cat")
    with pytest.raises(GatelensError, match="adds pictures to later layers"):
        found(one.built.model, pairs=pair, scores="eap-ig", metric=SMALL)
    assert found(one.built.model, pairs=pair, metric=SMALL).faithfulness >= 0.9
