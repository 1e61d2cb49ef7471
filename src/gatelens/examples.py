"""Examples drawn from data, prepared in batches, and their labels as tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from gatelens.data import Dataset, Example
from gatelens.data.corruptions import asked_object
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
    return prepare_numbered(model, examples, range(start, start + len(examples)))


def prepare_numbered(model: HookedVLM, examples: Sequence[Example], numbers: Sequence[int]) -> VLMInputs:
    """Inputs of a batch whose examples have these numbers, by which random selectors draw.

    ``image.mask(name)`` selects by the examples' own masks. All examples of a batch have a picture, or none has.
    """
    images = [e.image for e in examples]
    text = [e.prompt for e in examples]
    inputs = model.prepare(images=None if images[0] is None else images, text=text)
    tokens = dataclasses.replace(
        inputs.tokens, example_ids=tuple(numbers), pixel_masks=tuple(partial(masks_of, e) for e in examples)
    )
    return dataclasses.replace(inputs, tokens=tokens)


def masks_of(example: Example) -> dict[str, Any]:
    """The pixel masks of an example by name; ``object`` is what its prompt is about."""
    masks: dict[str, Any] = example.masks
    asked = asked_object(example)
    return masks if asked is None else {**masks, "object": masks[asked]}


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
    """``(batch number, index of its first example, examples)`` of :func:`of_one_length`.

    The index counts examples in the order of the batches, so it is the same whatever the batch size.
    """
    parts: list[tuple[int, int, Sequence[Example]]] = []
    start = 0
    for number, part in enumerate(of_one_length(model, examples, size)):
        parts.append((number, start, [examples[i] for i in part]))
        start += len(part)
    return parts


def of_one_length(model: HookedVLM, examples: Sequence[Example], size: int) -> list[list[int]]:
    """Numbers of the examples of each batch: prompts of one length, short ones first, at most ``size`` of them.

    So none is padded and all can share a prefix. Prompts with a picture and without never share a batch.
    """
    keys = [(e.image is None, len(model.tokenizer(e.prompt)["input_ids"])) for e in examples]
    parts: list[list[int]] = []
    for i in sorted(range(len(examples)), key=keys.__getitem__):
        if not parts or len(parts[-1]) == size or keys[parts[-1][0]] != keys[i]:
            parts.append([])
        parts[-1].append(i)
    return parts


class Labels:
    """First token of a label when it continues a prompt, with a space before it where the model writes one.

    After a word there is one; none after a line break or a special token, with which a user's turn may end
    (``[/INST]``, ``<|im_start|>assistant`` and a line break).

    Args:
        any_word: a word that the tokenizer does not know is its token of unknown words, and no error.
    """

    def __init__(self, model: HookedVLM, any_word: bool = False) -> None:
        self._tokenizer, self._any_word = model.tokenizer, any_word
        self._known: dict[tuple[str, str], int] = {}

    def first_token(self, prompt: str, label: str) -> int:
        """Token id.

        Raises:
            InputError: the tokenizer does not know the label, or it adds no token to the prompt.
        """
        stem = prompt.rsplit("<image>", 1)[-1].strip(" ") or "is"
        key = (stem, label)
        if key not in self._known:
            self._known[key] = self._first_token(stem, label)
        return self._known[key]

    def _first_token(self, stem: str, label: str) -> int:
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        before = self._ids(stem)
        # the token of unknown words is special too, but stands for a word
        special = set(getattr(self._tokenizer, "added_tokens_decoder", {})) - {unknown}
        gap = "" if stem[-1].isspace() or (before and before[-1] in special) else " "
        after = self._ids(stem + gap + label)
        same = 0
        while same < min(len(before), len(after)) and before[same] == after[same]:
            same += 1
        if unknown is not None and after and after[min(same, len(after) - 1)] == unknown:
            if self._any_word:
                return int(unknown)
            raise InputError(
                f"this tokenizer does not know the word {label!r} (it reads {self._tokenizer.unk_token}), so its "
                "logit cannot be measured; choose a word that it knows"
            )
        if same == len(after):
            raise InputError(f"label {label!r} adds no token after {stem!r}; choose another label")
        return int(after[same])

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def labels_of(example: Example) -> tuple[str, ...]:
    """The accepted class names of an example."""
    return tuple(dict.fromkeys(([example.label] if example.label else []) + list(example.answers)))
