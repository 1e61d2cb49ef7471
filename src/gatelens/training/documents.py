"""Examples of a data set as training documents: the prompt, its answer, the end of sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.engine.generation import eos_ids
from gatelens.errors import DataError

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM

IGNORED = -100  # the target torch's cross-entropy leaves out


@dataclass(frozen=True, eq=False)
class Documents:
    """A batch to learn from.

    Attributes:
        inputs: prompts with their answers, padded on the left, so that all answers end at the last position.
        targets: for the last ``targets.shape[1]`` positions the token that comes next, ``IGNORED`` where it is
            none of the answer's.
    """

    inputs: VLMInputs
    targets: Int[Tensor, "batch tail"]


def documents(model: HookedVLM, examples: Sequence[Example]) -> Documents:
    """Prompts and answers as one batch; only answers, and the end of sequence after them, are predicted.

    An example with several answers gives its first.

    Raises:
        DataError: an example has no answer, or one that adds no token to its prompt.
    """
    texts = [f"{e.prompt} {_answer(e)}" for e in examples]
    inputs = model.prepare(images=[e.image for e in examples if e.image is not None] or None, text=texts)
    length = model.tokenizer
    n_answer = [
        len(length(text)["input_ids"]) - len(length(e.prompt)["input_ids"])
        for text, e in zip(texts, examples, strict=True)
    ]
    for n, e in zip(n_answer, examples, strict=True):
        if n < 1:
            raise DataError(
                f"{e.task} example {e.id!r}: the answer {_answer(e)!r} adds no token to its prompt"
            )
    end = next(iter(eos_ids(model)), IGNORED)
    tail = max(n_answer) + 1  # the row before the answer predicts its first token, its last row the end
    ids = inputs.tensors["input_ids"][:, -(tail - 1) :].cpu()
    following = torch.cat([ids, torch.full((len(ids), 1), end)], dim=1)
    place = torch.arange(tail - 1, -1, -1)  # 0 in the last row, which predicts the end
    targets = following.masked_fill(place > torch.tensor(n_answer)[:, None], IGNORED)
    numbers = tuple(range(len(examples)))
    inputs = dataclasses.replace(inputs, tokens=dataclasses.replace(inputs.tokens, example_ids=numbers))
    return Documents(inputs, targets.to(inputs.tensors["input_ids"].device))


def _answer(example: Example) -> str:
    found = example.answers[0] if example.answers else example.label
    if not found or not found.strip():
        raise DataError(f"{example.task} example {example.id!r} has no answer to learn")
    return found.strip()
