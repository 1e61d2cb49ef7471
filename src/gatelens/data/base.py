"""What a study gets from a data set: examples, and the tasks it can give."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool
from PIL import Image

from gatelens.errors import DataError, did_you_mean, shown
from gatelens.pictures import thumbnail

Result = TypeVar("Result")

TASKS = ("class", "vqa", "caption", "draw")


def kind(task: str) -> str:
    """What a task asks for: ``caption`` of ``caption (coco)``, the name where several data sets give captions."""
    return task.split(" (", 1)[0]


class Named:
    """A data set that prints as a line: its name, what it was made with, its tasks."""

    name: str
    tasks: tuple[str, ...]

    def __repr__(self) -> str:
        split = f", {self.split}" if hasattr(self, "split") else ""
        tasks = ", ".join(self.tasks)
        return f"{type(self).__name__}({self.name}{split}; tasks: {tasks:.200})"


@dataclass(frozen=True, eq=False, repr=False)
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

    Example:
        >>> scene.prompt, scene.answers, scene.image.size
        ('<image>this is a', ('sunflower',), (64, 64))
        >>> model.prepare(scene.image, scene.prompt).shape
        torch.Size([1, 70])
    """

    image: Image.Image | None
    prompt: str
    answers: tuple[str, ...]
    task: str
    id: str
    label: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        answers = ", ".join(repr(answer[:40]) for answer in self.answers[:3])
        facts = f"; {', '.join(self.meta)}" if self.meta else ""
        return f"Example({self.id}, {self.task}: {self.prompt[:90]!r} -> {answers}{facts:.200})"

    @property
    def masks(self) -> dict[str, Bool[np.ndarray, "height width"]]:
        """The pixels of each object by its name, as ``masks=`` takes them; empty where the data have none.

        >>> import gatelens as gl
        >>> scene = gl.data.load("emoji-scenes").examples("class", limit=1)[0]
        >>> cut = gl.knockout("text", f"image.mask({scene.label})", masks=scene.masks)
        """
        masks = self.meta.get("masks")
        if masks is None:
            return {}
        if not isinstance(masks, Mapping):
            names = [getattr(o, "name", str(o)) for o in self.meta.get("objects", ())]
            masks = dict(zip(names, masks, strict=True))
        return {str(name): np.asarray(mask, dtype=bool) for name, mask in masks.items()}

    def _repr_html_(self) -> str:
        """The picture over the line."""
        picture = "" if self.image is None else thumbnail(self.image, 192)
        return f"<div>{picture}<br><code>{html.escape(repr(self))}</code></div>"


@runtime_checkable
class Dataset(Protocol):
    """A source of examples. Implement these four and a study can use it.

    The data sets of gatelens also take ``examples(..., kind="color")``: ``limit`` examples of this kind
    (``meta["kind"]``). Questions about scenes have the kinds ``color``, ``shape``, ``presence``, ``side``, ``count``
    and ``relation``; a folder has those of its column ``kind``.

    Example:
        >>> scenes = gl.data.load("emoji-scenes")
        >>> scenes.name, scenes.tasks
        ('emoji-scenes', ('class', 'vqa', 'caption', 'draw'))
    """

    name: str
    tasks: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """What can be the answer of the task ``class``."""
        ...

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Example]:
        """The task's examples, at most ``limit`` of them drawn by ``seed``, in a fixed order.

        None is all of a finite data set. Scenes are composed on demand, as many as ``limit`` says; None is 500 there.

        Raises:
            DataError: the data set does not have this task, an example lacks something, or a limit below 1.
        """
        ...


def check_task(name: str, task: str, tasks: Sequence[str]) -> None:
    """Raises DataError, with the tasks there are, when the data set ``name`` does not have this one."""
    if task not in tasks:
        raise DataError(f"{name} has no task {task!r}; it has {', '.join(tasks)}")


def check_kind(name: str, task: str, kind: Any, kinds: Iterable[str]) -> None:
    """Refuse a kind of examples that the task does not have; None is all kinds.

    Raises:
        DataError: another kind, with those there are.
    """
    known = list(kinds)
    if kind is None or kind in known:
        return
    there = f"the kinds are {', '.join(known)}" if known else "it has no kinds, leave kind= out"
    raise DataError(f"{name}: kind={shown(kind)} of task {task!r}: {there}{did_you_mean(str(kind), known)}")


def check_drawn(name: str, limit: Any, seed: Any, most: int | None = None) -> None:
    """Refuse a limit or a seed with which examples cannot be drawn, before any is made.

    Args:
        most: examples that a data set without an end gives at most.

    Raises:
        DataError: a limit that is not a whole number from 1 to ``most``, or a seed that is none of 0 or more.
    """
    if limit is not None and not (_whole(limit) and limit >= 1):
        raise DataError(f"{name}: limit={limit!r}: give a whole number, 1 or more, or None")
    if most is not None and limit is not None and limit > most:
        raise DataError(f"{name}: limit={limit}: it makes {most:,} examples of a task at most")
    if not (_whole(seed) and seed >= 0):
        raise DataError(f"{name}: seed={seed!r}: give a whole number, 0 or more")


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_split(name: str, split: str, splits: Sequence[str] = ("train", "test")) -> None:
    """Raises DataError when the data set does not have this split."""
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; use {' or '.join(map(repr, splits))}")


class BadRows:
    """What a data set does with its bad rows: the first is an error that names it, or all are left out and listed.

    Args:
        data: the data set's name.
        called: what an error calls a row, from its number.
        skip: leave them out.

    Attributes:
        skipped: those left out so far: ``{"data", "row", "why"}``, each once however often it is met.
    """

    def __init__(self, data: str, called: Callable[[int], str], skip: bool):
        self.data, self.called, self.skip = data, called, skip
        self.skipped: list[dict[str, Any]] = []

    def unless_bad(self, number: int, make: Callable[..., Result], *arguments: Any) -> Result | None:
        """What ``make`` makes of a row; None where the row is bad (a ValueError) and bad rows are left out.

        Raises:
            DataError: the row is bad and bad rows are not left out; or ``make``'s own, not the fault of the row.
        """
        try:
            return make(*arguments)
        except DataError:
            raise
        except ValueError as error:
            why = _shortened(str(error))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            why = f"not in the form of this data set ({type(error).__name__}: {_shortened(str(error))})"
        if not self.skip:
            raise DataError(
                f"{self.called(number)}: {why}; fix it, or skip bad rows with --skip-bad (skip_bad=True)"
            )
        bad_row = {"data": self.data, "row": number, "why": why}
        if bad_row not in self.skipped:
            self.skipped.append(bad_row)
        return None


def _shortened(text: str, most: int = 300) -> str:
    """A text as one line, cut where a table has put a book into a cell."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "…"
