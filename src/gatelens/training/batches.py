"""Examples of a data set as batches to learn from: the prompt, its answer, the end of sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.data.base import Example
from gatelens.engine.generation import eos_ids
from gatelens.errors import DataError
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM

IGNORED = -100  # the target torch's cross-entropy leaves out


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Prompts with their answers, and the targets.

    Attributes:
        inputs: prompts with their answers, padded on the left, so that all answers end at the last position.
        targets: for the last ``targets.shape[1]`` positions the token that comes next, ``IGNORED`` where it is
            none of the answer's.
    """

    inputs: VLMInputs
    targets: Int[Tensor, "batch tail"]


def training_batch(model: HookedVLM, examples: Sequence[Example]) -> TrainingBatch:
    """Prompts and answers as one batch; only answers, and the end of sequence after them, are predicted.

    An example with several answers gives its first.

    Raises:
        DataError: an example has no answer, or one that adds no token to its prompt.
    """
    texts = [f"{e.prompt} {_answer(e)}" for e in examples]
    inputs = model.prepare(images=[e.image for e in examples if e.image is not None] or None, text=texts)
    n_answer = []
    for text, e in zip(texts, examples, strict=True):
        n_answer.append(_n_tokens(model, text) - _n_tokens(model, e.prompt))
        if n_answer[-1] < 1:
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
    return TrainingBatch(inputs, targets.to(inputs.tensors["input_ids"].device))


def _n_tokens(model: HookedVLM, text: str) -> int:
    return len(model.tokenizer(text)["input_ids"])


def _answer(example: Example) -> str:
    answer = example.answers[0] if example.answers else example.label
    if not answer or not answer.strip():
        raise DataError(f"{example.task} example {example.id!r} has no answer to learn")
    return answer.strip()
