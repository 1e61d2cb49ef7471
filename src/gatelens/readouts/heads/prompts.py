"""The prompts of a table of heads: examples with what is right and wrong for each, in batches of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from gatelens.data import Example, Pair, load
from gatelens.engine import look
from gatelens.errors import DataError, InputError, shown
from gatelens.examples import Labels, auto_batch_size, draw, of_one_length, prepare_numbered
from gatelens.inputs import VLMInputs
from gatelens.interventions.base import select
from gatelens.measures.heads import QueryMeans
from gatelens.measures.logits import Metric, logit, logit_diff
from gatelens.model import HookedVLM
from gatelens.tokens import SelectorLike


@dataclass(frozen=True)
class Asked:
    """An example, the token that is right, and one that is wrong; None where all answers begin the same."""

    example: Example
    right: int
    wrong: int | None


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one length.

    Attributes:
        numbers: of the examples among all.
        queries: selector of the rows whose attention is looked at.
    """

    model: HookedVLM
    asked: Sequence[Asked]
    numbers: Sequence[int]
    inputs: VLMInputs
    queries: SelectorLike

    @property
    def shape(self) -> tuple[int, int, int]:
        """Examples, layers, heads."""
        return len(self.asked), int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)

    def mask(self, selector: SelectorLike) -> Bool[Tensor, "batch pos"]:
        return select(self.inputs.tokens, selector, f"heads_table({selector!r})")

    def mask_in_all(self, selector: SelectorLike, word: str) -> Bool[Tensor, "batch pos"]:
        """The positions a selector names, some in every example; ``word`` is its argument's name."""
        mask = self.mask(selector)
        if not bool(mask.any(1).all()):
            example = self.asked[int((~mask.any(1)).nonzero()[0])].example
            raise InputError(
                f"{word}={selector!r} selects no position in example {example.id!r}: name some that all have"
            )
        return mask

    @property
    def target(self) -> Any:
        """For :func:`gatelens.attribute`: right tokens, or a pair of right and wrong ones."""
        right = [one.right for one in self.asked]
        wrong = [one.wrong for one in self.asked if one.wrong is not None]
        return (right, wrong) if wrong else right

    @property
    def metric(self) -> Metric:
        """Logit of the right token less that of the wrong one, where there is one."""
        return logit_diff(*self.target) if isinstance(self.target, tuple) else logit(self.target)

    @cached_property
    def attention(self) -> QueryMeans:
        """The attention of the query rows."""
        means = QueryMeans(self.mask_in_all(self.queries, "queries"))
        look(self.model, self.inputs, self.queries, means)
        return means


def in_parts(model: HookedVLM, asked: Sequence[Asked]) -> list[list[int]]:
    """The numbers of the examples of each batch: prompts of one length, none padded."""
    examples = [one.example for one in asked]
    return of_one_length(model, examples, auto_batch_size(model, examples[0]))


def batch_of(
    model: HookedVLM, asked: Sequence[Asked], numbers: Sequence[int], queries: SelectorLike
) -> Batch:
    """The batch of the examples with these numbers."""
    some = [asked[i] for i in numbers]
    inputs = prepare_numbered(model, [one.example for one in some], numbers)
    return Batch(model, some, numbers, inputs, queries)


def asked_of(model: HookedVLM, data: Any, task: str, n: int, seed: int) -> list[Asked]:
    """What the model is asked, from a data set, its name or folder, a list of examples, or pairs.

    The wrong token of an example is the answer of the next one that begins with another token; of a pair that of the
    corrupt picture.

    Raises:
        DataError: there are no examples.
    """
    labels = Labels(model)
    if isinstance(data, str | Path):
        data = load(data)
    if hasattr(data, "examples"):
        given: list[Any] = draw(data, task, n, seed)
        if not given:
            raise DataError(f"{data.name} has no task {task!r}; it has {', '.join(data.tasks)}")
    else:
        given = list(data)[:n] if hasattr(data, "__getitem__") and not hasattr(data, "keys") else []
    if given and all(isinstance(one, Pair) for one in given):
        return [_of_pair(labels, one) for one in given]
    if not given or not all(isinstance(one, Example) for one in given):
        raise DataError(
            f"data is {shown(data)}: give a data set, its name, a folder, a list of examples or pairs"
        )
    for one in given:
        if not one.answers and one.label is None:
            raise DataError(f"example {one.id!r} has no answer to compare with")
    right = [labels.first_token(one.prompt, one.label or one.answers[0]) for one in given]
    return [Asked(one, right[i], _next_other(right, i)) for i, one in enumerate(given)]


def _of_pair(labels: Labels, pair: Pair) -> Asked:
    right = labels.first_token(pair.clean.prompt, pair.target)
    if pair.base is None:
        raise DataError(
            f"{pair!r} has no answer for its corrupt picture: give examples, or pairs that have one"
        )
    return Asked(pair.clean, right, labels.first_token(pair.corrupt.prompt, pair.base))


def _next_other(ids: Sequence[int], i: int) -> int | None:
    return next((one for one in [*ids[i + 1 :], *ids[:i]] if one != ids[i]), None)
