"""How well an approximation agrees with the truth at cells where both are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

NOISE = 1e-4  # of the largest true value: what is smaller is rounding, and has no rank of its own
LEAST_OVERLAP = 0.7
MOST_ERROR = 0.3


@dataclass(frozen=True)
class Agreement:
    """An approximation compared with the truth.

    Attributes:
        cells: how many were compared.
        rank_correlation: Spearman's, of the signed values, −1 to 1, those below rounding counting as 0; NaN where
            all of one are equal.
        top: how many cells count as top: a third of them, one at least.
        top_overlap: the share of the ``top`` largest (by size) in truth that are also the approximation's, 0 to 1.
        error: the sum of absolute differences as a share of the sum of absolute true values.
        largest: the cell with the largest difference, its approximation and its truth.
        best: the cell of largest size in truth, and in the approximation.
        tenth, tenth_overlap: as ``top`` and ``top_overlap``, of a tenth of the cells.

    Example:
        >>> result = gl.measures.agreement([0.5, 0.1, 0.0], truth=[0.6, 0.1, 0.0])
        >>> result.cells, result.best, round(result.error, 3)  # 0.1 of 0.7 in all
        (3, (0, 0), 0.143)
    """

    cells: int
    rank_correlation: float
    top: int
    top_overlap: float
    error: float
    largest: tuple[int, float, float]
    best: tuple[int, int]
    tenth: int
    tenth_overlap: float

    @property
    def warnings(self) -> list[str]:
        """Why the approximation should not be trusted; empty where nothing speaks against it.

        The first two are of places, the last is of values (*Statistics*).
        """
        said = []
        if self.best[0] != self.best[1]:
            said.append("of the cells patched exactly, another has the largest effect")
        if self.tenth_overlap < LEAST_OVERLAP:
            right = round(self.tenth_overlap * self.tenth)
            said.append(f"{right} of the top {self.tenth} are right, fewer than {LEAST_OVERLAP:.0%}")
        if not self.error <= MOST_ERROR:
            said.append(f"values are off by {self.error:.0%} of their size, more than {MOST_ERROR:.0%}")
        return said

    def __str__(self) -> str:
        return (
            f"{self.cells} cells patched exactly: rank correlation {self.rank_correlation:.2f}, top-{self.top} overlap "
            f"{self.top_overlap:.2f}, error {self.error:.0%}"
        )


def agreement(
    guess: Float[np.ndarray, " cell"] | Sequence[float], truth: Float[np.ndarray, " cell"] | Sequence[float]
) -> Agreement:
    """Compare an approximation with the truth, cell by cell.

    Args:
        guess: the approximation, one number per cell.
        truth: the true values of the same cells.

    Example:
        >>> result = gl.measures.agreement([4.0, 3.0, 2.0, 1.0], truth=[8.0, 6.0, 4.0, 2.0])
        >>> result.rank_correlation, result.top_overlap, result.error  # the right order, half the size
        (1.0, 1.0, 0.5)
    """
    given, true = np.asarray(guess, dtype=float), np.asarray(truth, dtype=float)
    off = np.abs(given - true)
    size = np.abs(true).sum()
    top, tenth = max(1, len(true) // 3), max(1, len(true) // 10)
    order = [np.argsort(-np.abs(values), kind="stable").tolist() for values in (true, given)]
    worst = int(off.argmax())
    return Agreement(
        len(true),
        rank_correlation(*(np.where(np.abs(v) > NOISE * np.abs(true).max(), v, 0.0) for v in (given, true))),
        top,
        _shared(order, top),
        float(off.sum() / size) if size else float("nan" if off.sum() else 0.0),
        (worst, float(given[worst]), float(true[worst])),
        (order[0][0], order[1][0]),
        tenth,
        _shared(order, tenth),
    )


def _shared(orders: Sequence[Sequence[int]], n: int) -> float:
    """The share of the first ``n`` that both orders have."""
    return len(set(orders[0][:n]) & set(orders[1][:n])) / n


def rank_correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where all values of one are equal."""
    ranks = np.stack([rankdata(a), rankdata(b)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=1).prod())
    return float((centred[0] * centred[1]).sum() / spread) if spread else float("nan")


def thirds(values: Float[np.ndarray, " cell"], n: int, seed: int = 0) -> list[int]:
    """Which cells to look at: a third those of largest size, a third of smallest, the rest drawn from all others."""
    order = np.argsort(-np.abs(np.asarray(values, dtype=float)), kind="stable")
    if n >= len(order):
        return sorted(order.tolist())
    third = n // 3
    ends = [*order[: n - 2 * third], *order[len(order) - third :]]
    between = order[n - 2 * third : len(order) - third]
    drawn = np.random.default_rng(seed).permutation(between)[:third]
    return sorted(int(i) for i in [*ends, *drawn])
