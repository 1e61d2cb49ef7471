"""How far image tokens are from text tokens: cosines of pairs, and clusters that hold one modality only.

NG, section 3: in models trained natively on both, |cos| of image and text tokens stays near 0 and clusters are of one
modality; in models that only write text the two mix in the middle layers. One call measures one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sklearn.metrics import homogeneity_score
from torch import Tensor

from gatelens.errors import DataError
from gatelens.measures.clusters import density_peaks, knn_density
from gatelens.measures.intrinsic_dimension import gride
from gatelens.measures.neighbours import check_one_each, check_points, distinct, nearest

_LEVELS = 1 << 20
"""|cos| is counted in steps of one part in this many: order statistics are right to half a step, 5e-7."""


@dataclass(frozen=True)
class CosineSpread:
    """The distribution of |cos| over pairs of vectors; ``signed_mean`` is the mean of cos itself.

    ``quantiles`` maps a probability q to the order statistic of rank ⌊q (pairs − 1)⌋ (the lower of two medians).
    ``histogram`` counts pairs in equal bins from 0 to 1, each without its upper edge but the last.
    """

    median: float
    quantiles: dict[float, float]
    histogram: Int[Tensor, " bin"]
    mean: float
    signed_mean: float
    pairs: int


def cosine_spread(
    a: Float[Tensor, "n_a feature"],
    b: Float[Tensor, "n_b feature"] | None = None,
    quantiles: Sequence[float] = (0.05, 0.25, 0.75, 0.95),
    bins: int = 64,
    cells: int = 8_000_000,
) -> CosineSpread:
    """``|cos(a_i, b_j)|`` over all pairs, or, without ``b``, over the pairs i < j within ``a``.

    NG's modality gap is the median with ``a`` the image tokens and ``b`` the text tokens of one layer. (Its code takes
    the pairs i > j there too, about half of them; here all count.)

    Args:
        a, b: vectors, none of them zero; without ``b`` pairs are taken within ``a``.
        quantiles: probabilities whose quantiles are given.
        bins: of the histogram.
        cells: how many cosines are held in memory at a time.

    Raises:
        DataError: rows that are zero or not finite, no pair, widths that differ, a quantile outside [0, 1].

    Example:
        >>> image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0]])
        >>> round(gl.measures.cosine_spread(image, text).median, 4)  # the lower of 0.6 and 0.8
        0.6
    """
    _check_vectors(a, b)
    for q in quantiles:
        if not 0 <= q <= 1:
            raise DataError(f"cosine_spread: quantile {q} is outside [0, 1]")
    if not 1 <= bins <= _LEVELS:
        raise DataError(f"cosine_spread: bins={bins} is outside 1..{_LEVELS}")
    left = torch.nn.functional.normalize(a.detach().float(), dim=-1)
    right = left if b is None else torch.nn.functional.normalize(b.detach().float(), dim=-1).to(left.device)
    count = torch.zeros(_LEVELS + 1, dtype=torch.int64, device=left.device)
    histogram = torch.zeros(bins, dtype=torch.int64, device=left.device)
    total, signed = 0.0, 0.0
    for cos in _products(left, right, cells, half=b is None):
        size = cos.abs().clamp_max(1).flatten()
        count += torch.bincount((size * _LEVELS).round().long(), minlength=_LEVELS + 1)
        histogram += torch.bincount((size * bins).long().clamp_max(bins - 1), minlength=bins)
        total += float(size.sum(dtype=torch.float64))
        signed += float(cos.sum(dtype=torch.float64))
    pairs = int(count.sum())
    if not pairs:
        raise DataError("cosine_spread: one vector makes no pair; give at least two")
    below = count.cumsum(0)

    def quantile(q: float) -> float:
        rank = torch.tensor(int(q * (pairs - 1)), device=below.device)
        return int(torch.searchsorted(below, rank, right=True)) / _LEVELS

    return CosineSpread(
        median=quantile(0.5),
        quantiles={float(q): quantile(q) for q in quantiles},
        histogram=histogram.cpu(),
        mean=total / pairs,
        signed_mean=signed / pairs,
        pairs=pairs,
    )


def _products(
    left: Float[Tensor, "n_a feature"], right: Float[Tensor, "n_b feature"], cells: int, half: bool
) -> Iterator[Float[Tensor, "..."]]:
    """The products of all pairs, some rows at a time; of the pairs i < j alone with ``half``."""
    step = max(1, cells // len(right))
    for start in range(0, len(left), step):
        block = left[start : start + step] @ right.T
        if half:
            column = torch.arange(len(right), device=left.device)
            row = torch.arange(start, start + len(block), device=left.device)
            block = block[column > row[:, None]]
        yield block


def _check_vectors(a: Float[Tensor, "n_a feature"], b: Float[Tensor, "n_b feature"] | None) -> None:
    for x in (a,) if b is None else (a, b):
        check_points(x, "cosine_spread", directions=True)
    if b is not None and a.shape[1] != b.shape[1]:
        raise DataError(
            f"cosine_spread: vectors have widths {a.shape[1]} and {b.shape[1]}; compare one layer's"
        )


def homogeneity(classes: Int[Tensor, " point"], clusters: Int[Tensor, " point"]) -> float:
    """``h = 1 − H(C|K) / H(C)``: 1 if every cluster holds one class only, 0 if clusters say nothing of it.

    Rosenberg & Hirschberg, EMNLP-CoNLL 2007, eq. 1; h is 1 where H(C) is 0.

    Args:
        classes: what each point is (C).
        clusters: the cluster each point is in (K).

    Raises:
        DataError: no points, or labels of different length.

    Example:
        >>> image_or_text = torch.tensor([0, 0, 1, 1])
        >>> gl.measures.homogeneity(image_or_text, clusters=torch.tensor([0, 0, 1, 2]))
        1.0
        >>> gl.measures.homogeneity(image_or_text, clusters=torch.tensor([0, 1, 0, 1]))
        0.0
    """
    if classes.ndim != 1 or classes.shape != clusters.shape or not len(classes):
        raise DataError(
            f"homogeneity: classes {tuple(classes.shape)} and clusters {tuple(clusters.shape)} must be one label "
            f"a point, of the same points"
        )
    score = float(homogeneity_score(classes.cpu().numpy(), clusters.cpu().numpy()))
    return round(score, 14)  # clusters of one class each come out at 1 − 1e-16


@dataclass(frozen=True)
class ModalityClusters:
    """Clusters of one layer's image and text tokens, and how far each holds one modality.

    ``labels`` are of the points as given; ``repeats`` counts exact copies, which carry the label of their twin;
    ``dimension`` is the intrinsic dimension used, ``halo`` the share of points in a halo.
    """

    homogeneity: float
    n_clusters: int
    labels: Int[Tensor, " point"]
    dimension: float
    halo: float
    repeats: int


def modality_clusters(
    points: Float[Tensor, "point feature"],
    modality: Int[Tensor, " point"],
    k: int = 16,
    z: float = 1.65,
    maxk: int = 128,
    dimension: float | None = None,
) -> ModalityClusters:
    """Advanced Density Peaks on one layer's tokens, and the homogeneity of its clusters by modality.

    The defaults are NG's: k-NN density with k = 16, Z = 1.65, 128 neighbours by cosine distance, dimension by Gride at
    the ranks 8 and 16 (the one its code picks). Exact copies, common at the first layer, are clustered once and counted
    in full in the homogeneity; NG's code sets their distance to 2e-16 instead.

    Args:
        points: activations of one layer, one row per token.
        modality: of each point, such as 0 for image and 1 for text.
        k: the rank of the neighbour whose distance gives the density, and the size of a neighbourhood.
        z: how many errors a peak must rise above a saddle.
        maxk: neighbours kept of each point.
        dimension: the intrinsic dimension; None is estimated by :func:`gride`.

    Raises:
        DataError: fewer than ``max(k, 16) + 1`` distinct points, or labels of another length.

    Example:
        >>> random = torch.Generator().manual_seed(0)
        >>> image, text = (torch.randn(40, 3, generator=random) + middle for middle in (9, torch.tensor([9, 0, 0])))
        >>> found = gl.measures.modality_clusters(torch.cat([image, text]), torch.arange(80) // 40)
        >>> found.n_clusters, found.homogeneity
        (2, 1.0)
    """
    check_one_each(points, modality, "modality_clusters", "modality")
    kept, place = distinct(points)
    need = k if dimension is not None else max(k, 16)
    if len(kept) <= need:
        raise DataError(
            f"modality_clusters: {len(kept)} distinct points of {len(points)}; k={k} needs at least {need + 1}"
        )
    near = nearest(points[kept.to(points.device)], min(max(maxk, need), len(kept) - 1), metric="cosine")
    if dimension is None:
        dimension = gride(near.distances, 8).value
    log_density, error = knn_density(near, dimension, k)
    peaks = density_peaks(near, log_density, error, k, z)
    labels = peaks.labels[place]
    return ModalityClusters(
        homogeneity=homogeneity(modality, labels),
        n_clusters=peaks.n_clusters,
        labels=labels,
        dimension=dimension,
        halo=float(peaks.halo[place].float().mean()),
        repeats=len(points) - len(kept),
    )
