"""The order in which places are cut, found question by question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gatelens.measures.concentration import greedy_order
from gatelens.studies.gate_finder.order import OrderSearch, Places

CLEAN, FLOOR, CHANCE = np.full(2, 0.9), np.full(2, 0.05), 0.05
Leaves = Callable[[Places], float]


def rounds(
    leaves: Leaves, singles: Sequence[int], carrying: Sequence[int], limit: int
) -> tuple[list[int], list[list[Places]]]:
    """Search as a study does: what is asked is measured, and the search is gone through again. The order, and what was
    asked in each round."""
    measured: list[np.ndarray] = []
    for _ in range(50):
        search = OrderSearch(
            lambda n: measured[n] if n < len(measured) else None,
            CLEAN,
            FLOOR,
            CHANCE,
            singles,
            carrying,
            limit,
        )
        order = search.order()
        if order is not None:
            assert len(search.questions) == len(measured)
            return order, search.questions
        assert len(search.questions) == len(measured) + 1
        measured.append(np.array([[leaves(one)] * 2 for one in search.questions[-1]]))
    raise AssertionError("no end")


def test_parts_that_stand_in_for_each_other_are_both_cut() -> None:
    """Greedy finds nothing where either of two places is enough to see; thinning out all finds the pair."""
    order, asked = rounds(lambda one: -3.0 if {2, 4} <= set(one) else -0.1, range(1, 6), range(1, 6), 1)
    assert set(order[:2]) == {2, 4} and sorted(order) == [1, 2, 3, 4, 5]
    assert asked[0] == [(1,), (2,), (3,), (4,), (5,)] and asked[1] == [(1, 2, 3, 4, 5)]
    assert asked[2] == [(2, 3, 4, 5)]  # without the first


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_the_greedy_one_and_nothing_is_asked_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, joint = rng.random(8), rng.normal(size=(8, 8)) / 10

    def leaves(one: Places) -> float:
        return -float(weights[list(one)].sum() + joint[np.ix_(one, one)].sum()) / 10

    order, asked = rounds(leaves, range(8), (), 3)
    wanted = greedy_order(lambda sets: [leaves(tuple(sorted(s))) for s in sets], range(8), 3)
    assert order == wanted
    assert [len(sets) for sets in asked] == [8, 7, 6]
    every = [one for sets in asked for one in sets]
    assert len(set(every)) == len(every)


def test_a_set_that_is_enough_ends_the_search() -> None:
    order, asked = rounds(lambda one: -9.0 if 3 in one else -0.1, range(6), (4, 5), 4)
    assert order[0] == 3 and len(asked) == 1


def test_nothing_to_put_in_order() -> None:
    assert rounds(lambda one: 0.0, [], [], 4) == ([], [])
