"""How similar two distributions, or two groups of activations, are."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import DataError
from gatelens.measures.neighbours import Metric, check_one_each, nearest


def distribution_overlap(
    p: Float[Tensor, "*batch d_vocab"], q: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """Σ_i min(p_i, q_i) of two probability distributions (NG, activation patching): 1 equal, 0 disjoint.

    Equals 1 − total variation distance.

    Args:
        p, q: probabilities, each row summing to 1.

    Raises:
        DataError: rows that do not sum to 1 (logits were passed).

    Example:
        >>> gl.measures.distribution_overlap(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.5, 0.5]))
        tensor(0.5000)
    """
    for name, x in (("p", p), ("q", q)):
        total = x.float().sum(-1)
        if bool((x < 0).any()) or not torch.allclose(total, torch.ones_like(total), atol=1e-2):
            what = f"{name} is not a probability distribution"
            raise DataError(f"distribution_overlap: {what}; pass softmax(logits)")
    return torch.minimum(p, q).sum(-1)


def neighbourhood_overlap(
    x: Float[Tensor, "sample feature"], labels: Int[Tensor, " sample"], k: int = 30
) -> Float[Tensor, " sample"]:
    """Share of the ``k`` nearest neighbours (Euclidean, self excluded) with the same label.

    NG's χ^{l,gt} is the mean over samples: ``(1/n) Σ_i (1/k) Σ_{j in N_k(i)} [y_j = y_i]``; see
    :func:`overlap_by_chance`.

    Args:
        x: one representation per sample.
        labels: what each sample is.
        k: how many neighbours.

    Raises:
        DataError: fewer than ``k + 1`` samples, or labels of another length.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
        >>> gl.measures.neighbourhood_overlap(x, torch.tensor([0, 0, 0, 1]), k=1)  # the last two differ
        tensor([1., 1., 0., 0.])
    """
    if x.shape[0] <= k:
        raise DataError(
            f"neighbourhood_overlap: k={k} neighbours need at least {k + 1} samples, got {x.shape[0]}"
        )
    check_one_each(x, labels, "neighbourhood_overlap", each="sample")
    labels = labels.cpu()
    return (labels[nearest(x, k).indices] == labels[:, None]).float().mean(-1)


def overlap_by_chance(labels: Int[Tensor, " sample"]) -> float:
    """The χ^{l,gt} expected when neighbours are drawn at random: ``Σ_c n_c (n_c − 1) / (n (n − 1))``."""
    count = labels.cpu().unique(return_counts=True)[1].double()
    n = float(count.sum())
    if n < 2:
        raise DataError("overlap_by_chance: one sample has no neighbour; give at least two")
    return float((count * (count - 1)).sum() / (n * (n - 1)))


def representation_overlap(
    a: Float[Tensor, "sample feature_a"],
    b: Float[Tensor, "sample feature_b"],
    k: int = 30,
    metric: Metric = "euclidean",
) -> Float[Tensor, " sample"]:
    """Share of each sample's ``k`` nearest neighbours that two representations of it have in common.

    χ(a, b) is the mean over samples: ``(1/n) Σ_i |N_k^a(i) ∩ N_k^b(i)| / k`` (Doimo, Glielmo, Ansuini, Laio,
    NeurIPS 2020). Unrelated representations give k / (n − 1).

    Args:
        a, b: two representations of the same samples, in the same order.
        k: how many neighbours.
        metric: ``"euclidean"`` or ``"cosine"``.

    Raises:
        DataError: a different number of samples, or fewer than ``k + 1``.

    Example:
        >>> a, b = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [4.0], [5.0]])
        >>> gl.measures.representation_overlap(a, b, k=1)  # the middle one goes from the first to the last
        tensor([1., 0., 1.])
    """
    if a.shape[0] != b.shape[0]:
        raise DataError(
            f"representation_overlap: {a.shape[0]} and {b.shape[0]} samples; give the same ones in one order"
        )
    first, second = nearest(a, k, metric).indices, nearest(b, k, metric).indices
    both, _ = torch.cat([first, second], dim=1).sort(-1)
    return (both[:, 1:] == both[:, :-1]).sum(-1).float() / k
