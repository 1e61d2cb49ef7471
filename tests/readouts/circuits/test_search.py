"""The search over made-up metrics whose best circuits are known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from gatelens.errors import InputError
from gatelens.measures.stats import mean_interval
from gatelens.readouts.circuits.search import Faithfulness, curve_sizes, curves, minimal, smallest_prefix

N = 12


def shares_of(function: object, n_parts: int = N, n_pairs: int = 3) -> tuple[Faithfulness, list[int]]:
    """Faithfulness of ``function(kept)`` times 1, 2, … over pairs, and the sizes of what is measured."""
    sizes: list[int] = []

    def values(masks: np.ndarray) -> np.ndarray:
        sizes.extend(masks.sum(axis=1).tolist())
        return np.array(
            [[function(set(np.flatnonzero(row))) * (1 + pair) for pair in range(n_pairs)] for row in masks]
        )  # type: ignore[operator]

    return Faithfulness(values, n_parts, "metric"), sizes


def test_faithfulness_and_completeness_by_hand() -> None:
    worth = np.arange(1.0, N + 1)
    shares, _ = shares_of(lambda kept: -5 + sum(worth[list(kept)]))
    circuits = [[], [0, 1], [11], range(N)]
    want = [sum(worth[list(one)]) / worth.sum() for one in circuits]
    assert shares.of(circuits) == pytest.approx(want)
    assert shares.completeness(circuits) == pytest.approx(want)  # nothing stands in for anything
    assert shares.full.tolist() == pytest.approx([73 * (1 + pair) for pair in range(3)])
    either, _ = shares_of(lambda kept: float(bool(kept & {2, 5})))
    assert either.of([[2]]).tolist() == [1] and either.completeness([[2], [2, 5]]).tolist() == [0, 1]


def test_intervals_are_those_of_a_ratio() -> None:
    """Pairs of different worth with one share have no uncertainty; with different shares they do."""
    shares, _ = shares_of(lambda kept: float(len(kept)))
    assert shares.interval([0, 1, 2]) == pytest.approx((0.25, 0.25))
    uneven = Faithfulness(lambda masks: np.stack([masks.any(1), masks.all(1)], 1).astype(float), N, "metric")
    low, high = uneven.interval([0])
    assert low < 0.5 < high and uneven.of([[0]]).tolist() == [0.5]


def test_nothing_is_measured_twice() -> None:
    shares, sizes = shares_of(lambda kept: float(len(kept)))
    shares.of([[0], [1], [0]])
    shares.of([[0], [2], [1]])
    assert sizes == [0, N, 1, 1, 1]


@pytest.mark.parametrize("size", range(1, N + 1))
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_smallest_prefix_of_what_only_grows(size: int, share: float) -> None:
    """Where faithfulness only grows, it is the smallest of all prefixes."""
    shares, _ = shares_of(lambda kept: 1.0 if kept >= set(range(size)) else 0.2)
    assert smallest_prefix(shares, range(N), share, curve_sizes(N)) == size


def test_a_prefix_is_at_an_edge_whatever_the_curve() -> None:
    """It reaches the share and the one before does not."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        heights = rng.random(N + 1) * 1.3
        heights[0], heights[-1] = 0, 1
        shares, _ = shares_of(lambda kept, heights=heights: heights[len(kept)])
        found = smallest_prefix(shares, range(N), 0.9, curve_sizes(N))
        assert heights[found] >= 0.9 > heights[found - 1]


def test_all_parts_reach_the_whole_share_whatever_rounding_says() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        worth = 0.1 + rng.random(N)
        shares, _ = shares_of(lambda kept, worth=worth: float(worth[sorted(kept)].sum()), n_pairs=7)
        assert smallest_prefix(shares, range(N), 1.0, curve_sizes(N)) == N
        assert minimal(shares, range(N), 1.0) == list(range(N))


def test_what_is_left_is_minimal() -> None:
    """No part can go: by trying each; here and there a smaller set exists, which is not promised."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        worth, both = rng.normal(0.1, 0.15, N), rng.normal(0, 0.1, (N, N))
        score = lambda kept, w=worth, b=both: sum(w[list(kept)]) + b[np.ix_(list(kept), list(kept))].sum()  # noqa: E731
        if score(set(range(N))) < 0.2:
            continue
        shares, _ = shares_of(score)
        kept = minimal(shares, range(N), 0.7)
        assert shares.of([kept])[0] >= 0.7
        assert all(share < 0.7 for share in shares.of([[o for o in kept if o != one] for one in kept]))


def test_a_conjunction_is_found_among_many() -> None:
    needed = {3, 7, 150, 199}
    shares, sizes = shares_of(lambda kept: float(kept >= needed), n_parts=200, n_pairs=1)
    assert set(minimal(shares, range(200), 0.9)) == needed
    assert len(sizes) < 90  # blocks go first


def test_curves_against_random_sets() -> None:
    shares, _ = shares_of(lambda kept: len(kept & {0, 1}) / 2)
    table = curves(shares, range(N), [0, 1], [0, 1, 2, N], 20, 0)
    assert set(table["set"]) == {"top", "circuit", "random"}
    top = table.query("set == 'top' and measure == 'faithfulness'").set_index("size")
    assert top["mean"].tolist() == [0, 0.5, 1, 1] and set(top["n"]) == {3}
    ends = table.query("size in (0, 12)")
    assert ends["mean"].tolist() == pytest.approx((ends["size"] == 12).astype(float).tolist())
    rng, random = np.random.default_rng(0), table.query("set == 'random' and size == 2")
    drawn = [rng.choice(N, size=size, replace=False) for size in (0, 1, 2, 12) for _ in range(20)][40:60]
    each = [len(set(one.tolist()) & {0, 1}) / 2 for one in drawn]
    row = random[random["measure"] == "faithfulness"].iloc[0]
    assert [row["mean"], row["low"], row["high"]] == pytest.approx(
        [np.mean(each), *mean_interval(each, None)]
    )
    assert row["n"] == 20


def test_parts_that_change_nothing_have_no_circuit() -> None:
    with pytest.raises(InputError, match="metric is 3 with all parts clean and 3 with all of them corrupt"):
        shares_of(lambda kept: 3.0, n_pairs=1)


def test_sizes_of_a_curve() -> None:
    assert curve_sizes(1) == [0, 1]
    assert curve_sizes(50) == [0, 1, 2, 5, 10, 20, 50]
    assert curve_sizes(1108) == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1108]
    assert all(a < b for n in range(1, 40) for a, b in combinations(curve_sizes(n), 2))
