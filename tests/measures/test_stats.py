"""Bootstrap intervals against a plain loop and closed forms; tables of means; paired differences."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from gatelens.errors import DataError
from gatelens.measures.stats import (
    bootstrap_interval,
    bootstrap_replicates,
    paired_difference,
    replicate_interval,
    summary,
    wilson_interval,
)


def test_interval_matches_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(0).binomial(1, 0.3, size=2000)
    low, high = bootstrap_interval(values, n_boot=4000, seed=1)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - half, abs=2e-3)
    assert high == pytest.approx(values.mean() + half, abs=2e-3)


def test_interval_is_seeded_and_widens_with_level() -> None:
    values = [0, 1, 1, 0, 1, 0.5]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_interval([1, 1, 1]) == (1.0, 1.0)


def test_replicates_keep_columns_paired() -> None:
    a = np.arange(50.0)
    ratio = bootstrap_replicates(lambda x, y: x.mean(-1) / y.mean(-1), a + 1, 2 * (a + 1), n_boot=20)
    assert ratio.shape == (20,)
    np.testing.assert_allclose(ratio, 0.5)


@pytest.mark.parametrize("columns", [([],), ([1.0, float("nan")],), ([1.0], [1.0, 2.0])])
def test_replicates_refuse(columns: tuple[list[float], ...]) -> None:
    with pytest.raises(DataError, match="bootstrap"):
        bootstrap_replicates(lambda *c: c[0].mean(-1), *columns)
    with pytest.raises(DataError, match="level"):
        bootstrap_interval([1.0], level=95)


def test_interval_is_the_percentile_interval_of_plain_resampling() -> None:
    values = np.random.default_rng(2).normal(size=37)
    rng = np.random.default_rng(5)
    means = np.array([values[rng.integers(0, 37, 37)].mean() for _ in range(500)])
    assert bootstrap_interval(values, n_boot=500, seed=5) == pytest.approx(
        tuple(np.percentile(means, [2.5, 97.5]))
    )
    drawn = bootstrap_replicates(lambda v: v.mean(-1), values, n_boot=500, seed=5)
    np.testing.assert_allclose(drawn, means)
    assert replicate_interval(drawn) == bootstrap_interval(values, n_boot=500, seed=5)


def test_one_example_and_equal_values_have_an_interval_without_width() -> None:
    assert bootstrap_interval([0.3]) == (0.3, 0.3)
    assert bootstrap_interval([0.1] * 7) == (0.1, 0.1)
    ratio = bootstrap_replicates(lambda x, y: x.mean(-1) / y.mean(-1), [1.0], [4.0], n_boot=5)
    assert ratio.tolist() == [0.25] * 5


def test_a_share_of_nothing_is_nan_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = bootstrap_replicates(lambda x: np.where(x.mean(-1) > 0, 1.0, np.nan), [0.0, 1.0], n_boot=50)
    assert set(drawn[np.isfinite(drawn)]) == {1.0} and np.isnan(drawn).any()


def test_one_seed_draws_the_same_examples_for_every_statistic() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    alone = bootstrap_replicates(lambda x: x.mean(-1), a, n_boot=50, seed=1)
    beside = bootstrap_replicates(lambda x, y: x.mean(-1), a, b, n_boot=50, seed=1)
    np.testing.assert_array_equal(alone, beside)


def test_memory_is_bounded_and_the_numbers_do_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=30)
    together = bootstrap_interval(values, n_boot=100)
    widest = []

    def mean(v: np.ndarray) -> np.ndarray:
        widest.append(v.size)
        return v.mean(-1)

    monkeypatch.setattr("gatelens.measures.stats._CELLS", 90)
    assert bootstrap_interval(values, n_boot=100) == together
    bootstrap_replicates(mean, values, n_boot=100)
    assert max(widest) <= 90


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
        assert (line.low, line.high) == bootstrap_interval(values, n_boot=200, seed=4)


def test_summary_draws_units_not_rows() -> None:
    table = pd.DataFrame({"row": "a", "id": [0, 0, 0, 1], "score": [0.0, 0.0, 3.0, 5.0]})
    line = summary(table, by=["row"]).iloc[0]
    assert (line["mean"], line.n) == (3.0, 2)
    assert (line.low, line.high) == bootstrap_interval([1.0, 5.0])
    assert summary(table, by=["row"], unit=None).iloc[0][["mean", "n"]].tolist() == [2.0, 4]
    assert summary(table.assign(word=range(4)), by=["row"], unit=["id", "word"]).n.tolist() == [4]


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
    assert got.to_numpy().tolist() == [
        [0, "base", 0.5, 0.0, 1.0, 2],
        [0, "flipped answers", 1.0, 1.0, 1.0, 1],
        [1, "base", 1.0, 1.0, 1.0, 2],
    ]
    assert got.columns.tolist() == ["layer", "what", "m", "l", "h", "n"]
    with pytest.raises(DataError, match="NaN"):
        summary(table, ["layer"], measures)
    with pytest.raises(DataError, match="'score' is missing"):
        summary(table, ["layer"])
    with pytest.raises(DataError, match="not finite"):
        summary(table.assign(base=np.inf), ["layer"], "base")
    assert summary(table[:0], ["layer"], "base").columns.tolist() == ["layer", "mean", "low", "high", "n"]


def test_paired_difference_is_taken_unit_by_unit() -> None:
    table = answers()
    clean = table[table.row == "none"].sample(frac=1, random_state=0)  # order does not pair
    change = paired_difference(table, clean, within=["how"])
    assert (change[table.row == "none"] == 0).all()
    wide = table.pivot(index=["how", "id"], columns="row", values="score")
    got = summary(table.assign(change=change), ["how", "row"], "change", seed=7)
    for how, part in wide.groupby("how"):
        values = (part["gate"] - part["none"]).sort_index(key=lambda i: i.str[1:].astype(int), level="id")
        line = got[(got.how == how) & (got.row == "gate")].iloc[0]
        assert line["mean"] == pytest.approx(values.mean())
        assert (line.low, line.high) == pytest.approx(bootstrap_interval(values.to_numpy(), seed=7))


def test_paired_difference_averages_repeats_of_the_baseline_and_needs_one() -> None:
    table = pd.DataFrame({"id": [0, 1], "score": [1.0, 1.0]}, index=[7, 9])
    random = pd.DataFrame({"id": [1, 0, 0], "score": [0.25, 0.0, 1.0]})
    got = paired_difference(table, random)
    assert got.to_dict() == {7: 0.5, 9: 0.75}
    with pytest.raises(DataError, match="no row for id = 1"):
        paired_difference(table, random[1:])
    with pytest.raises(DataError, match="'task' is missing"):
        paired_difference(table, random, within=["task"])


def test_wilson_interval() -> None:
    # Solving |p̂ − p| = z √(p (1 − p) / n) for p gives the interval: its ends satisfy the square of that.
    z = 1.959963984540054
    for successes, n in ((7, 20), (0, 10), (10, 10), (310, 1000)):
        for p in wilson_interval(successes, n):
            assert (successes / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, abs=1e-14)
    assert wilson_interval(10, 10)[0] == pytest.approx(10 / (10 + z * z))
    with pytest.raises(DataError, match="proportion"):
        wilson_interval(3, 2)
    with pytest.raises(DataError, match="level"):
        wilson_interval(1, 2, level=95)
