"""Several data sets as one: each gives its own tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gatelens.data.base import Dataset, Example, Named, check_task
from gatelens.errors import DataError


class CombinedDataset(Named):
    """Data sets side by side. A task only one of them has keeps its name; one that several have is named after
    each of them: ``caption (flickr30k)``, ``caption (coco)``.

    Raises:
        DataError: the same data set twice.
    """

    def __init__(self, parts: Sequence[Dataset]):
        self.parts = tuple(parts)
        names = [p.name for p in self.parts]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise DataError(f"data {twice!r} is named twice; name each data set once")
        self.name = ",".join(names)
        having = {t: [p for p in self.parts if t in p.tasks] for p in self.parts for t in p.tasks}
        self._sources: dict[str, tuple[str, Dataset]] = {
            task if len(having[task]) == 1 else f"{task} ({part.name})": (task, part)
            for task in having
            for part in having[task]
        }
        self.tasks: tuple[str, ...] = tuple(self._sources)
        if len(having.get("class", [])) > 1:
            both = ", ".join(p.name for p in having["class"])
            raise DataError(f"{both} all have classes to name; give one of them at a time")

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the part whose task is to name one; without such a part, nothing competes."""
        return next((part.classes for task, part in self._sources.values() if task == "class"), ())

    @property
    def where(self) -> str:
        """Where the parts come from, for those that can come from several places."""
        return ", ".join(f"{p.name} from {p.where}" for p in self.parts if hasattr(p, "where"))

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The bad rows every part left out."""
        return [row for part in self.parts for row in getattr(part, "skipped", ())]

    def examples(
        self, task: str, limit: int | None = None, seed: int = 0, *, kind: str | None = None
    ) -> list[Example]:
        """The examples of the part the task belongs to.

        Raises:
            DataError: no part has the task, or its part not the kind.
        """
        check_task(self.name, task, self.tasks)
        name, part = self._sources[task]
        # a data set of a caller's own need not know kinds
        return part.examples(name, limit, seed, **({} if kind is None else {"kind": kind}))
