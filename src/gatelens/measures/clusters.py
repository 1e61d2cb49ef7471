"""Clusters as peaks of an estimated density: Advanced Density Peaks (ADP), and the k-NN densities it needs.

- ADP: d'Errico, Facco, Laio, Rodriguez, Information Sciences 560 (2021) 476 (arXiv 1802.10549).
- k*, the largest neighbourhood in which the density is flat: Rodriguez, d'Errico, Facco, Laio, Journal of
  Chemical Theory and Computation 14 (2018) 1206.

NG clusters tokens so, with the authors' own package, whose choices are followed where the article leaves one open.
One differs: of points that coincide only the first can be a peak, where the package makes each its own cluster.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import DataError
from gatelens.measures.neighbours import Neighbours

PointIds = Int[np.ndarray, " point"]
PeakIds = Int[np.ndarray, " peak"]
PointValues = Float[np.ndarray, " point"]
NeighbourIds = Int[np.ndarray, "point neighbour"]
NeighbourFlags = Bool[np.ndarray, "point neighbour"]

FLAT = NormalDist().inv_cdf(1 - 0.5e-6) ** 2
"""Twice the log-likelihood ratio at which two densities differ: χ² of one degree, p = 1e-6 (23.928)."""


@dataclass(frozen=True)
class DensityPeaks:
    """The clusters that Advanced Density Peaks finds.

    ``labels`` counts clusters from 0, in order of their peak's index in ``centers``. ``halo`` marks points less dense
    than the highest saddle of their cluster, which the article calls unreliable. A saddle is the border, given by its
    point and log density, between the two clusters of its row in ``saddle_pairs``; others do not touch.
    """

    labels: Int[Tensor, " point"]
    centers: Int[Tensor, " cluster"]
    halo: Bool[Tensor, " point"]
    saddle_pairs: Int[Tensor, "saddle 2"]
    saddle_points: Int[Tensor, " saddle"]
    saddle_log_density: Float[Tensor, " saddle"]

    @property
    def n_clusters(self) -> int:
        """The number of clusters."""
        return len(self.centers)


def adaptive_k(neighbours: Neighbours, dimension: float, threshold: float = FLAT) -> Int[Tensor, " point"]:
    """k* of every point: how many neighbours it has before the density changes (Rodriguez et al. 2018).

    Point i and its (k + 1)-th neighbour j are taken to have different densities when

    ``D_k = −2k [log V_i + log V_j − 2 log(V_i + V_j) + log 4] = 4k log cosh((log V_i − log V_j) / 2) ≥ threshold``,

    V being the volume within the k-th neighbour; k* is the last k, from 3 on, before that happens.
    """
    radius = _log_radius(neighbours, "adaptive_k", 3)
    n, kept = radius.shape
    star = torch.full((n,), 3, dtype=torch.int64)
    alive = torch.ones(n, dtype=torch.bool)
    for k in range(3, kept - 1):
        half = dimension * (radius[:, k - 1] - radius[neighbours.indices[:, k], k - 1]).abs() / 2
        log_cosh = half + torch.log1p(torch.exp(-2 * half)) - math.log(2)
        alive &= 4 * k * log_cosh <= threshold
        if not bool(alive.any()):
            break
        star[alive] = k + 1
    return star.clamp_max(kept - 1) if kept > 3 else star


def knn_density(
    neighbours: Neighbours, dimension: float, k: int | Int[Tensor, " point"] = 16
) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
    """Log density ``log(k / (N ω_d r_k^d))`` and its error ``1/√k`` (d'Errico et al. 2021).

    ω_d is the volume of the unit ball of ``dimension`` d, r_k the distance of the k-th neighbour. ``k`` is one number
    (NG: 16) or one per point (:func:`adaptive_k`: the k*-NN density).

    Args:
        neighbours: of :func:`nearest`, at least ``k`` of each point.
        dimension: the intrinsic dimension d.
        k: the rank of the neighbour, one number or one per point.

    Raises:
        DataError: ``k`` beyond the neighbours kept, a dimension that is not positive, coinciding points.

    Example:
        >>> near = gl.measures.nearest(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), k=1)
        >>> log_density, error = gl.measures.knn_density(near, dimension=1, k=1)
        >>> log_density.exp(), error  # k / (N · 2 · r) = 1/8
        (tensor([0.1250, 0.1250, 0.1250, 0.1250], dtype=torch.float64), tensor([1., 1., 1., 1.], dtype=torch.float64))
    """
    if not dimension > 0:
        raise DataError(
            f"knn_density: dimension {dimension} is not positive; estimate it with gride or two_nn"
        )
    each = torch.as_tensor(k).expand(neighbours.n)
    if int(each.min()) < 1 or int(each.max()) > neighbours.k:
        raise DataError(
            f"knn_density: k from {int(each.min())} to {int(each.max())} with {neighbours.k} neighbours kept; "
            f"keep more or lower k"
        )
    radius = neighbours.distances.double().gather(1, each[:, None] - 1)[:, 0]
    _check_radius(radius, "knn_density")
    ball = dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2 + 1)
    count = each.double()
    return count.log() - math.log(neighbours.n) - ball - dimension * radius.log(), count.rsqrt()


def density_peaks(
    neighbours: Neighbours,
    log_density: Float[Tensor, " point"],
    error: Float[Tensor, " point"],
    k: int | Int[Tensor, " point"] = 16,
    z: float = 1.65,
) -> DensityPeaks:
    """Advanced Density Peaks (d'Errico et al. 2021, section 2).

    With g = log density − error and the first ``k`` neighbours as a point's neighbourhood:

    1. A putative peak has the highest g in its neighbourhood and lies in no neighbourhood of a higher g.
    2. Every other point joins the cluster of its nearest neighbour of higher g.
    3. A border point of clusters a and b lies in a, has a point of b in its neighbourhood, and is the nearest
       point of a to the first such; the saddle is the border point, of a or of b, with the highest g.
    4. While some peak does not rise above a saddle by more than ``z`` times the sum of their errors, the
       highest such saddle goes: the peak that rises less, in units of its error, gives its cluster and its
       other saddles to the other.

    Memory is points × neighbours; time is that and, for step 4, the number of saddles times its logarithm.

    Args:
        neighbours: of :func:`nearest`, at least ``k`` of each point.
        log_density, error: of :func:`knn_density`, in nats.
        k: the size of a neighbourhood, one number or one per point.
        z: how many errors a peak must rise above a saddle.

    Raises:
        DataError: ``k`` beyond the neighbours kept; densities of another length or not finite.

    Example:
        >>> cloud = torch.tensor([0.0, 0.4, 0.7, 0.9, 1.0, 1.1, 1.3, 1.6, 2.0])  # densest in its middle
        >>> points = torch.cat([cloud, cloud + 9])[:, None]
        >>> near = gl.measures.nearest(points, k=4)
        >>> peaks = gl.measures.density_peaks(near, *gl.measures.knn_density(near, dimension=1, k=4), k=4)
        >>> peaks.labels.bincount()
        tensor([9, 9])
    """
    n = neighbours.n
    size = torch.as_tensor(k).expand(n).cpu().numpy()
    density, spread = log_density.detach().cpu().double().numpy(), error.detach().cpu().double().numpy()
    _check_densities(neighbours, size, density, spread)
    index = neighbours.indices.cpu().numpy()
    inside = np.arange(index.shape[1]) < size[:, None]
    # Two points that are each other's k-th neighbour have one density: rounding must not tell them apart.
    density = np.round(density, 9)
    g = np.round(density - spread, 9)
    twin = neighbours.distances.cpu().numpy() == 0

    peaks, label = _climb(index, inside, twin, g)
    borders = _borders(index, inside, g, label, peaks)
    owner, saddles = _merge(peaks, borders, density, spread, z)

    return _numbered(peaks, label, owner, saddles, density)


def _numbered(
    peaks: PeakIds, label: PointIds, owner: PeakIds, saddles: dict[tuple[int, int], int], density: PointValues
) -> DensityPeaks:
    """The clusters whose peaks are left, counted from 0, and the saddles between them."""
    alive = np.unique(owner)
    final = np.searchsorted(alive, owner)
    labels = final[label]
    level = np.full(len(alive), -np.inf)
    rows = sorted((*sorted((int(final[a]), int(final[b]))), point) for (a, b), point in saddles.items())
    for a, b, point in rows:
        level[a], level[b] = max(level[a], density[point]), max(level[b], density[point])
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    return DensityPeaks(
        labels=torch.from_numpy(labels),
        centers=torch.from_numpy(peaks[alive]),
        halo=torch.from_numpy(density < level[labels]),
        saddle_pairs=table[:, :2],
        saddle_points=table[:, 2],
        saddle_log_density=torch.from_numpy(density)[table[:, 2]],
    )


def _check_densities(
    neighbours: Neighbours, size: PointIds, density: PointValues, spread: PointValues
) -> None:
    n = neighbours.n
    if density.shape != (n,) or spread.shape != (n,):
        raise DataError(
            f"density_peaks: {n} points but densities {density.shape}, errors {spread.shape}; give one per point"
        )
    if not (np.isfinite(density).all() and np.isfinite(spread).all()):
        raise DataError("density_peaks: a log density or error is not finite; keep distinct points only")
    if size.min() < 1 or size.max() > neighbours.k:
        raise DataError(f"density_peaks: k up to {size.max()} with {neighbours.k} neighbours kept; keep more")


def _climb(
    index: NeighbourIds, inside: NeighbourFlags, twin: NeighbourFlags, g: PointValues
) -> tuple[PeakIds, PointIds]:
    """Steps 1 and 2: the putative peaks in index order, and the number of the peak every point climbs to."""
    n = len(g)
    order = np.argsort(-g, kind="stable")
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)  # 0 is the densest; equal g in order of index
    before = rank[index] < rank[:, None]
    # An equal g does not unseat a peak (as in the authors' package), unless it is the same place.
    unseats = before & (twin | (g[index] > g[:, None]))
    # The densest point in whose neighbourhood a point lies; n where it lies in none.
    holder = np.full(n, n, dtype=np.int64)
    point, column = np.nonzero(inside)
    np.minimum.at(holder, index[point, column], rank[point])
    held = np.append(g[order], -np.inf)[holder] > g
    is_peak = ~(unseats & inside).any(1) & ~held
    peaks = np.nonzero(is_peak)[0]
    # A point of lower g can only be followed if it is a peak itself; the authors' package allows that.
    goal = before | is_peak[index]
    parent = index[np.arange(n), goal.argmax(1)]
    # Left over are points that are highest among all neighbours kept but lie in a denser one's neighbourhood:
    # they follow the densest such.
    lone = ~goal.any(1) & ~is_peak
    parent[lone] = order[holder[lone]]
    parent[peaks] = peaks
    return peaks, np.searchsorted(peaks, _roots(parent))


def _roots(parent: Int[np.ndarray, " item"]) -> Int[np.ndarray, " item"]:
    """Where each item's chain of parents ends: at an item that is its own parent."""
    while not np.array_equal(parent, grandparent := parent[parent]):
        parent = grandparent
    return parent


def _borders(
    index: NeighbourIds, inside: NeighbourFlags, g: PointValues, label: PointIds, peaks: PeakIds
) -> dict[tuple[int, int], int]:
    """Step 3: the saddle point of every two putative clusters that touch."""
    around = label[index]
    foreign = (around != label[:, None]) & inside
    at = foreign.any(1)
    at[peaks] = False  # as in the authors' package: a peak is not a border of its own cluster
    point = np.nonzero(at)[0]
    across = index[point, foreign[point].argmax(1)]
    own = around[across] == label[point, None]
    nearest_own = index[across, own.argmax(1)]
    # No point of the cluster among the neighbours kept cannot refute the border; the package lets it stand.
    stands = (nearest_own == point) | ~own.any(1)
    point, across = point[stands], across[stands]
    low = np.minimum(label[point], label[across])
    high = np.maximum(label[point], label[across])
    saddles: dict[tuple[int, int], int] = {}
    for i in np.lexsort((point, label[point], -g[point])):
        saddles.setdefault((int(low[i]), int(high[i])), int(point[i]))
    return saddles


def _merge(
    peaks: PeakIds, saddles: dict[tuple[int, int], int], density: PointValues, spread: PointValues, z: float
) -> tuple[PeakIds, dict[tuple[int, int], int]]:
    """Step 4: the peak to which every putative peak belongs in the end, and the saddles that are left."""
    touching: dict[int, dict[int, int]] = {a: {} for a in range(len(peaks))}
    queue: list[tuple[float, int, int, int]] = []

    def rise(peak: int, point: int) -> tuple[float, float]:
        return density[peaks[peak]] - density[point], spread[peaks[peak]] + spread[point]

    def join(a: int, b: int, point: int) -> None:
        touching[a][b] = touching[b][a] = point
        (rise_a, error_a), (rise_b, error_b) = rise(a, point), rise(b, point)
        if rise_a < z * error_a or rise_b < z * error_b:
            heapq.heappush(queue, (-density[point], min(a, b), max(a, b), point))

    for (a, b), point in saddles.items():
        join(a, b, point)
    owner = np.arange(len(peaks))
    while queue:
        _, a, b, point = heapq.heappop(queue)
        if touching.get(a, {}).get(b) != point:  # merged since, or replaced by a higher saddle
            continue
        (rise_a, error_a), (rise_b, error_b) = rise(a, point), rise(b, point)
        keep, gone = (a, b) if rise_a * error_b >= rise_b * error_a else (b, a)
        owner[gone] = keep
        del touching[keep][gone]
        for other, theirs in touching.pop(gone).items():
            if other == keep:
                continue
            del touching[other][gone]
            ours = touching[keep].get(other)
            if ours is None or density[ours] < density[theirs]:
                join(keep, other, theirs)
    left = {(a, b): point for a, row in touching.items() for b, point in row.items() if a < b}
    return _roots(owner), left


def _check_radius(radius: Float[Tensor, "*point"], who: str) -> None:
    if bool((radius <= 0).any()):
        raise DataError(
            f"{who}: {int((radius <= 0).sum())} points have their k-th neighbour at distance 0, where no "
            f"density can be told; keep distinct points only (measures.distinct)"
        )


def _log_radius(neighbours: Neighbours, who: str, at_least: int) -> Float[Tensor, "point neighbour"]:
    if neighbours.k < at_least + 1:
        raise DataError(f"{who}: {neighbours.k} neighbours kept; keep at least {at_least + 1}")
    _check_radius(neighbours.distances[:, at_least - 1], who)
    return neighbours.distances.double().clamp_min(torch.finfo(torch.float64).tiny).log()
