"""Intrinsic dimension from ratios of neighbour distances: 2NN and Gride.

Both assume a density that is constant over the neighbours used; then the ratio of two neighbour distances depends on
the dimension alone. The functions take ``Neighbours.distances``.

- 2NN: Facco, d'Errico, Rodriguez, Laio, Scientific Reports 7 (2017) 12140.
- Gride: Denti, Doimo, Laio, Mira, Scientific Reports 12 (2022) 20005.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from gatelens.errors import DataError, shown
from gatelens.measures.neighbours import Neighbours


@dataclass(frozen=True)
class Dimension:
    """An intrinsic dimension, its standard error, and the mean distance at which it was read."""

    value: float
    error: float
    scale: float


def two_nn(distances: Float[Tensor, "point neighbour"], keep: float = 0.9) -> Dimension:
    """2NN from μ = r_2 / r_1, of which F(μ) = 1 − μ^(−d) (Facco et al. 2017, eq. 4–5).

    ``keep < 1`` is the paper's estimate: the slope through the origin of −log(1 − i/N) against the i-th smallest log μ,
    over the ``keep`` smallest. ``keep = 1`` is the unbiased (N − 1) / Σ log μ; only then is there an error, d / √N.

    Args:
        distances: of :func:`nearest`, nearest first; at least two of each point.
        keep: the share of points, those of smallest μ, that the line is fitted to.

    Raises:
        DataError: ``keep`` outside (0, 1], fewer than two neighbours, or points that coincide.

    Example:
        >>> square = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> dimension = gl.measures.two_nn(gl.measures.nearest(square, k=2).distances)
        >>> round(dimension.value)
        2
    """
    if not 0 < keep <= 1:
        raise DataError(f"two_nn: keep={keep} is outside (0, 1]; 0.9 drops the highest tenth of the ratios")
    ratio = _log_ratio(distances, 1, "two_nn")
    n = len(ratio)
    scale = float(distances[:, :2].double().mean())
    if keep == 1:
        value = (n - 1) / float(ratio.sum())
        return Dimension(value, value / n**0.5, scale)
    count = int(n * keep)
    if count < 1:
        raise DataError(f"two_nn: keep={keep} of {n} points leaves none; give more points")
    x = ratio.sort().values[:count]
    y = -torch.log1p(-torch.arange(1, count + 1, dtype=torch.float64) / n)
    square = float(x @ x)
    if square == 0:
        raise DataError("two_nn: all first two neighbours are equally far; the ratios say nothing")
    return Dimension(float(x @ y) / square, float("nan"), scale)


def gride(distances: Float[Tensor, "point neighbour"], k: int) -> Dimension:
    """Gride at the ranks ``k`` and ``2k``: maximum likelihood of d given μ = r_2k / r_k (Denti et al. 2022).

    The density of μ is ``d (μ^d − 1)^(k−1) / (μ^((2k−1)d + 1) B(k, k))`` (their eq. 3 with n2 = 2 n1). The
    log-likelihood is concave in d, with the derivative ``(N − 1)/d + Σ log μ · [(k − 1) / (1 − μ^(−d)) − (2k − 1)]``;
    N − 1 stands for N, which at k = 1 gives 2NN's unbiased estimate. The error is one over the root of the observed
    information.

    Args:
        distances: of :func:`nearest`, nearest first; at least ``2k`` of each point.
        k: the lower rank.

    Raises:
        DataError: fewer than 2k neighbours, or points that coincide.

    Example:
        >>> square = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> dimension = gl.measures.gride(gl.measures.nearest(square, k=16).distances, k=8)
        >>> round(dimension.value)
        2
    """
    if k < 1:
        raise DataError(f"gride: k={k} is not a rank; the first neighbour has k=1")
    ratio = _log_ratio(distances, k, "gride")
    n, total = len(ratio), float(ratio.sum())
    if total <= 0:
        raise DataError(
            f"gride: neighbours {k} and {2 * k} are equally far at every point; the ratios say nothing"
        )
    if n < 2:
        raise DataError("gride: one point has no dimension; give more points")

    def slope(d: float) -> float:
        return (n - 1) / d + (k - 1) * float(_over_rise(ratio, d).sum()) - (2 * k - 1) * total

    low = (n - 1) / (2 * (2 * k - 1) * total)  # there the first term alone outweighs the last
    high = 2 * low
    while slope(high) > 0:
        high *= 2
    value = float(brentq(slope, low, high, xtol=1e-14, rtol=4 * np.finfo(float).eps))
    half = value * ratio / 2
    # (log μ)² μ^(−d) / (1 − μ^(−d))² is (log μ / (2 sinh(d log μ / 2)))², which tends to 1/d² at μ = 1.
    curve = torch.where(half > 1e-6, half / torch.sinh(half.clamp(1e-6, 700)), torch.ones_like(half)) / value
    information = n / value**2 + (k - 1) * float(curve.square().sum())
    return Dimension(value, information**-0.5, float(distances[:, [k - 1, 2 * k - 1]].double().mean()))


def gride_by_scale(distances: Float[Tensor, "point neighbour"]) -> dict[int, Dimension]:
    """Gride at every pair of ranks (k, 2k), k = 1, 2, 4…, that the neighbours allow: the key is k."""
    _check_matrix(distances, "gride_by_scale")
    doublings = distances.shape[1].bit_length() - 1  # 2^doublings neighbours or more
    return {2**i: gride(distances, 2**i) for i in range(doublings)}


def _over_rise(ratio: Float[Tensor, " point"], d: float) -> Float[Tensor, " point"]:
    """log μ / (1 − μ^(−d)), which tends to 1/d as μ tends to 1."""
    some = ratio > 0
    safe = torch.where(some, ratio, torch.ones_like(ratio))
    return torch.where(some, safe / -torch.expm1(-d * safe), torch.full_like(ratio, 1 / d))


def _check_matrix(distances: Any, who: str) -> None:
    if isinstance(distances, Neighbours):
        raise DataError(f"{who}: got Neighbours; give their distances, nearest(x, k).distances")
    if not isinstance(distances, Tensor) or distances.ndim != 2:
        raise DataError(
            f"{who}: got {shown(distances)}; give distances [point, neighbour], nearest(x, k).distances"
        )


def _log_ratio(distances: Float[Tensor, "point neighbour"], k: int, who: str) -> Float[Tensor, " point"]:
    """log(r_2k / r_k) of every point."""
    _check_matrix(distances, who)
    if distances.shape[1] < 2 * k:
        raise DataError(
            f"{who}: ranks {k} and {2 * k} need {2 * k} neighbours, got shape {tuple(distances.shape)}"
        )
    if bool((distances < 0).any()) or bool((distances.diff(dim=1) < 0).any()):
        raise DataError(
            f"{who}: these are not distances, nearest first; of activations give nearest(x, k={2 * k}).distances"
        )
    near, far = distances[:, k - 1].double(), distances[:, 2 * k - 1].double()
    if bool((near <= 0).any()):
        count = int((near <= 0).sum())
        raise DataError(
            f"{who}: {count} of {len(near)} points have neighbour {k} at distance 0; keep distinct points only"
        )
    return (far / near).log()
