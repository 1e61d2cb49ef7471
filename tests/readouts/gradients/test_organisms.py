"""Gradient maps of the trained organisms: complete along the way, and said to be wrong where they are."""

from __future__ import annotations

import pytest

import gatelens as gl
from gatelens.measures import agreement

pytestmark = pytest.mark.organism


@pytest.mark.parametrize("name", ["gated", "open", "llava"])
def test_integrated_gradients_of_a_stream_sum_to_the_difference(name: str) -> None:
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    (pair,) = gl.pairs("emoji-scenes", n=1)
    # the effects are shares of the difference, so they sum to 1
    got = gl.attribution_map(model, pair, method="ig", over="pos", layers=2, steps=32, check=0)
    assert float(got.tensor.nansum()) == pytest.approx(1, abs=0.01)


def test_a_map_that_misleads_says_so_and_the_exact_one_does_not() -> None:
    model = gl.HookedVLM.from_pretrained("organism:llava")
    (pair,) = gl.pairs("emoji-scenes", n=1)
    got = gl.attribution_map(model, pair, over="pos", layers=2, check=24)
    assert any("values are off by" in line for line in got.warnings) and "Warning: values are off" in repr(
        got
    )
    exact = gl.patch_map(model, pair, over="pos", layers=2, progress=False).tensor[0].numpy()
    assert agreement(exact, exact).warnings == []
