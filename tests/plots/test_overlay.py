"""Values of image tokens over their picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gatelens.errors import DataError
from gatelens.plots.overlay import overlay
from gatelens.plots.style import png
from study_helpers import picture


def test_overlay(tiny_chameleon: Any) -> None:
    image = picture("red", 0, size=32)
    inputs = tiny_chameleon.prepare(images=[image], text=["<image>this animal is a"])
    t = inputs.tokens
    assert png(overlay(torch.rand(16), t, image, labels=True)).startswith(b"\x89PNG")
    assert png(overlay(np.zeros(t.n_pos), t, image, dark=True)).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="7 values fit neither"):
        overlay(torch.rand(7), t, image)


def test_the_largest_value_is_the_brightest_and_equal_values_look_alike(tiny_chameleon: Any) -> None:
    image = picture("red", 0, size=32)
    tokens = tiny_chameleon.prepare(images=[image], text=["<image>this animal is a"]).tokens
    heat = overlay(torch.arange(16.0), tokens, image).axes[1].patches
    lightness = [sum(patch.get_facecolor()[:3]) for patch in heat]
    assert len(heat) == 16
    assert np.argmax(lightness) == 15 and np.argmin(lightness) == 0
    equal = overlay(torch.full((16,), 0.3), tokens, image).axes[1].patches
    assert len({patch.get_facecolor() for patch in equal}) == 1
