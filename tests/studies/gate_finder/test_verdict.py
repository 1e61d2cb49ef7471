"""Where the verdict of a gate search turns: its limits, its intervals, and which positions stand out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gate_search_helpers import made_up
from gatelens.measures.stats import CHANGE, SHARE, mean_interval
from gatelens.studies.gate_finder.state import bounds_of
from gatelens.studies.gate_finder.verdict import gate_verdict

SET = {"share": 0.95, "share_low": 0.92, "share_high": 1.0, "places": [64], "damage": []}


def judged(low: int, size: int | None, high: int, **facts: Any) -> dict[str, Any]:
    search = made_up()
    one = {**SET, "low": low, "size": size, "high": high}
    return gate_verdict(search.places, search.measures, {"zero": one}, search.settings | facts)


@pytest.mark.parametrize(
    ("low", "size", "high", "wanted"),
    [
        (1, 3, 4, "narrow"),  # the limit is 4: its interval may reach it
        (1, 3, 5, "inconclusive"),
        (4, 6, 9, "inconclusive"),
        (5, 6, 9, "distributed"),
        (1, None, 4, "inconclusive"),
        (5, None, 60, "distributed"),
    ],
)
def test_the_interval_of_the_size_decides(low: int, size: int | None, high: int, wanted: str) -> None:
    assert judged(low, size, high)["verdict"] == wanted


@pytest.mark.parametrize(
    ("worth", "low", "naming", "wanted"),
    [
        (0.2, 0.05, 0.9, "narrow"),
        (0.2, -0.05, 0.001, "inconclusive"),  # worth something on the mean, perhaps nothing
        (0.2, -0.05, 0.9, "inconclusive"),
        (0.05, 0.01, 0.001, "inconclusive"),  # the classes are named, the probability hardly moves
        (0.05, 0.01, 0.9, "no communication found"),
    ],
)
def test_what_the_picture_is_worth_comes_first(worth: float, low: float, naming: float, wanted: str) -> None:
    assert judged(1, 1, 1, worth=worth, worth_low=low, naming_p=naming)["verdict"] == wanted


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.6, 0.9, "narrow"), (0.4, 0.9, "inconclusive"), (0.1, 0.3, "inconclusive"), (0.0, 0.1, "distributed")],
)
def test_flips_count_by_their_interval(low: float, high: float, wanted: str) -> None:
    said = judged(1, 1, 1, joint_mean=(low + high) / 2, joint_low=low, joint_high=high)
    assert next(e["says"] for e in said["evidence"] if e["kind"] == "patching") == wanted
    assert ("patching" in said["disagree"]) == (wanted == "distributed")


def standing(values: list[float], width: float = 0.02) -> dict[str, str]:
    """What attention says when the places after the picture get these values, and all of the picture 0.05."""
    search = made_up()
    after = {64 + i: value for i, value in enumerate(values)}
    measures = search.measures.copy()
    mean = measures.place.map(after).fillna(0.05)
    attention = measures.measure == "attention"
    bounds = pd.DataFrame({"mean": mean, "low": mean - width, "high": mean + width})
    measures.loc[attention, ["mean", "low", "high"]] = bounds[attention]
    one = {**SET, "low": 1, "size": 1, "high": 1}
    said = gate_verdict(search.places, measures, {"zero": one}, search.settings)
    return next(e for e in said["evidence"] if e["kind"] == "attention")


def test_what_stands_out_does_so_above_all_others() -> None:
    alone = standing([0.8, 0.05, 0.05])
    assert alone["says"] == "narrow" and "<eoss> (position 66) stands out" in alone["text"]
    two = standing([0.8, 0.75, 0.05])
    assert "<eoss> (position 66), this (position 67) stand out" in two["text"]
    # the low end 0.78 is 1.5 times 0.52: a second of 0.50 ± 0.02 or more comes too near
    assert "this (position 67) stand out" in standing([0.8, 0.51, 0.05])["text"]
    assert "<eoss> (position 66) stands out" in standing([0.8, 0.49, 0.05])["text"]
    assert standing([0.06, 0.05, 0.05])["says"] == "distributed"
    assert standing([0.05, 0.8, 0.05])["says"] == "another gate"


def test_what_is_measured_and_not_scored_has_no_bounds() -> None:
    """A made-up example with all of the attention would drown shares of a hundredth."""
    assert bounds_of("attention") is bounds_of("overlap") is bounds_of("target overlap") is None
    assert bounds_of("zero log_prob") is None
    assert (bounds_of("flipped"), bounds_of("mask accuracy")) == (SHARE, CHANGE)
    shares = 0.015 + 0.001 * np.random.default_rng(0).standard_normal(48)
    low, high = mean_interval(shares, bounds_of("attention"))
    assert 0.0145 < low < shares.mean() < high < 0.0155
