"""Metrics of the next-token logits, public as ``gl.metrics``.

Each function makes a metric: a function of logits ``Float[batch, pos, d_vocab]`` that gives
``Float[batch]``. It reads one position, the last of the prompt unless told otherwise; since batches are
padded on the left that is −1 for every example. Probabilities and log-probabilities (natural logarithm,
nats) are computed in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import GatelensError

Metric: TypeAlias = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]
TokenIds: TypeAlias = int | Sequence[int] | Int[Tensor, " batch"]

__all__ = ["Metric", "TokenIds", "entropy", "kl", "log_prob", "logit", "logit_diff", "prob", "rank", "top1"]


def logit(target: TokenIds, pos: int = -1) -> Metric:
    """The logit of ``target``, one token for all examples or one each."""
    ids = _ids(target, "target")
    return _named("logit", pos, lambda logits: _pick(_at(logits, pos), ids))


def logit_diff(target: TokenIds, base: TokenIds, pos: int = -1) -> Metric:
    """Logit of ``target`` minus logit of ``base``; each one token for all examples or one each."""
    wanted, other = _ids(target, "target"), _ids(base, "base")

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        row = _at(logits, pos)
        return _pick(row, wanted) - _pick(row, other)

    return _named("logit_diff", pos, metric)


def log_prob(target: TokenIds, pos: int = -1) -> Metric:
    """Log-probability of ``target`` in nats, at most 0."""
    ids = _ids(target, "target")
    return _named("log_prob", pos, lambda logits: _pick(_at(logits, pos).log_softmax(dim=-1), ids))


def prob(target: TokenIds, pos: int = -1) -> Metric:
    """Probability of ``target``, 0 to 1."""
    ids = _ids(target, "target")
    return _named("prob", pos, lambda logits: _pick(_at(logits, pos).softmax(dim=-1), ids))


def rank(target: TokenIds, pos: int = -1) -> Metric:
    """How many tokens have a higher logit than ``target``: 0 is the top."""
    ids = _ids(target, "target")

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        row = _at(logits, pos)
        return (row > _pick(row, ids)[:, None]).sum(dim=-1).to(row.dtype)

    return _named("rank", pos, metric)


def top1(target: TokenIds, pos: int = -1) -> Metric:
    """1 where ``target`` is the most likely token, else 0 (a tie counts as 1); its mean is the accuracy."""
    place = rank(target, pos)
    return _named("top1", pos, lambda logits: (place(logits) == 0).to(_at(logits, pos).dtype))


def entropy(pos: int = -1) -> Metric:
    """Entropy of the next-token distribution in nats, 0 to ln(d_vocab)."""
    return _named(
        "entropy", pos, lambda logits: torch.special.entr(_at(logits, pos).softmax(dim=-1)).sum(dim=-1)
    )


def kl(reference: Float[Tensor, "batch pos d_vocab"], pos: int = -1) -> Metric:
    """KL(reference ‖ run) of the next-token distributions in nats: how far a run moved from it."""
    before = _at(reference, pos).detach().log_softmax(dim=-1)

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        after = _at(logits, pos).log_softmax(dim=-1)
        expected = before.to(after)
        # Some families give tokens they never write a logit of -inf: those count nothing.
        return (expected.exp() * (expected - after)).where(expected.exp() > 0, 0.0).sum(dim=-1)

    return _named("kl", pos, metric)


def _at(logits: Float[Tensor, "batch pos d_vocab"], pos: int) -> Float[Tensor, "batch d_vocab"]:
    if logits.ndim != 3:
        raise GatelensError(
            f"a metric takes logits of shape (batch, pos, d_vocab), not {tuple(logits.shape)}"
        )
    row = logits[:, pos]
    return row if row.dtype == torch.float64 else row.float()


def _ids(value: TokenIds, word: str) -> Int[Tensor, " one_or_batch"]:
    ids = torch.as_tensor(value).detach().cpu()
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim > 1 or ids.numel() == 0:
        raise GatelensError(f"{word}={value!r}: give a token id, or one id for each example")
    return ids.reshape(-1).long()


def _pick(row: Float[Tensor, "batch d_vocab"], ids: Int[Tensor, " one_or_batch"]) -> Float[Tensor, " batch"]:
    batch, vocabulary = row.shape
    if len(ids) not in (1, batch):
        raise GatelensError(f"{len(ids)} token ids for a batch of {batch}; give one, or one for each example")
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise GatelensError(f"token ids {ids.tolist()} are not all in the vocabulary of {vocabulary}")
    return row.gather(-1, ids.to(row.device).expand(batch)[:, None])[:, 0]


def _named(name: str, pos: int, metric: Metric) -> Metric:
    metric.__name__ = name  # the label of curves and tables
    metric.last_only = pos == -1  # type: ignore[attr-defined]  # the engine then spares the other rows
    return metric
