"""Greedy search and intervals against brute force on effects that are known."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from gatelens.errors import DataError
from gatelens.measures.concentration import (
    greedy_order,
    label_information,
    naming_p_value,
    prune,
    set_sizes,
    share_by_example,
    share_removed,
    smallest_carrying,
)


def test_a_share_by_example_averages_to_the_share_and_spreads_as_it_does():
    rng = np.random.default_rng(3)
    none, cut, floor = (np.clip(rng.normal(m, 0.1, 200), 0, 1) for m in (0.9, 0.5, 0.2))
    for chance in (0.0, 0.4):  # the floor above chance, and below it
        values = share_by_example(none, cut, floor, chance)
        assert values.mean() == pytest.approx(float(share_removed(none, cut, floor, chance)))
        # the jackknife leaves out one example after another
        without = [np.delete(x, i) for i in range(200) for x in (none, cut, floor)]
        jack = np.array([share_removed(*without[3 * i : 3 * i + 3], chance) for i in range(200)])
        error = np.sqrt(199 / 200 * np.square(jack - jack.mean()).sum())
        assert values.std() / 200**0.5 == pytest.approx(error, rel=0.02)
    assert np.isnan(share_by_example(floor, cut, floor, 0.0)).all()


def test_information_is_zero_when_all_answers_are_one_distribution():
    rng = np.random.default_rng(0)
    row = np.log(rng.dirichlet(np.ones(5)))
    labels = rng.integers(0, 5, size=40)
    assert abs(label_information(np.tile(row, (40, 1)), labels).mean()) < 1e-12


def test_information_by_hand_and_where_answers_know():
    values = np.log(np.array([[0.8, 0.2], [0.4, 0.6]]))
    expected = [np.log(0.8) - (np.log(0.8) + np.log(0.2)) / 2, np.log(0.6) - (np.log(0.4) + np.log(0.6)) / 2]
    assert np.allclose(label_information(values, np.array([0, 1])), expected)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, size=400)
    noise = np.log(rng.dirichlet(np.ones(4), size=400))
    blind, seeing = label_information(noise, labels), label_information(noise + 2 * np.eye(4)[labels], labels)
    assert abs(blind.mean()) < 4 * blind.std() / 20
    assert seeing.mean() > 1
    with pytest.raises(DataError, match="columns 0 to 3"):
        label_information(noise, labels + 1)
    with pytest.raises(DataError, match="do not fit"):
        label_information(noise, labels[:3])


def test_names_must_fit_better_than_shuffled_ones():
    """A random table from classes to answers is information of either sign, but no naming; a right one is."""
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 6
    p_values = []
    for _ in range(60):
        table = rng.normal(size=(6, 6))[labels] + 0.01 * rng.normal(size=(60, 6))
        values = table - np.log(np.exp(table).sum(1, keepdims=True))
        p_values.append(naming_p_value(values, labels, 199))
    assert 0.3 < np.mean(p_values) < 0.7
    assert np.mean(np.array(p_values) <= 0.05) < 0.15
    assert naming_p_value(np.log(np.full((60, 6), 0.1) + 0.4 * np.eye(6)[labels]), labels, 199) <= 0.02
    assert naming_p_value(np.log(np.full((60, 6), 1 / 6)), labels, 199) == 1.0


def test_share_removed():
    none, floor = np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 1, 0])
    assert share_removed(none, floor, floor) == 1
    assert share_removed(none, none, floor) == 0
    assert share_removed(none, np.array([1.0, 0, 1, 0]), floor, chance=0.25) == pytest.approx(0.5)
    assert share_removed(none, np.array([1.0, 0, 1, 0]), floor, chance=0.5) == pytest.approx(1.0)
    assert np.isnan(share_removed(floor, floor, floor))


def weighted(weights):
    return lambda sets: [1 - sum(weights[i] for i in one) for one in sets]


def test_greedy_takes_the_largest_first_and_asks_about_sets_not_singles():
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.ones(12))
    assert greedy_order(weighted(weights), range(12), steps=12) == np.argsort(-weights).tolist()
    # 0 and 1 say the same: once 0 is cut, 1 is worth nothing and 2 comes before it
    worth = {0: 0.5, 1: 0.49, 2: 0.3}

    def remains(sets):
        return [1 - sum(worth[i] for i in s if i != 1 or 0 not in s) for s in sets]

    assert greedy_order(remains, [1, 2, 0], steps=3) == [0, 2, 1]


def test_greedy_stops_asking_when_it_is_enough():
    asked = []

    def remains(sets):
        asked.append(len(sets))
        return weighted([0.05, 0.9, 0.03, 0.02])(sets)

    order = greedy_order(remains, range(4), steps=4, enough=lambda chosen: 1 in chosen)
    assert order == [1, 0, 2, 3]
    assert asked == [4]


def test_prune_finds_parts_that_stand_in_for_each_other():
    def enough(chosen):  # either of 3 and 5 carries everything: both must go
        return {3, 5} <= set(chosen)

    assert prune(enough, range(8)) == [3, 5]
    best = min((c for k in range(1, 9) for c in combinations(range(8), k) if enough(c)), key=len)
    assert list(best) == [3, 5]


def test_set_sizes():
    assert set_sizes(3) == [1, 2, 3]
    sizes = set_sizes(1000)
    assert sizes[:16] == list(range(1, 17))
    assert sizes[-1] == 1000
    assert all(a < b <= a * 1.25 + 1 for a, b in pairwise(sizes))
    assert set_sizes(0) == []


def test_the_smallest_size_and_its_interval_against_brute_force():
    rng = np.random.default_rng(5)
    n, sizes = 60, range(1, 11)
    none, floor = np.ones(n), np.zeros(n)
    # example i is lost once its own number of parts is cut
    needed = rng.integers(1, 11, size=n)
    path = {k: (needed > k).astype(float) for k in sizes}
    carriers = smallest_carrying(none, floor, path, part=0.9, n_boot=400, seed=1)
    expected = next(k for k in sizes if (needed <= k).mean() >= 0.9)
    assert carriers.size == expected
    assert carriers.share == pytest.approx((needed <= expected).mean())
    draws = np.random.default_rng(1).integers(0, n, size=(400, n))
    brute = [next(k for k in sizes if (needed[d] <= k).mean() >= 0.9) for d in draws]
    assert (carriers.low, carriers.high) == tuple(np.percentile(brute, [2.5, 97.5], method="nearest"))
    assert carriers.low <= carriers.size <= carriers.high


def test_one_part_that_carries_all_has_no_doubt_and_none_is_said():
    n = 30
    one = smallest_carrying(np.ones(n), np.zeros(n), {1: np.zeros(n), 2: np.zeros(n)})
    assert (one.size, one.low, one.high, one.share) == (1, 1, 1, 1.0)
    never = smallest_carrying(np.ones(n), np.zeros(n), {1: np.ones(n), 4: np.ones(n)})
    assert (never.size, never.high, never.share) == (None, 4, 0.0)
    with pytest.raises(DataError, match="no set"):
        smallest_carrying(np.ones(n), np.zeros(n), {})
    with pytest.raises(DataError, match="outside"):
        smallest_carrying(np.ones(n), np.zeros(n), {1: np.ones(n)}, part=90)
