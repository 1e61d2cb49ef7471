"""The gate finder's candidates in every family: nothing of the picture reaches the answer past them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from case import cases
from gatelens.studies.gate_finder.knockouts import clean_run, cut
from gatelens.studies.gate_finder.patching import draw_pairs, patched
from gatelens.studies.gate_finder.setup import Setup

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
    setup = Setup(model, examples, 0, 20, 6)
    answers, places = clean_run(setup).answers, setup.places
    tokens = [p.token for p in places.all if not p.in_picture]
    assert "color" in tokens  # the words are behind the picture, whatever stands between
    moved = patched(setup, answers, [[p.number for p in places.all]], 5)
    pairs = draw_pairs(setup, 5)
    expected = [1 - float(torch.minimum(answers[a], answers[b]).sum()) for a, b in pairs.items()]
    assert max(expected) > 0.05  # the pictures make a difference at all
    assert moved.flipped[0].tolist() == [1.0] * 5
    assert moved.gain[0].tolist() == pytest.approx(expected, abs=1e-5)
    # with the whole picture cut off, and only then, all examples of one layout give one answer
    left = cut(setup, "mask", [places.picture, places.picture[:1]]).log_prob
    for label in range(3):
        mine = left[:, setup.labels == label]
        assert mine[0].max() - mine[0].min() < 1e-4
    assert max((left[1, setup.labels == c].max() - left[1, setup.labels == c].min()) for c in range(3)) > 1e-3
