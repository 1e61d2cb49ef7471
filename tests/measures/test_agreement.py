"""Agreement by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from gatelens.measures import agreement
from gatelens.measures.agreement import rank_correlation, thirds


def test_by_hand() -> None:
    found = agreement([3.0, 0.0, -1.0, 0.5, 0.1, 2.0], [4.0, 0.0, -2.0, 0.5, 0.2, 0.1])
    assert found.cells == 6 and found.top == 2
    assert found.top_overlap == 0.5  # 3 and 2 are the largest guesses, 4 and -2 the largest truths
    assert found.error == pytest.approx((1 + 0 + 1 + 0 + 0.1 + 1.9) / 6.8)
    assert found.largest == (5, 2.0, 0.1)
    # ranks 5,1,0,3,2,4 against 5,1,0,4,3,2: 1 - 6 * (1 + 1 + 4) / (6 * 35)
    assert found.rank_correlation == pytest.approx(1 - 36 / 210)
    assert "rank correlation 0.83" in str(found)
    assert found.best == (0, 0) and found.tenth_overlap == 1
    assert found.warnings == ["values are off by 59% of their size, more than 30%"]
    assert agreement([1, 2, 3], [1, 2, 3]).warnings == []


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, (2, 40)).astype(float)  # with ties
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert math.isnan(rank_correlation(a, np.zeros(40)))


def test_rounding_has_no_rank() -> None:
    truth = np.array([5.0, 3.0, 1e-6, -1e-6, 2e-6, 0.0])
    assert agreement(np.array([5.0, 3.0, -2e-6, 1e-6, 0.0, 3e-6]), truth).rank_correlation == pytest.approx(1)


def test_nothing_true_is_no_agreement() -> None:
    assert agreement([0.0, 0.0], [0.0, 0.0]).error == 0
    assert len(agreement([1.0, 0.0], [0.0, 0.0]).warnings) == 1


def test_places_that_are_wrong_are_said() -> None:
    truth = np.arange(30.0, 0, -1)
    guess = truth.copy()
    guess[[0, 1]] = guess[[1, 0]]
    found = agreement(guess, truth)
    assert found.best == (0, 1) and found.tenth_overlap == 1
    assert found.warnings == ["of the cells patched exactly, another has the largest effect"]
    guess = truth.copy()
    guess[[1, 9]] = guess[[9, 1]]
    assert agreement(guess, truth).warnings == ["2 of the top 3 are right, fewer than 70%"]


def test_thirds() -> None:
    values = np.array([0.1, -9.0, 3.0, 0.0, 5.0, 1.0, 2.0, -4.0, 0.2, 0.3])
    for seed in range(5):
        chosen = thirds(values, 6, seed)
        assert len(set(chosen)) == 6 and {1, 4} <= set(chosen) and {0, 3} <= set(chosen)
    assert {tuple(thirds(values, 6, seed)) for seed in range(5)} != {tuple(thirds(values, 6, 0))}
    assert thirds(values, 99) == list(range(10))
    assert len(set(thirds(values, 1))) == 1 and thirds(values, 1) == [1]
