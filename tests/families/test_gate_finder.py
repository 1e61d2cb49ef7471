"""The gate finder's candidates in every family: nothing of the picture reaches the answer past them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from case import cases

from gate_search_helpers import Measurements
from gatelens.model import HookedVLM

CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_patching_all_candidates_is_the_other_run_and_cutting_them_leaves_nothing(name: str) -> None:
    case = CASES[name]
    build = case.wrap or HookedVLM.from_module
    model = build(case.model(), case.processor())
    labels = ("dog", "cat", "red")
    examples = [
        SimpleNamespace(
            image=case.picture(0, seed=i),
            prompt="<image> what color is it",
            label=labels[i % 3],
            answers=(labels[i % 3],),
            id=str(i),
        )
        for i in range(12)
    ]
    search = Measurements(model, examples)
    answers, places = search.answers(), search.layout
    tokens = [p.token for p in places.places if not p.in_picture]
    assert "color" in tokens  # the words are after the picture, whatever stands between
    pairs = {i: (i + 1) % 12 for i in range(5)}
    moved = search.patched(pairs, [[p.number for p in places.places]])
    expected = [1 - float(torch.minimum(answers[a], answers[b]).sum()) for a, b in pairs.items()]
    assert max(expected) > 0.05  # the pictures make a difference at all
    assert moved.flipped.tolist() == [1.0] * 5
    assert moved.gain.tolist() == pytest.approx(expected, abs=1e-5)
    # with the whole picture cut off, and only then, all examples of one layout give one answer
    left = search.cut("mask", [places.picture, places.picture[:1]])
    spread = left.assign(label=np.array(search.labels)[left.example]).groupby(["set", "label"]).log_prob
    spread = spread.max() - spread.min()
    assert spread[0].max() < 1e-4
    assert spread[1].max() > 1e-3
