"""A data set of the papers as the studies see it: examples of one task, and the rows that are bad."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageOps

from gatelens.data.base import Example
from gatelens.data.hub import coco_objects
from gatelens.data.hub.entries import ENTRIES, Entry
from gatelens.data.hub.fields import synonyms
from gatelens.data.hub.pictures import fetched
from gatelens.data.hub.rows import Rows, from_disk, from_hub
from gatelens.errors import DataError

Item = TypeVar("Item")
_NO_PICTURE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class HubDataset:
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
        self.skip_bad = skip_bad
        self.skipped: list[dict[str, Any]] = []
        self._seed_classes = seed_classes
        self.where, self.rows = self._find(where)
        self._columns = self._match()

    def examples(self, task: str, limit: int | None = None, seed: int = 42) -> list[Example]:
        """Up to ``limit`` examples in the order the paper takes them; pictures are decoded when looked at.

        A smaller limit gives the first of a larger one, up to the paper's own number.

        Raises:
            DataError: another task; or a row is bad (named) and bad rows are not to be skipped.
        """
        if task != self.entry.task:
            raise DataError(f"{self.name} has no task {task!r}; it has {self.entry.task}")
        order = self._order(limit, seed)
        needed = list(dict.fromkeys(c for names in self._columns.values() for c in names))
        found: dict[int, Example] = {}
        seen = 0
        for number, row in self.rows.read(order, needed):
            seen += 1
            example = self._checked(number, row)
            if example is not None:
                found[number] = example
        if not found and limit != 0:
            why = f"all {seen} rows read are bad, the first: {self.skipped[0]['why']}" if seen else "no rows"
            raise DataError(f"{self.name}: {self.where} gives no example ({why}); give another copy")
        return [found[i] for i in order if i in found]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the task is to name one."""
        if self.entry.task != "class":
            return ()
        return tuple(dict.fromkeys(synonyms(str(self._kept[key]))[0] for key in sorted(self._kept, key=str)))

    # -- opening

    def _find(self, where: str | Path | None) -> tuple[str, Rows]:
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

    def _match(self) -> dict[str, tuple[str, ...]]:
        """Role → the columns that fill it, best first.

        Raises:
            DataError: a role no column fills; says which columns there are.
        """
        there = self.rows.columns
        if not there:
            raise DataError(f"{self.name}: {self.where} is empty")
        matched: dict[str, tuple[str, ...]] = {}
        for role, names in {**self.entry.columns, **self.entry.more}.items():
            present = tuple(n for n in names if n in there)
            if role in self.entry.columns and not present:
                raise DataError(
                    f"{self.name}: {self.where} has no column {' or '.join(map(repr, names))} for the {role} "
                    f"(it has: {', '.join(there)}); rename one or give another copy"
                )
            matched[role] = present
        return matched

    # -- which rows

    def _order(self, limit: int | None, seed: int) -> Sequence[int]:
        if self.entry.order == "classes":
            return self._by_class(limit, seed)
        if limit is not None and self.entry.order == "subsets":
            return self._by_subset(seed)[:limit]
        if limit is not None and self.entry.order == "first":
            return range(limit)  # what lies behind the last row is counted by nobody
        total = len(self.rows)
        if limit is None:
            return range(total)
        # The paper's code: random.seed(seed); random.sample(range(total), n). Its start depends on n only where n is
        # a large part of the whole, so the paper's n is drawn even when fewer are wanted.
        drawn = random.Random(seed).sample(range(total), min(total, max(limit, self.entry.n)))
        return drawn[:limit]

    def _by_class(self, limit: int | None, seed: int) -> list[int]:
        """Rows of the classes kept, each class shuffled, one of each in turn."""
        members: dict[Any, list[int]] = {key: [] for key in self._kept}
        for i, key in enumerate(self._labels):
            if key in members:
                members[key].append(i)
            elif key is None or key == -1 or key == "":
                members.setdefault(None, []).append(i)  # a row without label is bad, not of another class
        order = _in_turn(members, seed)
        return order if limit is None else order[:limit]

    def _by_subset(self, seed: int) -> list[int]:
        """Rows of every subset in turn, a picture's questions one after the other."""
        subsets = self.rows.column(self._columns["category"][0])
        pictures = self.rows.column(self._columns["id"][0]) if self._columns["id"] else range(len(subsets))
        together: dict[tuple[Any, Any], list[int]] = {}
        for i, key in enumerate(zip(subsets, pictures, strict=True)):
            together.setdefault(key, []).append(i)
        members: dict[Any, list[list[int]]] = {}
        for (subset, _), rows in together.items():
            members.setdefault(subset, []).append(rows)
        return [i for rows in _in_turn(members, seed) for i in rows]

    @cached_property
    def _labels(self) -> list[Any]:
        return self.rows.column(self._columns["label"][0])

    @cached_property
    def _kept(self) -> Mapping[Any, str]:
        """The labels in use as the rows have them → their names; at most the entry's number of classes."""
        column = self._columns["label"][0]
        feature = (self.rows.features or {}).get(column)
        named = getattr(feature, "names", None)
        if named is not None:
            every: dict[Any, str] = dict(enumerate(named))
        else:
            every = {v: v for v in sorted({v for v in self._labels if v is not None and v != ""}, key=str)}
            number = next((v for v in every if not isinstance(v, str)), None)
            if number is not None:
                raise DataError(
                    f"{self.name}: the column {column!r} of {self.where} holds numbers ({number}) and nothing names "
                    "them; save it with datasets' ClassLabel, or give the names as text"
                )
        most = self.entry.classes
        if most is None or len(every) <= most:
            return every
        keys = list(every)[: self.entry.of_first]
        chosen = random.Random(self._seed_classes).sample(keys, min(most, len(keys)))
        return {key: every[key] for key in keys if key in set(chosen)}

    # -- one row

    def _checked(self, number: int, row: Mapping[str, Any]) -> Example | None:
        """The example of a row; None for a bad row that is to be skipped."""
        try:
            return self._example(number, row)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, DataError):
                raise
            why = " ".join(str(error).split())
            if not isinstance(error, ValueError):
                why = f"not in the form of this data set ({type(error).__name__}: {why})"
        entry = {"data": self.name, "row": number, "why": why}
        if not self.skip_bad:
            raise DataError(
                f"{self.name} row {number} of {self.split} in {self.where} (counted from 0): {why}; mend it, or skip "
                "bad rows with --skip-bad (skip_bad=True)"
            )
        if entry not in self.skipped:
            self.skipped.append(entry)
        return None

    def _example(self, number: int, row: Mapping[str, Any]) -> Example:
        values = {
            role: next((row[n] for n in names if row.get(n) is not None), None)
            for role, names in self._columns.items()
        }
        if "label" in values and values["label"] in self._kept:
            values["label"] = self._kept[values["label"]]
        if "objects" in values:
            numbered = bool(coco_objects.category_numbers(values["objects"]))
            values["category_names"] = self._category_names if numbered else None
        answers = self.entry.answers(values)
        picture = self._picture(row, values)
        size = decoded(picture).size  # a picture that cannot be read is found now, not in the middle of a run
        facts = self.entry.facts(values, size) if self.entry.facts else {}
        question = values.get("question")
        identity = values.get("id")
        meta = {
            **{
                k: v
                for k, v in values.items()
                if k in ("picture", "kind", "question_type", "part") and v is not None
            },
            **({"question": question} if question else {}),
            **facts,
            "row": number,
        }
        return LazyExample(
            image=picture,  # type: ignore[arg-type]
            prompt=self.entry.prompt.replace("{question}", str(question).strip() if question else ""),
            answers=answers,
            task=self.entry.task,
            id=f"{self.name}-{number}" if identity is None else f"{self.name}-{number}-{identity}",
            label=answers[0] if self.entry.task == "class" else None,
            meta=meta,
        )

    @cached_property
    def _category_names(self) -> Mapping[int, str] | None:
        named = _category_feature((self.rows.features or {}).get(self._columns["objects"][0]))
        if named:
            return dict(enumerate(named))
        seen: set[int] = set()
        for value in self.rows.column(self._columns["objects"][0]):
            seen |= coco_objects.category_numbers(value)
        names = coco_objects.category_names(seen) if seen else None
        if seen and names is None:
            raise DataError(
                f"{self.name}: the categories of {self.where} are numbers, either COCO's ids or places in its list; "
                "give a copy with names, or the whole set"
            )
        return names

    def _picture(self, row: Mapping[str, Any], values: Mapping[str, Any]) -> Callable[[], bytes]:
        """Where a picture's bytes come from: the row itself, a file beside the table, or an address.

        Raises:
            ValueError: nowhere.
        """
        named = [row[n] for n in self._columns.get("image", ()) if row.get(n) is not None]
        names: list[str] = []
        for value in named:
            content = value.get("bytes") if isinstance(value, Mapping) else value
            if isinstance(content, (bytes, bytearray, memoryview)):
                data = bytes(content)
                return lambda: data
            path = value.get("path") if isinstance(value, Mapping) else value
            if isinstance(path, str) and path:
                names.append(path)
        for file in self._files(names, values):
            if file.is_file():
                return file.read_bytes
        address = next((n for n in names if n.startswith(("http://", "https://"))), values.get("address"))
        if address is None and self.entry.url and isinstance(values.get("id"), int):
            address = self.entry.url.format(**values)
        if address is None:
            raise ValueError(f"no picture {names[0]!r} beside the table" if names else "no picture")
        return fetched(str(address)).read_bytes

    def _files(self, names: Sequence[str], values: Mapping[str, Any]) -> Iterator[Path]:
        """Where a picture of these names may lie."""
        if self.rows.base is None:
            return
        for name in names:
            if not name.startswith(("http://", "https://")):
                for folder in ("", str(values.get("folder") or ""), "images"):
                    yield self.rows.base / folder / name


def _in_turn(members: Mapping[Any, list[Item]], seed: int) -> list[Item]:
    """The members of every group, shuffled by the seed, one of each group in turn."""
    rng = random.Random(seed)
    queues = [rng.sample(members[key], len(members[key])) for key in sorted(members, key=str)]
    turns = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]


class _Picture:
    """The attribute ``image`` of an example whose picture is decoded anew each time it is looked at."""

    def __get__(self, example: Any, owner: Any = None) -> Any:
        if example is None:
            return self
        held = example.__dict__["image"]
        return decoded(held) if callable(held) else held

    def __set__(self, example: Any, value: Any) -> None:
        example.__dict__["image"] = value


class LazyExample(Example):
    """An example that keeps its picture's file, so that thousands of them fit into memory."""

    image = _Picture()


def decoded(picture: Callable[[], bytes]) -> Image.Image:
    """The picture, upright, on white where it is transparent, in RGB.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(picture())) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                layer = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return image.convert("RGB")
    except _NO_PICTURE as error:
        text = str(error) if "BytesIO" not in str(error) else "not a picture in any format known"
        raise ValueError(f"unreadable picture ({text})") from error


def _category_feature(feature: Any) -> Sequence[str] | None:
    """The names of the categories in a nested feature."""
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    if not isinstance(inner, Mapping):
        return None
    for key in ("category", "category_id", "classes", "label"):
        one = inner.get(key)
        found = getattr(getattr(one, "feature", one), "names", None)
        if found:
            return list(found)
    return None
