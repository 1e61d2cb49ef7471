"""A data set of the papers as the studies see it: examples of one task, and the rows that are bad."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from gatelens.data.base import BadRows, Example, Named, check_drawn, check_task
from gatelens.data.hub import coco_objects
from gatelens.data.hub.entries import ENTRIES, Entry
from gatelens.data.hub.fields import synonyms
from gatelens.data.hub.order import round_robin, sample_rows
from gatelens.data.hub.pictures import LazyExample, decoded, picture_source
from gatelens.data.hub.rows import Row, Rows
from gatelens.data.hub.sources import from_disk, from_hub
from gatelens.errors import DataError, shown
from gatelens.hub_errors import one_line

_NO_LABEL = (None, -1, "")
_META_ROLES = ("picture", "kind", "question_type", "part")


class HubDataset(Named):
    """One of :data:`ENTRIES`, from the hub or a local copy.

    Args:
        entry: the data set or its name.
        where: None for the entry's repository; another repository (``org/name``); or the path of a local copy.
        split: None for the entry's.
        skip_bad: leave bad rows out and list them in ``skipped`` instead of raising.
        seed_classes: draws the classes of a data set that has more than the paper used.

    Attributes:
        skipped: the bad rows met so far: ``{"data", "row", "why"}``, rows counted from 0.

    Raises:
        DataError: not reachable, no such split, or a column is missing.
    """

    def __init__(
        self,
        entry: Entry | str,
        where: str | Path | None = None,
        *,
        split: str | None = None,
        skip_bad: bool = False,
        seed_classes: int = 42,
    ):
        self.entry = ENTRIES[entry] if isinstance(entry, str) else entry
        self.name = self.entry.name
        self.tasks: tuple[str, ...] = (self.entry.task,)
        self.split = split or self.entry.split
        self._seed_classes = seed_classes
        self.where, self.rows = self._open(where)
        self._bad = BadRows(self.name, self._row_name, skip_bad)
        self.skipped = self._bad.skipped
        self._columns = self._match_columns()

    def examples(
        self, task: str, limit: int | None = None, seed: int = 42, *, kind: str | None = None
    ) -> list[Example]:
        """Up to ``limit`` examples in the order the paper takes them; pictures are decoded when looked at.

        A smaller limit gives the first of a larger one, up to the paper's own number.

        Raises:
            DataError: another task; a kind, by which these are not drawn; or a row is bad (named) and bad rows are not
                to be skipped.
        """
        check_task(self.name, task, self.tasks)
        if kind is not None:
            raise DataError(
                f"{self.name} is not drawn by kind={shown(kind)}: keep those whose meta['kind'] is it"
            )
        check_drawn(self.name, limit, seed)
        order = self._order(limit, seed)
        needed = list(dict.fromkeys(c for names in self._columns.values() for c in names))
        examples: dict[int, Example] = {}
        n_read = 0
        for number, row in self._read(order, needed):
            n_read += 1
            example = self._bad.unless_bad(number, self._example, number, row)
            if example is not None:
                examples[number] = example
        if not examples:
            why = (
                f"all {n_read} rows read are bad, the first: {self.skipped[0]['why']}"
                if n_read
                else "no rows"
            )
            raise DataError(f"{self.name}: {self.where} gives no example ({why}); give another copy")
        return [examples[number] for number in order if number in examples]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the task is to name one."""
        if self.entry.task != "class":
            return ()
        labels = sorted(self._label_names, key=str)
        return tuple(dict.fromkeys(synonyms(str(self._label_names[label]))[0] for label in labels))

    def _open(self, where: str | Path | None) -> tuple[str, Rows]:
        """The place the rows come from, and the rows."""
        entry = self.entry
        if where is None:
            return entry.repo, from_hub(entry.repo, self.split, self.name, entry.revision, entry.files)
        path = Path(where).expanduser()
        if path.exists():
            return str(path), from_disk(path, self.split, self.name)
        text = str(where)
        if text.count("/") != 1 or text[0] in "./~":
            raise DataError(f"{self.name}: no folder or file {text!r}; give one, or a repository (org/name)")
        return text, from_hub(text, self.split, self.name)

    def _match_columns(self) -> dict[str, tuple[str, ...]]:
        """Role → the columns that fill it, best first.

        Raises:
            DataError: a required role no column fills; says which columns there are.
        """
        there = self.rows.columns
        if not there:
            raise DataError(f"{self.name}: {self.where} is empty")
        matched: dict[str, tuple[str, ...]] = {}
        for role, names in {**self.entry.columns, **self.entry.more}.items():
            matched[role] = tuple(name for name in names if name in there)
            if role in self.entry.columns and not matched[role]:
                raise DataError(
                    f"{self.name}: {self.where} has no column {' or '.join(map(repr, names))} for the {role} "
                    f"(it has: {', '.join(there)}); rename one or give another copy"
                )
        return matched

    def _read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        with self._reading():
            yield from self.rows.read(wanted, columns)

    def _column(self, role: str) -> list[Any]:
        with self._reading():
            return self.rows.column(self._columns[role][0])

    def _feature(self, role: str) -> Any:
        """What the table says of a role's column, as ``datasets`` has it; None when it says nothing."""
        with self._reading():
            return (self.rows.features or {}).get(self._columns[role][0])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One line for what stops the reading of the table, which is not the fault of a row."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # OSError, Arrow's, datasets', the HTTP client's
            raise DataError(
                f"{self.name}: {self.where} cannot be read ({one_line(error)}); give another copy"
            ) from error

    def _order(self, limit: int | None, seed: int) -> Sequence[int]:
        """The rows to read, in the order of the examples."""
        entry = self.entry
        if entry.order == "classes":
            # A row without label is bad, not of another class: it stays in, as a class of its own.
            groups = {n: None if label in _NO_LABEL else label for n, label in enumerate(self._labels)}
            rows = [n for n, group in groups.items() if group is None or group in self._label_names]
            return [rows[i] for i in round_robin([groups[n] for n in rows], rows, seed)][:limit]
        if limit is not None and entry.order == "subsets":
            subsets = [str(v) for v in self._column("category")]
            pictures = [str(v) for v in self._column("id")] if self._columns["id"] else range(len(subsets))
            return round_robin(subsets, pictures, seed)[:limit]
        if limit is not None and entry.order == "first":
            return range(limit)  # reading ends at the last row: to count all would cost a streamed set a pass
        total = len(self.rows)
        return range(total) if limit is None else sample_rows(total, limit, entry.n, seed)

    @cached_property
    def _labels(self) -> list[Any]:
        """The labels, None for what can be none."""
        return [label if isinstance(label, (str, int)) else None for label in self._column("label")]

    @cached_property
    def _label_names(self) -> Mapping[Any, str]:
        """The labels in use as the rows have them → their names; at most the entry's number of classes."""
        names = getattr(self._feature("label"), "names", None)
        if names is not None:
            every: dict[Any, str] = dict(enumerate(names))
        else:
            every = {v: v for v in sorted({v for v in self._labels if v is not None and v != ""}, key=str)}
            number = next((v for v in every if not isinstance(v, str)), None)
            if number is not None:
                raise DataError(
                    f"{self.name}: the column {self._columns['label'][0]!r} of {self.where} holds numbers ({number}) "
                    "and nothing names them; save it with datasets' ClassLabel, or give the names as text"
                )
        most = self.entry.classes
        if most is None or len(every) <= most:
            return every
        labels = list(every)[: self.entry.of_first]
        chosen = set(random.Random(self._seed_classes).sample(labels, min(most, len(labels))))
        return {label: every[label] for label in labels if label in chosen}

    @cached_property
    def _category_names(self) -> Mapping[int, str] | None:
        """What the category numbers of the objects mean."""
        names = coco_objects.feature_names(self._feature("objects"))
        if names:
            return dict(enumerate(names))
        seen: set[int] = set()
        for objects in self._column("objects"):
            with suppress(
                ValueError, TypeError, AttributeError
            ):  # of a bad row, which is named when it is read
                seen |= coco_objects.category_numbers(objects)
        if seen and coco_objects.category_names(seen) is None:
            raise DataError(
                f"{self.name}: the categories of {self.where} are numbers, either COCO's ids or places in its list; "
                "give a copy with names, or the whole set"
            )
        return coco_objects.category_names(seen) if seen else None

    def _row_name(self, number: int) -> str:
        return f"{self.name} row {number} of {self.split} in {self.where} (counted from 0)"

    def _example(self, number: int, row: Row) -> Example:
        values = self._values(row)
        answers = self.entry.answers(values)
        picture = self._picture(row, values)
        size = decoded(picture).size  # one that cannot be read is noticed now, not in the middle of a run
        facts = self.entry.facts(values, size) if self.entry.facts else {}
        question, identity = values.get("question"), values.get("id")
        meta = {role: values[role] for role in _META_ROLES if values.get(role) is not None}
        if question:
            meta["question"] = question
        return LazyExample(
            image=picture,  # type: ignore[arg-type]
            prompt=self.entry.prompt.replace("{question}", str(question).strip() if question else ""),
            answers=answers,
            task=self.entry.task,
            id=f"{self.name}-{number}" if identity is None else f"{self.name}-{number}-{identity}",
            label=answers[0] if self.entry.task == "class" else None,
            meta={**meta, **facts, "row": number},
        )

    def _values(self, row: Row) -> dict[str, Any]:
        """A row by role: of each role's columns the first that is not empty, numbers replaced by names."""
        values = {
            role: next((row[n] for n in names if row.get(n) is not None), None)
            for role, names in self._columns.items()
        }
        if isinstance(values.get("label"), (str, int)):
            values["label"] = self._label_names.get(values["label"], values["label"])
        if "objects" in values:
            numbered = bool(coco_objects.category_numbers(values["objects"]))
            values["category_names"] = self._category_names if numbered else None
        return values

    def _picture(self, row: Row, values: Mapping[str, Any]) -> Callable[[], bytes]:
        """What reads the file of a row's picture."""
        cells = [row[n] for n in self._columns.get("image", ()) if row.get(n) is not None]
        address = values.get("address")
        if address is None and self.entry.url and isinstance(values.get("id"), int):
            address = self.entry.url.format(**values)
        folder = str(values.get("folder") or "")
        return picture_source(cells, self.rows.base, folder, None if address is None else str(address))
