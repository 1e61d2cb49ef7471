"""Exact nearest neighbours by blocks: memory grows with the points times the neighbours kept, never with points².

The density and dimension estimates divide by the smallest distances. So they are taken in float64, and scikit-learn's
are not used: by matrix products they lose the distance of close points, and without them they are too slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import DataError

Metric = Literal["euclidean", "cosine"]

# Shares of the squared lengths below which a squared distance is taken again from the difference itself, and below
# which it is rounding: the two points count as one.
_CLOSE, _ROUNDING = 1e-6, (16 * torch.finfo(torch.float64).eps) ** 2


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of every point, nearest first; the point itself is not among them."""

    distances: Float[Tensor, "point neighbour"]
    indices: Int[Tensor, "point neighbour"]

    @property
    def n(self) -> int:
        """The number of points."""
        return self.indices.shape[0]

    @property
    def k(self) -> int:
        """The number of neighbours kept of each point."""
        return self.indices.shape[1]


def check_points(x: Float[Tensor, "point feature"], who: str, directions: bool = False) -> None:
    """Refuse what no distance can be taken of: not a matrix, values not finite, no direction for a cosine."""
    if x.ndim != 2 or not x.numel():
        raise DataError(f"{who}: points must be a filled [point, feature] matrix, got shape {tuple(x.shape)}")
    bad = ~torch.isfinite(x).all(-1)
    if bool(bad.any()):
        raise DataError(f"{who}: row {int(bad.nonzero()[0])} holds a value that is not finite; drop the row")
    zero = (x == 0).all(-1)
    if directions and bool(zero.any()):
        row = int(zero.nonzero()[0])
        raise DataError(f"{who}: row {row} is all zeros, which has no direction; drop the row")


def check_one_each(
    x: Float[Tensor, "point feature"],
    labels: Int[Tensor, " point"],
    who: str,
    what: str = "labels",
    each: str = "point",
) -> None:
    """Refuse labels that are not one per point."""
    if labels.shape != x.shape[:1]:
        raise DataError(f"{who}: {len(x)} {each}s but {what} {tuple(labels.shape)}; give one per {each}")


def nearest(
    x: Float[Tensor, "point feature"], k: int, metric: Metric = "euclidean", cells: int = 8_000_000
) -> Neighbours:
    """The ``k`` nearest neighbours of every row of ``x`` among the other rows.

    ``cosine`` is 1 − cos. At equal distance the lower index comes first.
    The work is done on the points' own GPU, else on the CPU; the answer is on the CPU.

    Args:
        x: the points, one row each.
        k: how many neighbours.
        metric: ``"euclidean"`` or ``"cosine"``.
        cells: how many distances, of 8 bytes each, are held in memory at a time.

    Raises:
        DataError: ``k`` not in 1..n − 1; an unknown metric; a row that is not finite or, for cosine, zero.

    Example:
        >>> found = gl.measures.nearest(torch.tensor([[0.0], [1.0], [3.0]]), k=2)
        >>> found.indices.tolist(), found.distances.tolist()
        ([[1, 2], [0, 2], [1, 0]], [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0]])
    """
    if metric not in ("euclidean", "cosine"):
        raise DataError(f"nearest: metric '{metric}' is unknown; choose euclidean or cosine")
    check_points(x, "nearest", directions=metric == "cosine")
    n = x.shape[0]
    if not 1 <= k < n:
        raise DataError(f"nearest: k={k} neighbours need at least {max(k, 1) + 1} points and k ≥ 1, got {n}")
    points = x.detach().to(device=x.device if x.is_cuda else "cpu", dtype=torch.float64)
    # Taking the mean off leaves distances as they are, and |a|² + |b|² − 2ab loses less.
    points = torch.nn.functional.normalize(points, dim=-1) if metric == "cosine" else points - points.mean(0)
    length = points.square().sum(-1)
    distances, indices = [], []
    step = max(1, cells // n)
    for start in range(0, n, step):
        row, own = points[start : start + step], length[start : start + step, None]
        # |b|² − 2ab orders the neighbours b of a; with |a|² it is the squared distance, and for unit vectors
        # half of that is 1 − cos.
        order = torch.addmm(length, row, points.T, alpha=-2)
        here = torch.arange(len(row), device=order.device)
        order[here, here + start] = float("inf")
        value, index = _smallest(order, k)
        square = value + own
        both = own + length[index]
        for at in (square < _CLOSE * both).nonzero().split(max(1, cells // points.shape[1])):
            a, b = at[:, 0], index[at[:, 0], at[:, 1]]
            square[a, at[:, 1]] = (row[a] - points[b]).square().sum(-1)
        square = torch.where(square <= _ROUNDING * both, 0.0, square)
        square, index = _in_order(square, index)
        distances.append((square / 2 if metric == "cosine" else square.sqrt()).cpu())
        indices.append(index.cpu())
    return Neighbours(torch.cat(distances), torch.cat(indices))


def _smallest(
    values: Float[Tensor, "row column"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The ``k`` smallest of each row; of columns that tie for the last place the lower ones."""
    value, index = values.topk(min(k + 1, values.shape[1]), largest=False)
    if value.shape[1] > k:
        # topk may take any of the columns that tie for the last place: rows with such a tie are sorted whole.
        tied = (value[:, k] == value[:, k - 1]).nonzero()[:, 0]
        value, index = value[:, :k].contiguous(), index[:, :k].contiguous()
        if len(tied):
            whole, column = values[tied].sort(dim=-1, stable=True)
            value[tied], index[tied] = whole[:, :k], column[:, :k]
    return value, index


def _in_order(
    value: Float[Tensor, "row k"], index: Int[Tensor, "row k"]
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """Each row by value, and by index where values are equal."""
    index, by_index = index.sort(-1)
    value, by_value = value.gather(-1, by_index).sort(dim=-1, stable=True)
    return value, index.gather(-1, by_value)


def distinct(x: Float[Tensor, "point feature"]) -> tuple[Int[Tensor, " kept"], Int[Tensor, " point"]]:
    """Which rows to keep so that no two are equal (the first of each), and where each row's twin is in them.

    ``x[kept][place]`` is ``x`` again. A density estimate needs this: k + 1 equal points have no k-th distance.
    """
    check_points(x, "distinct")
    _, group = torch.unique(x.detach().cpu(), dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(x), dtype=torch.int64)
    first = first.scatter_reduce(0, group, torch.arange(len(x)), reduce="amin")
    kept, order = first.sort()
    return kept, order.argsort()[group]
