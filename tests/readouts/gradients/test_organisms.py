"""Gradient maps of the trained organisms: complete along the way, and said to be wrong where they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from PIL import Image

import gatelens as gl

pytestmark = pytest.mark.organism


@pytest.mark.parametrize("name", ["gated", "open", "llava"])
def test_integrated_gradients_of_a_stream_sum_to_the_difference(name: str) -> None:
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    (pair,) = gl.pairs("emoji-scenes", n=1)
    # the effects are shares of the difference, so they sum to 1
    got = gl.attribution_map(model, pair, method="ig", over="pos", layers=2, steps=32, check=0)
    assert float(got.tensor.nansum()) == pytest.approx(1, abs=0.01)


def test_a_map_that_misleads_says_so_and_one_that_is_nearly_exact_does_not() -> None:
    """The same pair, and the clean picture with a twentieth of the other's: so near, the model is nearly linear."""
    model = gl.HookedVLM.from_pretrained("organism:llava")
    (pair,) = gl.pairs(gl.data.load("emoji-scenes", "train"), n=1)
    how: dict[str, Any] = {"over": "pos", "layers": 2, "check": 24, "progress": False}
    far = gl.attribution_map(model, pair, **how)
    assert any("values are off by" in line for line in far.warnings)
    assert "Warning: values are off" in repr(far)
    pictures = [one.image.convert("RGB") for one in (pair.clean, pair.corrupt) if one.image is not None]
    corrupt = dataclasses.replace(pair.corrupt, image=Image.blend(*pictures, 0.05))
    near = gl.attribution_map(model, dataclasses.replace(pair, corrupt=corrupt), **how)
    assert near.agreement is not None and far.agreement is not None
    assert 0 < near.agreement.error < far.agreement.error / 2
    assert near.warnings == [] and "Warning" not in repr(near)
