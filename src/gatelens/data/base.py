"""What a study gets from a data set: examples, and the tasks it can give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from gatelens.errors import DataError

TASKS = ("class", "vqa", "caption", "draw")


def kind(task: str) -> str:
    """What a task asks for: ``caption`` of ``caption (coco)``, the name where several data sets give captions."""
    return task.split(" (", 1)[0]


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt and what is right.

    Attributes:
        image: the picture; ``None`` for drawing prompts.
        prompt: text with ``<image>`` where the picture goes.
        answers: what counts as right: the class name; one or more answers (VQA); reference captions.
        task: one of ``class``, ``vqa``, ``caption``, ``draw``.
        id: names the example within its data set, the same in every run.
        label: the class, for tasks that have one.
        meta: facts of the data set's own (objects, boxes, masks, kind of question…).
    """

    image: Image.Image | None
    prompt: str
    answers: tuple[str, ...]
    task: str
    id: str
    label: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Dataset(Protocol):
    """A source of examples. Implement these four and a study can use it."""

    name: str
    tasks: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """What can be the answer of the task ``class``."""
        ...

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Example]:
        """The task's examples, ``limit`` of them drawn by ``seed`` (all when ``None``), in a fixed order.

        Raises:
            DataError: the data set does not have this task, or an example lacks something.
        """
        ...


def check_task(name: str, task: str, tasks: Sequence[str]) -> None:
    """Raises DataError, with the tasks there are, when the data set ``name`` does not have this one."""
    if task not in tasks:
        raise DataError(f"{name} has no task {task!r}; it has {', '.join(tasks)}")


def check_split(name: str, split: str) -> None:
    """Raises DataError when the split is neither ``train`` nor ``test``."""
    if split not in ("train", "test"):
        raise DataError(f"{name} has no split {split!r}; use 'train' or 'test'")


def note_bad_row(skipped: list[dict[str, Any]], name: str, row: int, why: str) -> None:
    """List a row that the data set ``name`` leaves out, once however often it is met."""
    bad_row = {"data": name, "row": row, "why": why}
    if bad_row not in skipped:
        skipped.append(bad_row)
