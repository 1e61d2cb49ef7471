"""Layer windows from curves: planted effects come back exactly, and against all windows by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatelens.errors import DataError
from gatelens.measures.windows import (
    best_window,
    effect_of_starts,
    effect_of_windows,
    layer_windows,
    quarter,
    smallest_window,
)


def test_windows() -> None:
    assert layer_windows(5, 2) == [range(2), range(1, 3), range(2, 4), range(3, 5)]
    assert layer_windows(5, 2, step=2) == [range(2), range(2, 4), range(3, 5)]
    assert layer_windows(3, 3) == [range(3)]
    with pytest.raises(DataError, match="width 4, step 1 do not fit 3 layers"):
        layer_windows(3, 4)


def test_planted_effect_in_disjoint_windows() -> None:
    effect = effect_of_windows([0.0, 0.8, 0.2, -0.1], layer_windows(8, 2, step=2), 8)
    assert effect.tolist() == [0, 0, 0.4, 0.4, 0.1, 0.1, 0, 0]
    window = smallest_window(effect, 0.8)
    assert window is not None and window.layers == range(2, 4) and window.share == pytest.approx(0.8)
    wider = smallest_window(effect)
    assert wider is not None and wider.layers == range(2, 5) and wider.share == pytest.approx(0.9)


def test_sliding_windows_find_the_layer_that_carries_all() -> None:
    spans = layer_windows(10, 3)
    effect = effect_of_windows([1.0 if 4 in s else 0.0 for s in spans], spans, 10)
    assert int(effect.argmax()) == 4 and effect[4] == pytest.approx(1 / 3)
    assert effect[:2].sum() == effect[7:].sum() == 0


def test_starts() -> None:
    # from layer l on: cutting from 0..2 on costs all, from 5 on nothing
    effect = effect_of_starts([0.9, 0.9, 0.9, 0.5, 0.1, 0.0])
    np.testing.assert_allclose(effect, [0, 0, 0.4, 0.4, 0.1, 0])
    noisy = effect_of_starts([0.8, 0.9, 0.5, 0.6, -0.1])
    assert (noisy >= 0).all() and noisy.sum() == pytest.approx(0.9)


def test_the_papers_quarter() -> None:
    assert [quarter(n) for n in (80, 32, 6, 2)] == [20, 8, 2, 1]
    effect = np.zeros(80)
    effect[20:40] = 1
    window = best_window(effect)
    assert window is not None and window.layers == range(20, 40) and window.share == 1


def test_nothing_to_find() -> None:
    assert smallest_window([0.0, 0.0]) is None and best_window([0.0, 0.0]) is None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.floats(0.05, 1))
def test_smallest_window_against_all_windows(effect: list[int], share: float) -> None:
    window = smallest_window(effect, share)
    total = sum(effect)
    if not total:
        assert window is None
        return
    n = len(effect)
    enough = [
        (b - a, -sum(effect[a:b]), a)
        for a in range(n)
        for b in range(a + 1, n + 1)
        if sum(effect[a:b]) / total >= share - 1e-9
    ]
    width, carried, start = min(enough)
    assert window is not None and window.layers == range(start, start + width)
    assert window.share == pytest.approx(-carried / total)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effect_of_windows([1.0], layer_windows(4, 2), 4), "values for 3 windows"),
        (lambda: effect_of_windows([1.0], [range(2)], 4), "layer 2 is in no window"),
        (lambda: effect_of_windows([1.0], [range(3, 5)], 4), "not among 4 layers"),
        (lambda: effect_of_starts([float("nan")]), "value 0 is not finite"),
        (lambda: smallest_window([1.0], 0), "share 0 is outside"),
        (lambda: best_window([1.0, -1.0], 1), "layer 1 has a negative effect"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()  # type: ignore[operator]
