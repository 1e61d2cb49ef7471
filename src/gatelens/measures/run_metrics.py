"""Metrics of more than the next token: of what a model writes, or of activations; public in ``gl.metrics``.

A metric says what it ``reads``: logits where it says nothing, ``"texts"`` or ``"cache"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.errors import GatelensError, shown, whole_number
from gatelens.measures.answers import vqa_accuracy


@dataclass(frozen=True)
class TextMetric:
    """What :func:`of_texts` and :func:`answer` return: a function of the texts of a batch."""

    score: Callable[[str, Any], float]
    max_new_tokens: int
    examples: tuple[Any, ...] | None = None  # those of the batch, where a sweep has examples

    reads: ClassVar[str] = "texts"

    def bind(self, examples: Sequence[Any], token_id: object = None) -> TextMetric:
        """The metric of these examples."""
        return replace(self, examples=tuple(examples))

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, " batch"]:
        examples = self.examples or (None,) * len(texts)
        scores = [self.score(text, example) for text, example in zip(texts, examples, strict=True)]
        for score in scores:
            if not isinstance(score, int | float):
                raise GatelensError(f"the score of a text is {shown(score)}: give a number, True or False")
        return torch.tensor([float(score) for score in scores], dtype=torch.float64)


@dataclass(frozen=True)
class CacheMetric:
    """What :func:`of_cache` returns: a function of the activations of a batch."""

    read: Callable[[Any], Float[Tensor, " batch"]]
    names: tuple[str, ...]

    reads: ClassVar[str] = "cache"

    def __call__(self, cache: Any) -> Float[Tensor, " batch"]:
        return self.read(cache)


def of_texts(score: Callable[[str, Any], float], max_new_tokens: int = 20) -> TextMetric:
    """A metric of what the model writes (greedily, under the interventions).

    Args:
        score: ``score(text, example)`` gives a number, as in ``lambda text, example: "dog" in text``; the example is
            None for a prepared batch.
        max_new_tokens: how long the texts are at most.

    Example:
        >>> words = gl.metrics.of_texts(lambda text, example: len(text.split()), max_new_tokens=3)
        >>> gl.sweep(model, [scene], {}, words, progress=False)["value"].tolist()
        [1.0]
    """
    if not callable(score):
        raise GatelensError(f"score is {shown(score)}: give a function of a text and its example")
    number = whole_number(max_new_tokens)
    if number is None or number < 1:
        raise GatelensError(f"max_new_tokens={shown(max_new_tokens)}: give a whole number, 1 or more")
    return TextMetric(score, number)


def answer(max_new_tokens: int = 8) -> TextMetric:
    """Whether the model writes the example's answer, 0 to 1, as ``measures.vqa_accuracy`` counts it.

    Example:
        >>> gl.sweep(model, [scene], {}, gl.metrics.answer(), progress=False)["value"].tolist()
        [1.0]
    """
    return of_texts(_is_answer, max_new_tokens)


def of_cache(read: Callable[[Any], Float[Tensor, " batch"]], names: str | Iterable[str]) -> CacheMetric:
    """A metric of activations: each point is then a whole pass of its own, with nothing shared.

    Args:
        read: from the ``ActivationCache`` of a run to Float[batch]; ``cache.tokens`` says who is where, as in
            ``lambda cache: cache["blocks.3.hook_resid_pre"][:, -1].norm(dim=-1)``.
        names: the hook points it reads.

    Example:
        >>> name = "blocks.3.hook_resid_post"
        >>> norm = gl.metrics.of_cache(lambda cache: cache[name][:, -1].norm(dim=-1), [name])
        >>> gl.sweep(model, inputs, {}, norm, progress=False).columns.tolist()
        ['example', 'value']
    """
    if not callable(read):
        raise GatelensError(f"read is {shown(read)}: give a function of a cache")
    wanted = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else ()
    if not wanted or not all(isinstance(name, str) for name in wanted):
        raise GatelensError(f"names={shown(names)}: give the names of hook points, 'blocks.3.hook_resid_pre'")
    return CacheMetric(read, wanted)


def _is_answer(text: str, example: Any) -> float:
    if example is None:
        raise GatelensError("gl.metrics.answer compares with the example's answers: give gl.sweep examples")
    return vqa_accuracy(text, example.answers)
