"""How alike two distributions, or two groups of activations, are."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import DataError


def distribution_overlap(
    p: Float[Tensor, "*batch d_vocab"], q: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """Σ_i min(p_i, q_i) of two probability distributions (NG, activation patching): 1 equal, 0 disjoint.

    Equals 1 − total variation distance. Takes probabilities, not logits.

    Raises:
        DataError: rows that do not sum to 1 (logits were passed).
    """
    for name, x in (("p", p), ("q", q)):
        total = x.float().sum(-1)
        if x.numel() and (
            bool((x < 0).any()) or not torch.allclose(total, torch.ones_like(total), atol=1e-2)
        ):
            raise DataError(
                f"distribution_overlap: {name} is not a probability distribution; pass softmax(logits)"
            )
    return torch.minimum(p, q).sum(-1)


def neighbourhood_overlap(
    x: Float[Tensor, "sample feature"], labels: Int[Tensor, " sample"], k: int = 30
) -> Float[Tensor, " sample"]:
    """Share of the ``k`` nearest neighbours (Euclidean, self excluded) with the same label (NG's χ is the
    mean).

    Raises:
        DataError: fewer than ``k + 1`` samples.
    """
    n = x.shape[0]
    if n <= k:
        raise DataError(f"neighbourhood_overlap: k={k} neighbours need at least {k + 1} samples, got {n}")
    distance = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(float("inf"))
    nearest = distance.topk(k, largest=False).indices
    labels = labels.to(nearest.device)
    return (labels[nearest] == labels[:, None]).float().mean(-1)


def median_cosine(a: Float[Tensor, "n_a feature"], b: Float[Tensor, "n_b feature"]) -> Float[Tensor, ""]:
    """Median over all pairs of |cos(a_i, b_j)|: NG's measure of the gap between image and text tokens."""
    unit = torch.nn.functional.normalize
    return (unit(a.float(), dim=-1) @ unit(b.float(), dim=-1).T).abs().median()
