"""Metrics of the next-token logits, public as ``gl.metrics``.

Each function makes a metric: a function of logits ``Float[batch, pos, d_vocab]`` that gives ``Float[batch]``. It
reads one position, by default the last (−1, as batches are padded on the left). Probabilities and log-probabilities
(natural logarithm, nats) are computed in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import GatelensError, whole_number

Metric: TypeAlias = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]
TokenIds: TypeAlias = int | Sequence[int] | Int[Tensor, " batch"]
_Row: TypeAlias = Float[Tensor, "batch d_vocab"]

__all__ = [
    "Metric", "TokenIds", "entropy", "kl", "log_prob", "logit", "logit_diff", "prob", "rank", "similarity", "top1",
]  # fmt: skip


def logit(target: TokenIds, pos: int = -1) -> Metric:
    """The logit of ``target``, one token for all examples or one each."""
    ids = _ids(target, "target")
    return _metric("logit", pos, lambda row: _pick(row, ids))


def logit_diff(target: TokenIds, base: TokenIds, pos: int = -1) -> Metric:
    """Logit of ``target`` minus logit of ``base``; each one token for all examples or one each."""
    wanted, other = _ids(target, "target"), _ids(base, "base")
    return _metric("logit_diff", pos, lambda row: _pick(row, wanted) - _pick(row, other))


def log_prob(target: TokenIds, pos: int = -1) -> Metric:
    """Log-probability of ``target`` in nats, at most 0."""
    ids = _ids(target, "target")
    return _metric("log_prob", pos, lambda row: _pick(row.log_softmax(dim=-1), ids))


def prob(target: TokenIds, pos: int = -1) -> Metric:
    """Probability of ``target``, 0 to 1."""
    ids = _ids(target, "target")
    return _metric("prob", pos, lambda row: _pick(row.softmax(dim=-1), ids))


def rank(target: TokenIds, pos: int = -1) -> Metric:
    """How many tokens have a higher logit than ``target``: 0 is the top."""
    ids = _ids(target, "target")
    return _metric("rank", pos, lambda row: _rank(row, ids))


def top1(target: TokenIds, pos: int = -1) -> Metric:
    """1 where ``target`` is the most likely token, else 0 (a tie counts as 1); its mean is the accuracy."""
    ids = _ids(target, "target")
    return _metric("top1", pos, lambda row: (_rank(row, ids) == 0).to(row.dtype))


def entropy(pos: int = -1) -> Metric:
    """Entropy of the next-token distribution in nats, 0 to ln(d_vocab)."""
    return _metric("entropy", pos, _entropy)


def kl(reference: Float[Tensor, "batch pos d_vocab"], pos: int = -1) -> Metric:
    """KL(reference ‖ run) of the next-token distributions in nats: how far a run moved from it."""
    before = _at(reference, pos, "reference").detach().log_softmax(dim=-1)

    def read(row: _Row) -> Float[Tensor, " batch"]:
        _check_comparable(before, row)
        after = row.log_softmax(dim=-1)
        expected = before.to(after)
        # Some families give tokens they never write a logit of -inf: those count nothing.
        return (expected.exp() * (expected - after)).where(expected.exp() > 0, 0.0).sum(dim=-1)

    return _metric("kl", pos, read)


def _entropy(row: _Row) -> Float[Tensor, " batch"]:
    # tokens that cannot be written, of a logit of -inf or the lowest number, count nothing, in the gradient too
    log_p = row.log_softmax(dim=-1).clamp(min=torch.finfo(row.dtype).min)
    return -(log_p.exp() * log_p).sum(dim=-1)


def similarity(reference: Float[Tensor, "batch pos d_vocab"], pos: int = -1) -> Metric:
    """Σ_i min(p_i, q_i) of the run's and the reference's next-token distributions: 1 equal, 0 disjoint (NG)."""
    expected = _at(reference, pos, "reference").detach().softmax(dim=-1)

    def read(row: _Row) -> Float[Tensor, " batch"]:
        _check_comparable(expected, row)
        return torch.minimum(expected.to(row), row.softmax(dim=-1)).sum(dim=-1)

    return _metric("similarity", pos, read)


def _check_comparable(reference: _Row, row: _Row) -> None:
    if reference.shape[-1] != row.shape[-1] or len(reference) not in (1, len(row)):
        raise GatelensError(
            f"the reference at one position has shape {tuple(reference.shape)}, the logits {tuple(row.shape)}: give "
            "logits of the same prompts, or of one, in the same model"
        )


def _metric(name: str, pos: int, read: Callable[[_Row], Float[Tensor, " batch"]]) -> Metric:
    """The metric that reads the logits of one position."""
    if whole_number(pos) is None:
        raise GatelensError(f"pos={pos!r:.60}: give one position, a whole number; -1 is the last")

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        return read(_at(logits, pos))

    metric.__name__ = name  # the label of curves and tables
    metric.last_only = pos == -1  # type: ignore[attr-defined]  # the engine then spares the other rows
    return metric


def _at(logits: Float[Tensor, "batch pos d_vocab"], pos: int, word: str = "logits") -> _Row:
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise GatelensError(f"a metric takes {word} of shape (batch, pos, d_vocab), not {given}")
    n_pos = logits.shape[1]
    if whole_number(pos) is None or not -n_pos <= pos < n_pos:
        raise GatelensError(
            f"pos={pos!r:.60} is none of the {n_pos} positions of the {word}: give a whole number"
        )
    row = logits[:, pos]
    return row if row.dtype == torch.float64 else row.float()


def _ids(value: TokenIds, word: str) -> Int[Tensor, " one_or_batch"]:
    try:
        ids = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        ids = torch.empty(0)  # refused below
    if (
        ids.dtype == torch.bool
        or ids.is_floating_point()
        or ids.is_complex()
        or ids.ndim > 1
        or not len(ids.view(-1))
    ):
        given = " ".join(f"{value!r:.60}".split())
        word_for = ", e.g. model.to_single_token('cat')" if isinstance(value, str) else ""
        raise GatelensError(f"{word}={given}: give a token id{word_for}, or one id for each example")
    return ids.reshape(-1).long()


def _rank(row: _Row, ids: Int[Tensor, " one_or_batch"]) -> Float[Tensor, " batch"]:
    return (row > _pick(row, ids)[:, None]).sum(dim=-1).to(row.dtype)


def _pick(row: _Row, ids: Int[Tensor, " one_or_batch"]) -> Float[Tensor, " batch"]:
    batch, vocabulary = row.shape
    if len(ids) not in (1, batch):
        raise GatelensError(f"{len(ids)} token ids for a batch of {batch}; give one, or one for each example")
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise GatelensError(f"token ids {ids.tolist()} are not all in the vocabulary of {vocabulary}")
    return row.gather(-1, ids.to(row.device).expand(batch)[:, None])[:, 0]
