"""Intervals against closed forms, plain loops and their coverage; tables of means; paired differences."""

from __future__ import annotations

import warnings
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gatelens.errors import DataError
from gatelens.measures.stats import (
    CHANGE,
    SHARE,
    drawn_means,
    mean_interval,
    middle,
    paired_difference,
    summary,
    wilson_interval,
)

UNSEEN = 3.841458820694124  # z² of a 95 % interval


# -- which method a sample gets


@pytest.mark.parametrize("n", [1, 2, 24, 30, 1000])
def test_a_proportion_never_has_an_interval_without_width(n: int) -> None:
    all_right = summary(pd.DataFrame({"row": "none", "id": range(n), "score": 1.0}), ["row"]).iloc[0]
    assert all_right["mean"] == all_right.high == 1.0
    assert all_right.low == pytest.approx(n / (n + UNSEEN))
    low, high = mean_interval([0.0] * n)
    assert low == 0.0 and high == pytest.approx(UNSEEN / (n + UNSEEN))


def test_a_proportion_has_wilsons_interval() -> None:
    # Solving |p̂ − p| = z √(p (1 − p) / n) for p gives the interval: its ends satisfy the square of that.
    for successes, n in ((7, 20), (0, 10), (10, 10), (310, 1000)):
        for p in wilson_interval(successes, n):
            assert (successes / n - p) ** 2 == pytest.approx(UNSEEN * p * (1 - p) / n, abs=1e-14)
        assert mean_interval([1] * successes + [0] * (n - successes)) == wilson_interval(successes, n)
    with pytest.raises(DataError, match="proportion"):
        wilson_interval(3, 2)
    with pytest.raises(DataError, match="level"):
        wilson_interval(1, 2, level=95)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [24, 30, 200])
def test_the_interval_of_a_proportion_holds_the_truth_as_often_as_it_says(n: int, p: float) -> None:
    """Exactly, over all outcomes there are; the percentile bootstrap held p = .99 at n = 24 in 21 cases of 100."""
    held = 0.0
    for k in range(n + 1):
        low, high = mean_interval([1] * k + [0] * (n - k))
        held += (low <= p <= high) * comb(n, k) * p**k * (1 - p) ** (n - k)
    assert 0.93 <= held <= 0.999  # outcomes are few: no interval can hold it in exactly 95 %


def test_the_interval_of_a_paired_difference_holds_the_truth() -> None:
    """Also where few pairs differ, which resampling the differences alone takes for certainty (62 of 100 at n = 24)."""
    rng, n, held = np.random.default_rng(0), 24, 0
    for seed in range(300):
        values = rng.choice([-1.0, 0.0, 1.0], size=n, p=[0.01, 0.94, 0.05])
        low, high = mean_interval(values, CHANGE, n_boot=400, seed=seed)
        held += low <= 0.04 <= high
    assert held / 300 >= 0.92


def test_equal_differences_have_a_width_and_hold_their_value() -> None:
    for value in (-1.0, 0.0, 1.0):
        low, high = mean_interval([value] * 24, CHANGE)
        assert low <= value <= high and 0.08 < high - low < 0.3
    low, high = mean_interval([0.0] * 24, CHANGE, n_boot=20_000)
    assert low == pytest.approx(-high, abs=0.01)
    low, high = mean_interval([0.5] * 24)  # partial credit, the same in every example
    assert 0.4 < low < 0.5 < high < 0.6


def test_values_without_bounds_have_the_bca_interval() -> None:
    values = np.random.default_rng(2).gamma(1, 3, size=37)
    rng = np.random.default_rng(5)
    means = np.array([values[rng.integers(0, 37, 37)].mean() for _ in range(500)])
    # Efron 1987: bias from the share of replicates below the mean, acceleration from leaving one out
    bias = stats.norm.ppf((means < values.mean()).mean())
    left_out = np.array([np.delete(values, i).mean() for i in range(37)])
    d = left_out.mean() - left_out
    speed = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    wanted = np.percentile(means, 100 * stats.norm.cdf(bias + z / (1 - speed * z)))
    assert mean_interval(values, None, n_boot=500, seed=5) == pytest.approx(tuple(wanted))


def test_equal_values_without_bounds_have_no_width_and_odd_samples_no_nan() -> None:
    assert mean_interval([0.3], None) == (0.3, 0.3)
    assert mean_interval([3.5] * 7, None) == (3.5, 3.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in ([1.0, 2.0], [0.0] * 29 + [8.0], [1e-300, 0.0, 0.0]):
            for n_boot in (1, 3, 200):
                low, high = mean_interval(values, None, n_boot=n_boot)
                assert np.isfinite([low, high]).all() and low <= high


def test_an_interval_is_seeded_and_widens_with_level() -> None:
    for bounds, values in ((SHARE, [0, 1, 1, 0, 1, 0.5]), (None, [0, 9, 1, 0, 1, 0.5])):
        assert mean_interval(values, bounds, seed=3) == mean_interval(values, bounds, seed=3)
        narrow, wide = (mean_interval(values, bounds, level=level) for level in (0.5, 0.99))
        assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_intervals_refuse() -> None:
    with pytest.raises(DataError, match="no values"):
        mean_interval([])
    with pytest.raises(DataError, match="not finite"):
        mean_interval([1.0, float("nan")], None)
    with pytest.raises(DataError, match="leave the bounds 0 to 1; give bounds="):
        mean_interval([0.5, 3.2])
    with pytest.raises(DataError, match="leave the bounds"):
        drawn_means([0.5, -0.5])
    with pytest.raises(DataError, match="equally long"):
        drawn_means([1.0], [1.0, 0.0])
    with pytest.raises(DataError, match="level"):
        mean_interval([1.0], level=95)


# -- functions of several means


def test_drawn_means_of_a_proportion_are_jeffreys() -> None:
    drawn = drawn_means([1.0] * 22 + [0.0] * 2, n_boot=40_000)[0]
    wanted = stats.beta(22.5, 2.5).ppf([0.025, 0.5, 0.975])
    assert np.percentile(drawn, [2.5, 50, 97.5]) == pytest.approx(wanted, abs=3e-3)


def test_drawn_means_without_bounds_are_dirichlet_weights_shared_by_the_columns() -> None:
    a = np.random.default_rng(0).normal(size=40)
    x, y = drawn_means(a, 3 * a + 1, bounds=None, n_boot=5000)
    np.testing.assert_allclose(y, 3 * x + 1)
    assert x.mean() == pytest.approx(a.mean(), abs=0.01)
    assert x.var() == pytest.approx(a.var() / 41, rel=0.06)  # of a Dirichlet with 40 weights of 1


def test_a_share_of_columns_that_never_vary_is_not_certain() -> None:
    none, cut, floor = drawn_means([1.0] * 24, [0.0] * 24, [0.0] * 24)
    low, high = middle((none - cut) / (none - floor), around=1.0)
    assert low < 0.97 and high > 1.03
    wide = drawn_means([1.0] * 2000, [0.0] * 2000, [0.0] * 2000)
    low, high = middle((wide[0] - wide[1]) / (wide[0] - wide[2]))
    assert 0.99 < low < high < 1.01


def test_draws_do_not_depend_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    together, skewed = drawn_means(values, n_boot=100), mean_interval(values * 9, None, n_boot=100)
    monkeypatch.setattr("gatelens.measures.stats._CELLS", 90)
    np.testing.assert_allclose(drawn_means(values, n_boot=100), together, rtol=1e-12)
    assert mean_interval(values * 9, None, n_boot=100) == skewed


# -- tables


def answers() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = [
        {"how": how, "row": row, "id": f"e{i}", "score": float(score)}
        for how in ("mask", "zero")
        for row, p in (("none", 0.9), ("gate", 0.3))
        for i, score in enumerate(rng.binomial(1, p, size=40))
    ]
    return pd.DataFrame(rows)


def test_summary_has_the_mean_and_interval_of_every_group_in_order() -> None:
    table = answers()
    got = summary(table, by=["how", "row"], n_boot=200, seed=4)
    assert got.columns.tolist() == ["how", "row", "mean", "low", "high", "n"]
    assert list(zip(got.how, got.row, strict=True)) == [
        ("mask", "none"),
        ("mask", "gate"),
        ("zero", "none"),
        ("zero", "gate"),
    ]
    for line in got.itertuples():
        values = table[(table.how == line.how) & (table.row == line.row)].score.to_numpy()
        assert line.mean == values.mean() and line.n == 40
        assert (line.low, line.high) == mean_interval(values, n_boot=200, seed=4)


def test_summary_draws_units_not_rows() -> None:
    table = pd.DataFrame({"row": "a", "id": [0, 0, 0, 1], "score": [0.0, 0.0, 3.0, 5.0]})
    line = summary(table, by=["row"], bounds=None).iloc[0]
    assert (line["mean"], line.n) == (3.0, 2)
    assert (line.low, line.high) == mean_interval([1.0, 5.0], None)
    assert summary(table, by=["row"], unit=None, bounds=None).iloc[0][["mean", "n"]].tolist() == [2.0, 4]
    assert summary(table.assign(word=range(4)), ["row"], unit=["id", "word"], bounds=None).n.tolist() == [4]


def test_summary_takes_the_columns_of_a_sweep() -> None:
    table = pd.DataFrame({"cut": ["a"] * 3, "example": ["x", "x", "y"], "value": [0.0, 1.0, 1.0]})
    line = summary(table, by=["cut"]).iloc[0]
    assert (line["mean"], line.n) == (0.75, 2)
    own = table.assign(id=range(3), score=0.5)
    assert summary(own, by=["cut"]).iloc[0][["mean", "n"]].tolist() == [0.5, 3]
    with pytest.raises(DataError, match="column 'id' is missing"):
        summary(table.drop(columns="example"), by=["cut"])


def test_summary_without_groups_is_one_row_and_a_word_is_one_column() -> None:
    table = pd.DataFrame({"row": ["a", "a", "b", "b"], "id": [0, 1, 0, 2], "score": [1.0, 0.0, 1.0, 1.0]})
    assert summary(table, []).drop(columns=["low", "high"]).to_numpy().tolist() == [[2 / 3, 3]]  # over units
    pd.testing.assert_frame_equal(summary(table, "row"), summary(table, ["row"]))


def test_summary_of_several_measures_leaves_out_what_does_not_apply() -> None:
    table = pd.DataFrame(
        {
            "layer": [0, 0, 1, 1],
            "id": [0, 1, 0, 1],
            "flipped": [1.0, np.nan, np.nan, np.nan],
            "base": [True, False, True, True],
        }
    )
    measures = {"base": "base", "flipped answers": "flipped"}
    got = summary(table, ["layer"], measures, missing="skip", measure="what", names=("m", "l", "h"))
    assert got.drop(columns=["l", "h"]).to_numpy().tolist() == [
        [0, "base", 0.5, 2],
        [0, "flipped answers", 1.0, 1],
        [1, "base", 1.0, 2],
    ]
    assert list(zip(got.l, got.h, strict=True)) == [wilson_interval(*k) for k in ((1, 2), (1, 1), (2, 2))]
    free = summary(table, ["layer"], measures, bounds={"base": SHARE}, missing="skip")
    assert free.low.tolist() == [got.l[0], 1.0, got.l[2]]  # a measure without bounds
    assert got.columns.tolist() == ["layer", "what", "m", "l", "h", "n"]
    with pytest.raises(DataError, match="NaN"):
        summary(table, ["layer"], measures)
    with pytest.raises(
        DataError, match=r"'score' is missing.*; give values='flipped', or a dict for several"
    ):
        summary(table[["id", "layer", "base", "flipped"]].assign(flipped=1.0), ["layer"])
    with pytest.raises(DataError, match="not finite"):
        summary(table.assign(base=np.inf), ["layer"], "base")
    assert summary(table[:0], ["layer"], "base").columns.tolist() == ["layer", "mean", "low", "high", "n"]


def test_paired_difference_is_taken_unit_by_unit() -> None:
    table = answers()
    clean = table[table.row == "none"].sample(frac=1, random_state=0)  # order does not pair
    change = paired_difference(table, clean, within=["how"])
    assert (change[table.row == "none"] == 0).all()
    wide = table.pivot(index=["how", "id"], columns="row", values="score")
    got = summary(table.assign(change=change), ["how", "row"], "change", bounds=CHANGE, seed=7)
    for how, part in wide.groupby("how"):
        values = (part["gate"] - part["none"]).sort_index(key=lambda i: i.str[1:].astype(int), level="id")
        line = got[(got.how == how) & (got.row == "gate")].iloc[0]
        assert line["mean"] == pytest.approx(values.mean())
        assert (line.low, line.high) == pytest.approx(mean_interval(values.to_numpy(), CHANGE, seed=7))


def test_paired_difference_averages_repeats_of_the_baseline_and_needs_one() -> None:
    table = pd.DataFrame({"id": [0, 1], "score": [1.0, 1.0]}, index=[7, 9])
    random = pd.DataFrame({"id": [1, 0, 0], "score": [0.25, 0.0, 1.0]})
    got = paired_difference(table, random)
    assert got.to_dict() == {7: 0.5, 9: 0.75}
    with pytest.raises(DataError, match="no row for id = 1"):
        paired_difference(table, random[1:])
    with pytest.raises(DataError, match="'task' is missing"):
        paired_difference(table, random, within=["task"])
