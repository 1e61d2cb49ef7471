"""How few of many parts (such as token positions) carry an effect: greedy search over sets, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from gatelens.errors import DataError
from gatelens.measures.stats import drawn_means, middle

Item = TypeVar("Item")
Remains = Callable[[Sequence[tuple[Item, ...]]], Sequence[float]]


def label_information(
    log_probs: Float[np.ndarray, "example label"], labels: Int[np.ndarray, " example"]
) -> Float[np.ndarray, " example"]:
    """What the answers know of their own example, in nats: ``log p_i(y_i) − (1/n) Σ_j log p_i(y_j)``.

    The mean over examples is exactly 0 when every example has the same answer distribution, whatever it is.

    Args:
        log_probs: log p_i(y), in nats, of each label after each example.
        labels: the column of each example's own label.

    Raises:
        DataError: shapes that do not fit, or a label that is not a column.

    Example:
        >>> import numpy as np
        >>> log_probs = np.log([[0.8, 0.2], [0.2, 0.8]])
        >>> gl.measures.label_information(log_probs, np.array([0, 1])).round(4)  # (ln 0.8 − ln 0.2) / 2
        array([0.6931, 0.6931])
    """
    values, index = np.asarray(log_probs, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or index.shape != values.shape[:1] or not len(index):
        raise DataError(
            f"label_information: log_probs {values.shape} and labels {index.shape} do not fit; give [n, c] and [n]"
        )
    if index.min() < 0 or index.max() >= values.shape[1]:
        raise DataError(f"label_information: labels must be columns 0 to {values.shape[1] - 1}")
    return values[np.arange(len(index)), index] - values[:, index].mean(axis=1)


def naming_p_value(
    log_probs: Float[np.ndarray, "example label"],
    labels: Int[np.ndarray, " example"],
    n_permutations: int = 999,
    seed: int = 0,
) -> float:
    """How often the labels, their names shuffled, fit the answers as well as they do: a permutation test.

    The :func:`label_information` of a model with random weights can be far from 0, of either sign, but no assignment
    of names fits it better than another. Small values say that answers name the right classes; they are at least
    1 / (n_permutations + 1) and, with few labels, about one over the number of their orders.

    Args:
        log_probs: log p_i(y), in nats, of each label after each example.
        labels: the column of each example's own label.
        n_permutations, seed: random orders of the names.

    Example:
        >>> import numpy as np
        >>> labels = np.arange(5)
        >>> right = np.log(np.full((5, 5), 0.1) + 0.5 * np.eye(5))  # 0.6 on the example's own label
        >>> gl.measures.naming_p_value(right, labels) < 0.05  # 1 in 120 orders
        True
        >>> gl.measures.naming_p_value(np.log(np.full((5, 5), 0.2)), labels)  # all names alike
        1.0
    """
    values, index = np.asarray(log_probs, dtype=np.float64), np.asarray(labels)
    known = label_information(values, index).mean()
    rng = np.random.default_rng(seed)
    as_good = 0
    for _ in range(n_permutations):
        shuffled = values[:, rng.permutation(values.shape[1])]
        as_good += label_information(shuffled, index).mean() >= known - 1e-12
    return float(1 + as_good) / (1 + n_permutations)


def share_removed(
    none: Float[np.ndarray, "... example"],
    cut: Float[np.ndarray, "... example"],
    floor: Float[np.ndarray, "... example"],
    chance: float = 0.0,
) -> Float[np.ndarray, "..."]:
    """``(none − cut) / (none − max(floor, chance))`` of the means over examples; nan where that divides by about 0.

    Args:
        none: scores with nothing cut.
        cut: scores with some parts cut.
        floor: scores with everything cut.
        chance: the least that a mean score can tell.

    Example:
        >>> import numpy as np
        >>> float(gl.measures.share_removed(none=np.array([0.9]), cut=np.array([0.5]), floor=np.array([0.1])))
        0.5
    """
    worth = np.mean(none, axis=-1) - np.maximum(np.mean(floor, axis=-1), chance)
    drop = np.mean(none, axis=-1) - np.mean(cut, axis=-1)
    return np.where(worth > 1e-9, drop / np.where(worth > 1e-9, worth, 1.0), np.nan)


def share_by_example(
    none: Float[np.ndarray, " example"],
    cut: Float[np.ndarray, " example"],
    floor: Float[np.ndarray, " example"],
    chance: float = 0.0,
) -> Float[np.ndarray, " example"]:
    """:func:`share_removed`, a ratio of means, as a mean: its first-order expansion in each example (delta method).

    The values average to the share itself, and their spread gives its standard error; nan where the share is.
    """
    share = share_removed(none, cut, floor, chance)
    least = floor if floor.mean() > chance else np.full_like(none, chance)
    worth = np.where(np.isnan(share), np.nan, np.mean(none - least))
    return share + ((none - cut) - share * (none - least)) / worth


def greedy_order(
    remains: Remains[Item],
    items: Sequence[Item],
    steps: int,
    enough: Callable[[tuple[Item, ...]], bool] | None = None,
) -> list[Item]:
    """All items, the first ``steps`` chosen greedily: each is the one that, with those before it, leaves least.

    After ``steps``, or as soon as ``enough(chosen)``, the rest follow in the order of the last step's answers.
    """
    chosen: list[Item] = []
    left = list(items)
    while left:
        values = [float(v) for v in remains([(*chosen, item) for item in left])]
        order = sorted(range(len(left)), key=values.__getitem__)
        chosen.append(left[order[0]])
        left = [left[i] for i in order[1:]]
        if len(chosen) >= steps or (enough is not None and enough(tuple(chosen))):
            break
    return [*chosen, *left]


def prune(enough: Callable[[tuple[Item, ...]], bool], items: Sequence[Item]) -> list[Item]:
    """The items without those that can go, tried one by one in order, the set staying ``enough``.

    Finds what a greedy search misses: two parts that stand in for each other, so that neither alone has an effect.
    """
    kept = list(items)
    for item in items:
        without = [other for other in kept if other != item]
        if without and enough(tuple(without)):
            kept = without
    return kept


def set_sizes(n: int, every: int = 16, growth: float = 1.25) -> list[int]:
    """Sizes of sets to measure: each up to ``every``, then ``growth`` times larger each, and ``n``."""
    sizes = list(range(1, min(n, every) + 1))
    while sizes and sizes[-1] < n:
        sizes.append(min(n, math.ceil(sizes[-1] * growth)))
    return sizes


@dataclass(frozen=True)
class Carriers:
    """Size (None where no set is enough) and share of the smallest measured set that carries the wanted part.

    ``size`` is an upper bound: another set of fewer parts may carry as much. ``low`` and ``high`` are a 95 % interval
    over examples of the size at which this one path gets there, and say nothing of other paths; a draw that never
    gets there counts as the largest size, and one in which the largest set carries less is asked for less.

    Example:
        >>> import numpy as np
        >>> right = np.full(20, 0.9)  # the probability of the right answer in 20 examples
        >>> path = {1: right - 0.3, 2: right - 0.8}  # with one position cut, with two
        >>> found = gl.measures.smallest_carrying(right, right - 0.8, path)
        >>> found.size, found.low, found.high
        (2, 2, 2)
    """

    size: int | None
    low: int
    high: int
    share: float
    share_low: float
    share_high: float


def smallest_carrying(
    none: Float[np.ndarray, " example"],
    floor: Float[np.ndarray, " example"],
    path: Mapping[int, Float[np.ndarray, " example"]],
    chance: float = 0.0,
    part: float = 0.9,
    n_boot: int = 1000,
    seed: int = 0,
) -> Carriers:
    """The first size on a ``path`` (size of set: scores with it cut) where :func:`share_removed` reaches ``part``.

    Scores are between 0 and 1, such as probabilities of the right answer.

    Args:
        none: scores with nothing cut.
        floor: scores with everything cut.
        path: for each size of a set, the scores with the set cut.
        chance: the least that a mean score can tell.
        part: the share of the effect that a set must carry, in (0, 1].
        n_boot, seed: draws of the interval.

    Raises:
        DataError: an empty path, a score outside 0 and 1, or ``part`` outside (0, 1].

    Example:
        >>> import numpy as np
        >>> intact, all_cut = np.full(20, 0.9), np.full(20, 0.1)
        >>> path = {1: np.full(20, 0.5), 2: np.full(20, 0.3), 4: np.full(20, 0.1)}  # shares 0.5, 0.75 and 1
        >>> gl.measures.smallest_carrying(intact, all_cut, path, part=0.7).size
        2
    """
    if not path:
        raise DataError("smallest_carrying: the path holds no set; measure at least one")
    if not 0 < part <= 1:
        raise DataError(f"smallest_carrying: part {part} is outside (0, 1]; 0.9 means 90 %")
    sizes = sorted(path)

    def drawn_share(cut: Float[np.ndarray, " example"]) -> Float[np.ndarray, " boot"]:
        # one seed: the same draws of examples for every size
        whole, left, least = drawn_means(none, cut, floor, n_boot=n_boot, seed=seed)[..., None]
        return share_removed(whole, left, least, chance)

    point = np.array([share_removed(none, path[k], floor, chance) for k in sizes])
    drawn = np.stack([drawn_share(path[k]) for k in sizes])
    # what a draw takes from the largest set is no reason for a larger one
    lowered = np.minimum(1.0, drawn[-1] / point[-1]) if point[-1] > 0 else 1.0
    reaches = drawn >= part * lowered
    first = np.where(reaches.any(axis=0), reaches.argmax(axis=0), len(sizes) - 1)
    low, high = np.percentile(np.array(sizes)[first], [2.5, 97.5], method="nearest")
    reached = np.flatnonzero(point >= part)
    at = int(reached[0]) if len(reached) else len(sizes) - 1
    # a draw in which the whole is worth nothing has no share
    usable = drawn[at][np.isfinite(drawn[at])]
    share_interval = middle(usable) if len(usable) else (np.nan, np.nan)
    size = sizes[at] if len(reached) else None
    return Carriers(size, int(low), int(high), float(point[at]), *share_interval)
