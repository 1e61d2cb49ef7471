"""Examples of a study: drawn, prepared in batches, and their labels as tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

from gatelens.data import Dataset, Example
from gatelens.errors import DataError, InputError
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM

Item = TypeVar("Item")
LARGEST_TENSOR = 1 << 28  # numbers in the largest tensor of a batch (attention scores of a layer, or logits)


def draw(data: Dataset, task: str, n: int, seed: int) -> list[Example]:
    """Up to ``n`` seeded examples of a task; none when the data has no such task.

    Raises:
        DataError: an example without a picture or answers, named by id.
    """
    if task not in data.tasks or n == 0:
        return []
    examples = list(data.examples(task, limit=n, seed=seed))
    for e in examples:
        if e.image is None:
            raise DataError(f"data {data.name!r}: {task} example {e.id!r} has no picture")
        if not e.answers and e.label is None:
            raise DataError(f"data {data.name!r}: {task} example {e.id!r} has no answer to compare with")
    return examples


def prepare(model: HookedVLM, examples: Sequence[Example], start: int = 0) -> VLMInputs:
    """Inputs of a batch; random selectors draw by the example's number in the study, not in the batch."""
    images = [e.image for e in examples]
    inputs = model.prepare(images=images, text=[e.prompt for e in examples])
    numbers = tuple(range(start, start + len(examples)))
    return dataclasses.replace(inputs, tokens=dataclasses.replace(inputs.tokens, example_ids=numbers))


def auto_batch_size(model: HookedVLM, example: Example) -> int:
    """A batch whose largest tensor stays bounded: 64 for small models, fewer for long prompts."""
    n_pos = prepare(model, [example]).tokens.n_pos
    largest = max(model.cfg.n_heads * n_pos**2, n_pos * int(model.cfg.d_vocab))
    return max(1, min(64, LARGEST_TENSOR // max(1, largest)))


def consecutive(examples: Sequence[Item], size: int) -> Iterator[tuple[int, int, Sequence[Item]]]:
    """``(batch number, index of its first example, examples)``."""
    for number, start in enumerate(range(0, len(examples), size)):
        yield number, start, examples[start : start + size]


def by_length(
    model: HookedVLM, examples: Sequence[Example], size: int
) -> list[tuple[int, int, Sequence[Example]]]:
    """Batches of prompts of one length, short ones first, so that none is padded and all can share a prefix.

    An example keeps its number whatever the batch size.
    """
    lengths = [len(model.tokenizer(e.prompt)["input_ids"]) for e in examples]
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    parts: list[list[int]] = []
    for place, i in enumerate(order):
        if not parts or len(parts[-1]) == size or lengths[order[parts[-1][0]]] != lengths[i]:
            parts.append([])
        parts[-1].append(place)
    return [(n, part[0], [examples[order[place]] for place in part]) for n, part in enumerate(parts)]


class Labels:
    """First token of a label when it continues a prompt, with a space before it where the model writes one.

    After a word there is one; none after a line break or a special token, with which a user's turn may end
    (``[/INST]``, ``<|im_start|>assistant`` and a line break).
    """

    def __init__(self, model: HookedVLM) -> None:
        self._tokenizer = model.tokenizer
        self._known: dict[tuple[str, str], int] = {}

    def first_token(self, prompt: str, label: str) -> int:
        """Token id.

        Raises:
            InputError: the label adds no token to the prompt.
        """
        stem = prompt.rsplit("<image>", 1)[-1].strip(" ") or "is"
        key = (stem, label)
        if key not in self._known:
            before = self._ids(stem)
            special = getattr(self._tokenizer, "added_tokens_decoder", {})
            gap = "" if stem[-1].isspace() or (before and before[-1] in special) else " "
            after = self._ids(stem + gap + label)
            same = 0
            while same < min(len(before), len(after)) and before[same] == after[same]:
                same += 1
            if same == len(after):
                raise InputError(f"label {label!r} adds no token after {stem!r}; choose another label")
            self._known[key] = int(after[same])
        return self._known[key]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def labels_of(example: Example) -> tuple[str, ...]:
    """The accepted class names of an example."""
    return tuple(dict.fromkeys(([example.label] if example.label else []) + list(example.answers)))
