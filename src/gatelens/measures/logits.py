"""Metrics of the next-token logits, public as ``gl.metrics``.

Each function makes a metric: a function of logits ``Float[batch, pos, d_vocab]`` that gives ``Float[batch]``. It
reads one position, by default the last (−1, as batches are padded on the left). Probabilities and log-probabilities
(natural logarithm, nats) are computed in float32 or wider.

Where :func:`gatelens.sweep` takes examples, a token may also be a word, of which the first token after the prompt is
meant, or a function of the example that gives a word or an id: ``prob("circle")``, ``prob(lambda e: e.answers[0])`` for
questions, ``logit_diff(lambda e: e.label, lambda e: e.meta["other"])``.

>>> right, wrong = model.to_single_token("sunflower"), model.to_single_token("crown")
>>> metric = gl.metrics.logit_diff(right, wrong)
>>> metric(model(inputs)).shape
torch.Size([1])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import GatelensError, whole_number
from gatelens.measures.run_metrics import answer, of_cache, of_texts

Metric: TypeAlias = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]
"""Any function from logits, Float[batch, pos, d_vocab], to one number per example, Float[batch]."""
OfExample: TypeAlias = Callable[[Any], str | int]
TokenIds: TypeAlias = int | str | Sequence[int] | Int[Tensor, " batch"] | OfExample
"""Tokens of a metric: one id for all examples, or one each; over data also a word or a function of the example."""
_Row: TypeAlias = Float[Tensor, "batch d_vocab"]
_Ids: TypeAlias = Int[Tensor, " one_or_batch"]

__all__ = [
    "Metric", "TokenIds", "answer", "entropy", "kl", "log_prob", "logit", "logit_diff", "of_cache", "of_texts", "prob",
    "rank", "similarity", "top1",
]  # fmt: skip


def logit(target: TokenIds, pos: int = -1) -> Metric:
    """The logit of ``target``, one token for all examples or one each.

    Args:
        target: a token id, or one for each example, Int[batch]; over data also a word or a function of the example.
        pos: the position that is read.

    Example:
        >>> metric = gl.metrics.logit(2)
        >>> metric(torch.tensor([[[1.0, 2.0, 3.0]]]))
        tensor([3.])
    """
    return _of_tokens("logit", pos, lambda row, ids: _pick(row, ids), target=target)


def logit_diff(target: TokenIds, base: TokenIds, pos: int = -1) -> Metric:
    """Logit of ``target`` minus logit of ``base``; each one token for all examples or one each.

    Args:
        target, base: a token id each, or one for each example, Int[batch]; over data also a word or a function of the
            example.
        pos: the position that is read.

    Example:
        >>> metric = gl.metrics.logit_diff(2, 0)
        >>> metric(torch.tensor([[[1.0, 2.0, 3.0]]]))
        tensor([2.])
    """

    def read(row: _Row, wanted: _Ids, other: _Ids) -> Float[Tensor, " batch"]:
        return _pick(row, wanted) - _pick(row, other)

    return _of_tokens("logit_diff", pos, read, target=target, base=base)


def log_prob(target: TokenIds, pos: int = -1) -> Metric:
    """Log-probability of ``target`` in nats, at most 0.

    Args:
        target: a token id, or one for each example, Int[batch]; over data also a word or a function of the example.
        pos: the position that is read.

    Example:
        >>> metric = gl.metrics.log_prob(2)
        >>> metric(torch.zeros(1, 3, 4))  # −ln 4
        tensor([-1.3863])
    """
    return _of_tokens("log_prob", pos, lambda row, ids: _pick(row.log_softmax(dim=-1), ids), target=target)


def prob(target: TokenIds, pos: int = -1) -> Metric:
    """Probability of ``target``, 0 to 1.

    Args:
        target: a token id, or one for each example, Int[batch]; over data also a word or a function of the example.
        pos: the position that is read.

    Example:
        >>> metric = gl.metrics.prob(2)
        >>> metric(torch.zeros(1, 3, 4))
        tensor([0.2500])
    """
    return _of_tokens("prob", pos, lambda row, ids: _pick(row.softmax(dim=-1), ids), target=target)


def rank(target: TokenIds, pos: int = -1) -> Metric:
    """How many tokens have a higher logit than ``target``: 0 is the top.

    Args:
        target: a token id, or one for each example, Int[batch]; over data also a word or a function of the example.
        pos: the position that is read.

    Example:
        >>> metric = gl.metrics.rank(1)
        >>> metric(torch.tensor([[[1.0, 2.0, 3.0]]]))  # 0 is the top
        tensor([1.])
    """
    return _of_tokens("rank", pos, lambda row, ids: _rank(row, ids), target=target)


def top1(target: TokenIds, pos: int = -1) -> Metric:
    """1 where ``target`` is the most likely token, else 0 (a tie counts as 1); its mean is the accuracy.

    Args:
        target: a token id, or one for each example, Int[batch]; over data also a word or a function of the example.
        pos: the position that is read.

    Example:
        >>> metric = gl.metrics.top1(2)
        >>> metric(torch.tensor([[[1.0, 2.0, 3.0]]]))
        tensor([1.])
    """
    return _of_tokens("top1", pos, lambda row, ids: (_rank(row, ids) == 0).to(row.dtype), target=target)


def entropy(pos: int = -1) -> Metric:
    """Entropy of the next-token distribution in nats, 0 to ln(d_vocab).

    Args:
        pos: the position that is read.

    Example:
        >>> metric = gl.metrics.entropy()
        >>> metric(torch.zeros(2, 1, 4))  # ln 4
        tensor([1.3863, 1.3863])
    """
    return _metric("entropy", pos, _entropy)


def kl(reference: Float[Tensor, "batch pos d_vocab"], pos: int = -1) -> Metric:
    """KL(reference ‖ run) of the next-token distributions in nats: how far a run moved from it.

    Args:
        reference: logits of another run of the same prompts.
        pos: the position that is read.

    Example:
        >>> before, after = torch.zeros(1, 3, 4), torch.eye(4)[None, :3]
        >>> gl.metrics.kl(before)(after) > 0, gl.metrics.kl(before)(before)
        (tensor([True]), tensor([0.]))
    """
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
    """Σ_i min(p_i, q_i) of the run's and the reference's next-token distributions: 1 equal, 0 disjoint (NG).

    Args:
        reference: logits of another run of the same prompts.
        pos: the position that is read.

    Example:
        >>> before, after = torch.zeros(1, 3, 4), torch.eye(4)[None, :3]
        >>> gl.metrics.similarity(before)(after) < 1, gl.metrics.similarity(before)(before)
        (tensor([True]), tensor([1.]))
    """
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


def _of_tokens(
    name: str, pos: int, read: Callable[..., Float[Tensor, " batch"]], **tokens: TokenIds
) -> Metric:
    """The metric that reads the logits of one position at some tokens.

    Where a token is a word or a function of the example, the metric has ``bind(examples, token_id)``, which gives the
    metric of these examples; ``token_id(example, word)`` is the first token of a word after the example's prompt.
    """
    given: dict[str, Any] = {}
    for word, value in tokens.items():
        of_example = _always(value) if isinstance(value, str) else value
        given[word] = of_example if callable(of_example) else _ids(value, word)
    if not any(callable(value) for value in given.values()):
        return _metric(name, pos, lambda row: read(row, *given.values()))

    def bind(examples: Sequence[Any], token_id: Callable[[Any, str], int]) -> Metric:
        ids = {}
        for word, value in given.items():
            named = [value(e) for e in examples] if callable(value) else None
            ids[word] = value if named is None else _named_ids(word, examples, named, token_id)
        return _of_tokens(name, pos, read, **ids)

    def unbound(_: Any) -> Any:
        words = [value for value in tokens.values() if isinstance(value, str)]
        or_id = f", or a token id for {words[0]!r:.60}, as of model.to_single_token" if words else ""
        raise GatelensError(
            f"{name} asks each example for its tokens: give gl.sweep a data set or a list of examples{or_id}"
        )

    unbound.__name__ = name
    unbound.bind, unbound.last_only = bind, pos == -1  # type: ignore[attr-defined]
    return unbound


def _always(word: str) -> OfExample:
    return lambda example: word


def _named_ids(
    word: str, examples: Sequence[Any], named: Sequence[Any], token_id: Callable[[Any, str], int]
) -> list[int]:
    for example, one in zip(examples, named, strict=True):
        if not isinstance(one, str) and whole_number(one) is None:
            raise GatelensError(
                f"{word} of example {example.id!r} is {one!r:.60}: give a function of the example whose result is a "
                "word or a token id"
            )
    pairs = zip(examples, named, strict=True)
    return [token_id(example, one) if isinstance(one, str) else int(one) for example, one in pairs]


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
            f"pos={pos!r:.60} is not one of the {n_pos} positions of the {word}: give a whole number"
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
        raise GatelensError(f"{word}={given}: give a token id, or one id for each example")
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
