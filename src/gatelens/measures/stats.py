"""How sure a mean is: bootstrap intervals over examples, and tables of means with their intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from gatelens.errors import DataError

INTERVAL_METHOD: Literal["percentile", "basic", "bca"] = "percentile"  # see scipy.stats.bootstrap
LEVEL = 0.95

_CELLS = 4_000_000  # values drawn at once: bounds memory for large n

Statistic = Callable[..., Float[np.ndarray, " boot"]]


def bootstrap_replicates(
    statistic: Statistic,
    *columns: Sequence[float] | Float[np.ndarray, " example"],
    n_boot: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, " boot"]:
    """Replicates of a statistic when the examples are drawn again with replacement (Efron 1979).

    Args:
        statistic: receives an array ``[boot, example]`` for each column, reduces over the last axis.
        columns: paired: the same examples are drawn from each, and with one seed for every statistic.

    Raises:
        DataError: no values, columns of different length, or a value that is not finite.
    """
    arrays = _columns(columns)
    if len(arrays[0]) == 1:  # there is only one way to draw one example, and scipy refuses it
        return np.repeat(np.asarray(statistic(*(a[None] for a in arrays)), dtype=np.float64), n_boot)
    drawn = _bootstrap(arrays, statistic, n_boot, seed, LEVEL).bootstrap_distribution
    return np.asarray(drawn, dtype=np.float64)


def bootstrap_interval(
    values: Sequence[float] | Float[np.ndarray, " example"],
    n_boot: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Bootstrap interval of the mean of ``values`` as ``(low, high)``, by :data:`INTERVAL_METHOD`.

    The interval has no width when all values are equal (an accuracy of exactly 0 or 1): read it with n.
    """
    _check_level(level, "bootstrap")
    (sample,) = _columns([values])
    if bool((sample == sample[0]).all()):
        return float(sample[0]), float(sample[0])
    low, high = _bootstrap([sample], lambda v: v.mean(axis=-1), n_boot, seed, level).confidence_interval
    return float(low), float(high)


def replicate_interval(replicates: Float[np.ndarray, " boot"], level: float = LEVEL) -> tuple[float, float]:
    """The middle ``level`` of replicates of any statistic, as ``(low, high)``."""
    _check_level(level, "bootstrap")
    low, high = np.percentile(replicates, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def wilson_interval(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 22 (1927) 209)."""
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"wilson_interval: {successes} successes of {n} is no proportion")
    _check_level(level, "wilson_interval")
    low, high = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


def summary(
    table: pd.DataFrame,
    by: Sequence[str],
    values: str | Mapping[str, str] = "score",
    unit: str | Sequence[str] | None = "id",
    *,
    n_boot: int = 1000,
    seed: int = 0,
    missing: Literal["error", "skip"] = "error",
    names: tuple[str, str, str] = ("mean", "low", "high"),
    measure: str = "measure",
) -> pd.DataFrame:
    """The mean of each group with its 95 % bootstrap interval over units: ``*by, mean, low, high, n`` (of units).

    Groups stand in the order in which they first appear. Several rows of one unit in a group (repeats of a random
    cut, words of a picture) are averaged first, so every unit weighs the same and is drawn as a whole.

    >>> answers = pd.DataFrame({"row": ["none"] * 2 + ["gate"] * 2, "id": [0, 1] * 2, "score": [1, 1, 0, 0]})
    >>> summary(answers, by=["row"])
        row  mean  low  high  n
    0  none   1.0  1.0   1.0  2
    1  gate   0.0  0.0   0.0  2

    Args:
        table: one row a unit, or several.
        by: columns that name a group; columns that are constant in a group may stand here to be kept.
        values: the column of numbers; or the name of each measure with its column, for a row a group and measure.
        unit: column(s) that name what is drawn again (an example, a picture, a pair); None when every row is one.
        n_boot, seed: of the intervals; all groups are drawn with the same seed.
        missing: what NaN means: an error, or a unit that is left out; a group without any unit left has no row.
        names: columns of the mean and the ends of its interval.
        measure: with several ``values``, the column that names them; it follows ``by``.

    Raises:
        DataError: a column is missing, or a value is not finite.
    """
    measures = {"": values} if isinstance(values, str) else dict(values)
    keys = [unit] if isinstance(unit, str) else list(unit or ())
    _check_has(table, [*by, *keys, *measures.values()], "summary")
    rows: list[tuple[Any, ...]] = []
    for group, part in table.groupby(list(by), sort=False, dropna=False):
        for name, column in measures.items():
            numbers = _per_unit(part, column, keys, skip=missing == "skip")
            if not len(numbers):
                continue
            interval = bootstrap_interval(numbers, n_boot=n_boot, seed=seed)
            place = group if isinstance(values, str) else (*group, name)
            rows.append((*place, float(numbers.mean()), *interval, len(numbers)))
    named = [] if isinstance(values, str) else [measure]
    return pd.DataFrame(rows, columns=[*by, *named, *names, "n"])


def paired_difference(
    table: pd.DataFrame,
    baseline: pd.DataFrame,
    values: str = "score",
    unit: str | Sequence[str] = "id",
    within: Sequence[str] = (),
) -> pd.Series:
    """``table``'s value minus the baseline's for the same unit, row by row; :func:`summary` gives its interval.

    Examples that are hard are hard under both conditions: the paired interval is narrower than the means' intervals.

    >>> clean = answers[answers.row == "none"]
    >>> change = paired_difference(answers, clean)
    >>> summary(answers.assign(change=change), by=["row"], values="change")

    Args:
        table, baseline: several rows of one unit in the baseline are averaged.
        values: the column of numbers in both.
        unit: column(s) that name a unit in both.
        within: further columns that must agree, such as the task.

    Raises:
        DataError: a column is missing, or a unit without a baseline.
    """
    keys = [*within, *([unit] if isinstance(unit, str) else unit)]
    for one in (table, baseline):
        _check_has(one, [*keys, values], "paired_difference")
    reference = baseline.groupby(keys, sort=False, dropna=False)[values].mean()
    labels = pd.MultiIndex.from_frame(table[keys]) if len(keys) > 1 else pd.Index(table[keys[0]])
    at = reference.index.get_indexer(labels)
    if (at < 0).any():
        lost = labels[int((at < 0).argmax())]
        raise DataError(f"paired_difference: the baseline has no row for {', '.join(keys)} = {lost}; add it")
    numbers = table[values].to_numpy(dtype=np.float64) - reference.to_numpy(dtype=np.float64)[at]
    return pd.Series(numbers, index=table.index)


def _columns(columns: Sequence[Any]) -> list[Float[np.ndarray, " example"]]:
    arrays = [np.asarray(c, dtype=np.float64) for c in columns]
    sizes = {a.shape for a in arrays}
    if not arrays or len(sizes) != 1 or arrays[0].ndim != 1:
        raise DataError(
            f"bootstrap: columns must be one-dimensional and equally long, got shapes {sorted(sizes)}"
        )
    if not len(arrays[0]):
        raise DataError("bootstrap: no values to draw from; give at least one example")
    for i, a in enumerate(arrays):
        n_bad = int((~np.isfinite(a)).sum())
        if n_bad:
            raise DataError(f"bootstrap: column {i} holds {n_bad} value(s) that are not finite")
    return arrays


def _bootstrap(
    arrays: Sequence[Float[np.ndarray, " example"]],
    statistic: Statistic,
    n_boot: int,
    seed: int,
    level: float,
) -> Any:
    def along_last(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(*drawn)

    # A statistic may be nan (a share of nothing); scipy warns, and takes a standard error that nobody reads.
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(
            arrays,
            along_last,
            n_resamples=n_boot,
            batch=max(1, _CELLS // len(arrays[0])),
            vectorized=True,
            paired=len(arrays) > 1,
            confidence_level=level,
            method=INTERVAL_METHOD,
            rng=np.random.default_rng(seed),
        )


def _per_unit(part: pd.DataFrame, column: str, keys: Sequence[str], skip: bool) -> Float[np.ndarray, " unit"]:
    numbers = part[column].astype(np.float64)
    n_missing = int(numbers.isna().sum())
    if n_missing and not skip:
        raise DataError(f"summary: {n_missing} value(s) of {column!r} are NaN; drop them, or missing='skip'")
    part, numbers = part[numbers.notna()], numbers.dropna()
    if keys and part.duplicated(list(keys)).any():
        numbers = numbers.groupby([part[key] for key in keys], sort=False, dropna=False).mean()
    return numbers.to_numpy()


def _check_has(table: pd.DataFrame, columns: Sequence[str], who: str) -> None:
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        raise DataError(f"{who}: column {lacking[0]!r} is missing; the table has {', '.join(table.columns)}")


def _check_level(level: float, who: str) -> None:
    if not 0 < level < 1:
        raise DataError(f"{who}: level {level} is outside (0, 1); 0.95 means a 95 % interval")
