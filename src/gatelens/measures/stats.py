"""How certain a mean is: intervals over examples, and tables of means with their intervals.

:func:`mean_interval` decides for every mean of the package:

- a proportion (outcomes of 0 and 1) has Wilson's score interval;
- other scores between known bounds (partial credit, outcomes averaged over repeats, differences of outcomes of the same
  examples) have a Bayesian bootstrap in which one made-up example, half of it at each bound, stands for what was
  not drawn. For a proportion this is Jeffreys' interval. It has a width however similar the values are, where
  resampling the values alone finds none;
- values without bounds (nats, CIDEr-D), and quantities that are measured and not scored, whose bounds say nothing of
  what was not drawn (attention, overlaps), have the BCa bootstrap.

``python -m benchmarks.intervals`` measures how often they hold the truth.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from gatelens.errors import DataError

LEVEL = 0.95
Bounds = tuple[float, float]
SHARE: Bounds = (0.0, 1.0)
CHANGE: Bounds = (-1.0, 1.0)  # the difference of two shares
IN_WORDS = (
    "95 %. Wilson’s for proportions. A Bayesian bootstrap for other scores between known bounds. One made-up example "
    "stands for what was not drawn, so it has a width however similar the scores are. The BCa bootstrap for all "
    "other "
    "values (CIDEr-D, nats, attention, overlaps)."
)

_CELLS = 4_000_000  # numbers drawn at once: bounds memory for large n
_ROUNDING = 1e-5  # how far a value that was added up in single precision may lie outside its bounds


def mean_interval(
    values: Sequence[float] | Float[np.ndarray, " example"],
    bounds: Bounds | None = SHARE,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of the mean of ``values`` over examples as ``(low, high)``; the module says by which method.

    Values without bounds that are all equal have an interval without width, as nothing says how far others could lie
    from them: read it with n.

    Args:
        values: one per example.
        bounds: the lowest and highest score an example could get, also if none here gets it: (0, 1) for shares,
            (−1, 1) for differences of two shares. None where there are none, and for what is measured and not scored:
            probabilities, log-probabilities, attention.
        n_boot, seed: of the intervals that are drawn.
        level: 0.95 means a 95 % interval.

    Raises:
        DataError: no values, a value that is not finite or outside the bounds, a level outside (0, 1).

    Example:
        >>> low, high = gl.measures.mean_interval([1] * 45 + [0] * 5)  # of right and wrong answers: Wilson's
        >>> round(low, 3), round(high, 3)
        (0.786, 0.957)
    """
    _check_level(level, "mean_interval")
    (sample,) = _columns([values])
    if bounds is not None:
        _check_bounds(sample, bounds)
        if bounds == SHARE and bool(np.isin(sample, SHARE).all()):
            return wilson_interval(int(sample.sum()), len(sample), level)
        drawn = drawn_means(sample, bounds=bounds, n_boot=n_boot, seed=seed)[0]
        return middle(drawn, level, around=float(sample.mean()))
    if bool((sample == sample[0]).all()):
        return float(sample[0]), float(sample[0])
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")  # of what is not finite, which is looked at below
        resampled = stats.bootstrap(
            (sample,),
            np.mean,
            n_resamples=n_boot,
            batch=max(1, _CELLS // len(sample)),
            vectorized=True,
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = resampled.confidence_interval
    if math.isfinite(low) and math.isfinite(high):
        return float(low), float(high)
    # so few replicates that all of them lie on one side of the mean
    return middle(resampled.bootstrap_distribution, level, around=float(sample.mean()))


def wilson_interval(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 22 (1927) 209).

    Args:
        successes: how many of ``n``.
        n: trials.
        level: 0.95 means a 95 % interval.

    Example:
        >>> low, high = gl.measures.wilson_interval(45, 50)
        >>> round(low, 3), round(high, 3)
        (0.786, 0.957)
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"wilson_interval: {successes} successes of {n} is not a proportion")
    _check_level(level, "wilson_interval")
    low, high = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


def drawn_means(
    *columns: Sequence[float] | Float[np.ndarray, " example"],
    bounds: Bounds | None = SHARE,
    n_boot: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "column boot"]:
    """Means that columns of the same examples may have, for the interval of any function of them (:func:`middle`).

    The Bayesian bootstrap (Rubin, Ann. Statist. 9 (1981) 130): in each draw every example has a random weight, the same
    in all columns. Made-up examples, one for every way in which the columns can take their bounds, share the weight
    of a single example. Without them a column whose values are all equal would seem to be known exactly.

    Args:
        columns: paired by example.
        bounds: the minimum and maximum of a value, in every column; None adds no examples.
        n_boot, seed: draws. One seed gives the same weights for columns of one length.

    Raises:
        DataError: no values, columns of different length, a value that is not finite or outside its bounds.

    Example:
        >>> before, after = [0.8, 0.6, 0.9], [0.4, 0.3, 0.45]
        >>> draws = gl.measures.drawn_means(before, after, bounds=None)
        >>> low, high = gl.measures.middle(draws[1] / draws[0])  # the ratio is a half in every draw
        >>> round(low, 6), round(high, 6)
        (0.5, 0.5)
    """
    arrays = np.stack(_columns(columns))
    weights = np.ones(arrays.shape[1])
    if bounds is not None:
        for values in arrays:
            _check_bounds(values, bounds)
        corners = np.array(list(itertools.product(bounds, repeat=len(arrays)))).T
        arrays = np.concatenate([arrays, corners], axis=1)
        weights = np.concatenate([weights, np.full(corners.shape[1], 1 / corners.shape[1])])
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, n_boot, size := max(1, _CELLS // len(weights))):
        drawn = rng.standard_gamma(weights, size=(min(size, n_boot - start), len(weights)))
        parts.append(arrays @ (drawn / drawn.sum(axis=1, keepdims=True)).T)
    return np.concatenate(parts, axis=1)


def middle(
    draws: Float[np.ndarray, " boot"], level: float = LEVEL, around: float | None = None
) -> tuple[float, float]:
    """The interval that holds the middle ``level`` of the draws, as ``(low, high)``.

    Args:
        draws: values of a statistic over bootstrap draws.
        level: 0.95 means a 95 % interval.
        around: a value that the interval is stretched to where it misses it, as it may miss the mean of values that
            all lie at one of their bounds.

    Example:
        >>> import numpy as np
        >>> gl.measures.middle(np.arange(101.0), level=0.5)
        (25.0, 75.0)
    """
    _check_level(level, "middle")
    low, high = map(float, np.percentile(draws, [50 * (1 - level), 50 * (1 + level)]))
    return (low, high) if around is None else (min(low, around), max(high, around))


def independent_difference(
    a: tuple[float, float, float], b: tuple[float, float, float]
) -> tuple[float, float]:
    """Interval of b − a for two means of different examples, from ``(mean, low, high)`` of each.

    The squared distances to the ends are added up (Zou and Donner, Stat. Med. 27 (2008) 1693); of two proportions with
    Wilson's intervals it is Newcombe's. Two means can differ surely although their intervals overlap.
    """
    (mean_a, low_a, high_a), (mean_b, low_b, high_b) = a, b
    difference = mean_b - mean_a
    down, up = math.hypot(mean_b - low_b, high_a - mean_a), math.hypot(high_b - mean_b, mean_a - low_a)
    return difference - down, difference + up


def summary(
    table: pd.DataFrame,
    by: str | Sequence[str],
    values: str | Mapping[str, str] = "score",
    unit: str | Sequence[str] | None = "id",
    *,
    bounds: Bounds | Mapping[str, Bounds | None] | None = SHARE,
    n_boot: int = 1000,
    seed: int = 0,
    missing: Literal["error", "skip"] = "error",
    names: tuple[str, str, str] = ("mean", "low", "high"),
    measure: str = "measure",
) -> pd.DataFrame:
    """The mean of each group with its 95 % interval over units: ``*by, mean, low, high, n`` (of units).

    Groups are in the order in which they first appear. Several rows of one unit in a group (repeats of a random
    cut, words of a picture) are averaged first, so every unit weighs the same and is drawn as a whole.

    Args:
        table: one row per unit, or several.
        by: columns that name a group, none for one mean of all; columns constant in a group may be named to be kept.
        values: the column of numbers; without ``score`` in the table it is ``value``, as of a sweep. Or several as
            name and column, ``{"accuracy": "right", "surprise": "nats"}``, for a row per group and measure.
        unit: column(s) that name what is drawn again (an example, a picture, a pair); None when every row is one. Of a
            table without ``id`` it is ``example``, as of a sweep.
        bounds: the minimum and maximum of a value (:func:`mean_interval`), None for probabilities, logits or nats; of
            all measures or by its name in ``values``, where a measure that is not named has none.
        n_boot, seed: of the intervals; all groups are drawn with the same seed.
        missing: what NaN means: an error, or a unit that is left out; a group without any unit left has no row.
        names: columns of the mean and the ends of its interval.
        measure: with several ``values``, the column that names them; it follows ``by``.

    Raises:
        DataError: a column is missing, or a value is not finite or outside its bounds.

    Example:
        >>> import pandas as pd
        >>> answers = pd.DataFrame({"row": ["none"] * 2 + ["gate"] * 2, "id": [0, 1] * 2, "score": [1, 1, 0, 0]})
        >>> gl.measures.summary(answers, by=["row"])
            row  mean      low     high  n
        0  none   1.0  0.34238  1.00000  2
        1  gate   0.0  0.00000  0.65762  2
    """
    values, unit = _of_a_sweep(table, "score", values, "value"), _of_a_sweep(table, "id", unit, "example")
    measures = {"": values} if isinstance(values, str) else dict(values)
    by = [by] if isinstance(by, str) else list(by)
    keys = [unit] if isinstance(unit, str) else list(unit or ())
    _check_summary(table, [*by, *keys], [*measures.values()])
    rows: list[tuple[Any, ...]] = []
    for group, part in table.groupby(by, sort=False, dropna=False) if by else [((), table)]:
        for name, column in measures.items():
            numbers = _per_unit(part, column, keys, skip=missing == "skip")
            if not len(numbers):
                continue
            limits = bounds.get(name) if isinstance(bounds, Mapping) else bounds
            interval = mean_interval(numbers, limits, n_boot=n_boot, seed=seed)
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

    Args:
        table, baseline: several rows of one unit in the baseline are averaged.
        values: the column of numbers in both.
        unit: column(s) that name a unit in both.
        within: further columns that must agree, such as the task.

    Raises:
        DataError: a column is missing, or a unit without a baseline.

    Example:
        >>> import pandas as pd
        >>> answers = pd.DataFrame({"row": ["none"] * 2 + ["gate"] * 2, "id": [0, 1] * 2, "score": [1, 0.5, 0.25, 0.5]})
        >>> gl.measures.paired_difference(answers, baseline=answers[answers.row == "none"]).tolist()
        [0.0, 0.0, -0.75, 0.0]
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
            f"interval: columns must be one-dimensional and equally long, got shapes {sorted(sizes)}"
        )
    if not len(arrays[0]):
        raise DataError("interval: no values to draw from; give at least one example")
    for i, a in enumerate(arrays):
        n_bad = int((~np.isfinite(a)).sum())
        if n_bad:
            raise DataError(f"interval: column {i} holds {n_bad} value(s) that are not finite")
    return arrays


def _check_bounds(values: Float[np.ndarray, " example"], bounds: Bounds) -> None:
    low, high = bounds
    slack = _ROUNDING * max(high - low, 1.0)
    if values.min() < low - slack or values.max() > high + slack:
        raise DataError(
            f"interval: values from {values.min():.6g} to {values.max():.6g} leave the bounds {low:g} to {high:g}; "
            "give bounds=(least, most), or None where a value has none"
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


def _of_a_sweep(table: pd.DataFrame, default: str, given: Any, instead: str) -> Any:
    """The column that is asked for, or a sweep's where the default is not in the table."""
    return instead if given == default and default not in table and instead in table else given


def _check_summary(table: pd.DataFrame, groups: Sequence[str], values: Sequence[str]) -> None:
    _check_has(table, groups, "summary")
    numeric = [name for name in table.select_dtypes("number") if name not in groups]
    write = f"; give values={numeric[-1]!r}, or a dict for several" if numeric else ""
    _check_has(table, values, "summary", write)


def _check_has(table: pd.DataFrame, columns: Sequence[str], who: str, write: str = "") -> None:
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        there = ", ".join(map(str, table.columns))
        raise DataError(f"{who}: column {lacking[0]!r} is missing; the table has {there}{write}")


def _check_level(level: float, who: str) -> None:
    if not 0 < level < 1:
        raise DataError(f"{who}: level {level} is outside (0, 1); 0.95 means a 95 % interval")
