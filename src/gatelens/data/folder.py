"""A user's own folder: pictures and one table of text, ``data.csv`` or ``data.jsonl``.

A row is about one picture and gives an example for each task whose columns it fills:

| column | what it holds |
|---|---|
| ``image`` | a file in the folder |
| ``label`` | the class (task ``class``), with other names for it as for answers |
| ``question``, ``answers`` (or ``answer``) | task ``vqa``; several answers as a JSON list, or with ``|`` between them |
| ``captions`` (or ``caption``) | task ``caption``; several as for answers |
| ``task`` | the only task the row is for, where it is not for all that it could give |
| ``prompt`` | in place of the task's own wording |
| ``objects`` | names of what is in the picture; several as for answers |
| ``masks`` | a JSON object from names to picture files in the folder, not black where the object is |
| ``image_b`` | a second picture, corrupt, that turns the row into a pair: ``image`` is the clean one |
| ``answers_b`` (or ``answer_b``) | what is right for the second picture; several as for answers |
| ``differ`` | what differs between the two, in a word |

Any other column is a fact of the examples, in ``meta``. Whatever else a row holds is an error with its number.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from gatelens.data import prompts
from gatelens.data.base import BadRows, Example, Named, check_drawn, check_kind, check_task
from gatelens.data.pairs import Pair
from gatelens.data.tables import Row, json_object, named, plain, read_csv, read_json_lines
from gatelens.errors import DataError, did_you_mean
from gatelens.pictures import load_image, load_mask

TABLES = ("data.csv", "data.jsonl")
_ANSWERS = {"class": "label", "vqa": "answers", "caption": "captions"}
_ALSO = {"answer": "answers", "caption": "captions", "answer_b": "answers_b"}
_OF_PAIRS = ("answers_b", "differ")


@dataclass(frozen=True)
class _Row:
    """A row that is checked but for its pictures."""

    number: int
    tasks: tuple[str, ...]
    values: Mapping[str, Any]
    facts: Mapping[str, Any]


class Folder(Named):
    """Examples from a folder. The table is checked whole when it is opened; pictures when they are used.

    With ``skip_bad`` bad rows are left out and listed in ``skipped`` instead of being an error.
    """

    def __init__(self, path: str | Path, skip_bad: bool = False):
        self.path = Path(path)
        self.name = self.path.resolve().name
        tables = [self.path / name for name in TABLES if (self.path / name).exists()]
        if not tables:
            raise DataError(f"{self.path} has no {' or '.join(TABLES)}; put one beside the pictures")
        if len(tables) > 1:
            raise DataError(f"{self.path} has both {' and '.join(TABLES)}; keep one")
        self._table, self._root = tables[0], os.path.realpath(self.path)
        self._bad = BadRows(self.name, lambda number: f"{self._table.name} row {number}", skip_bad)
        self.skipped = self._bad.skipped
        parse, lines = self._lines()
        read = [self._bad.unless_bad(number, self._checked, number, parse, line) for number, line in lines]
        self._rows = [row for row in read if row is not None]
        if not self._rows:
            why = f"all {len(read)} rows are bad, the first: {self.skipped[0]['why']}" if read else "no rows"
            raise DataError(f"{self._table} gives no example ({why}); give a row for each picture")
        self.tasks = tuple(task for task in _ANSWERS if any(task in row.tasks for row in self._rows))
        labels = {row.values["label"][0] for row in self._rows if "class" in row.tasks}
        self.classes: tuple[str, ...] = tuple(sorted(labels))
        paired = [row.values for row in self._rows if "image_b" in row.values]
        self.differs = tuple(dict.fromkeys(values.get("differ", "image") for values in paired))

    def examples(
        self, task: str, limit: int | None = None, seed: int = 0, *, kind: str | None = None
    ) -> list[Example]:
        """The task's rows, ``limit`` of them drawn by ``seed``, in the table's order.

        Args:
            kind: only those whose column ``kind`` says so.

        Raises:
            DataError: no row has this task or kind, or a picture cannot be read (named with its row).
        """
        check_task(self.name, task, self.tasks)
        rows = [row for row in self._rows if task in row.tasks]
        kinds = [k for row in rows if isinstance(k := row.facts.get("kind"), str)]
        check_kind(self.name, task, kind, dict.fromkeys(kinds))
        check_drawn(self.name, limit, seed)
        rows = [row for row in rows if kind is None or row.facts.get("kind") == kind]
        if limit is not None and limit < len(rows):
            chosen = sorted(np.random.default_rng(seed).permutation(len(rows))[:limit])
            rows = [rows[i] for i in chosen]
        made = [self._bad.unless_bad(row.number, self._example, row, task) for row in rows]
        return [example for example in made if example is not None]

    def pairs(self, differ: str | None = None, n: int | None = None, seed: int = 0) -> list[Pair]:
        """The rows with a second picture, ``n`` of them drawn by ``seed``, in the table's order.

        Args:
            differ: only those whose column ``differ`` says so (``image`` where it is empty); None is all.

        Raises:
            DataError: no row has a second picture, or one cannot be read (named with its row).
        """
        check_drawn(self.name, n, seed)
        rows = [row for row in self._rows if "image_b" in row.values]
        if not rows:
            raise DataError(
                f"{self._table} names no pairs: give a second picture in a column 'image_b' and what is right for it "
                "in 'answers_b'"
            )
        rows = [row for row in rows if differ in (None, row.values.get("differ", "image"))]
        if n is not None and n < len(rows):
            rows = [rows[i] for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:n])]
        made = [self._bad.unless_bad(row.number, self._pair, row) for row in rows]
        return [pair for pair in made if pair is not None]

    def _pair(self, row: _Row) -> Pair:
        clean = self._example(row, row.tasks[0])
        answers = row.values.get("answers_b", ())
        corrupt = dataclasses.replace(
            clean,
            image=load_image(self._inside(row.values["image_b"]), "picture"),
            answers=answers,
            id=f"{clean.id}-b",
            label=answers[0] if clean.label and answers else None,
            meta=row.facts,  # masks and objects are those of the first picture
        )
        base = answers[0] if answers else None
        return Pair(clean, corrupt, row.values.get("differ", "image"), clean.answers[0], base)

    def _lines(self) -> tuple[Callable[[Any], Row], Sequence[tuple[int, Any]]]:
        """The table's rows in order, with their numbers, and what reads one."""
        if self._table.suffix == ".jsonl":
            return json_object, read_json_lines(self._table)
        columns, rows = read_csv(self._table)
        if "image" not in columns:
            there = ", ".join(map(repr, columns))[:100]
            raise DataError(
                f"{self._table} has no column 'image' (its first row: {there}); name the columns there, with commas "
                "between them"
            )
        return partial(named, columns), rows

    def _checked(self, number: int, parse: Callable[[Any], Row], line: Any) -> _Row:
        """Raises ValueError with the reason a row is bad."""
        values, facts = _values(parse(line))
        if "image" not in values:
            raise ValueError(f"no 'image'; name a picture in {self.path}")
        stray = [name for name in _OF_PAIRS if name in values and "image_b" not in values]
        if stray:
            raise ValueError(f"{stray[0]!r} without 'image_b', the second picture it is about")
        files = [values[name] for name in ("image", "image_b") if name in values]
        for name in (*files, *values.get("masks", {}).values()):
            self._inside(name)
        return _Row(number, _tasks(values), values, facts)

    def _inside(self, name: str) -> Path:
        """A file of the folder, which may not be outside it: a table may come from anywhere."""
        path = self.path / name
        end = os.path.realpath(path)
        if Path(name).is_absolute() or not Path(end).is_relative_to(self._root):
            raise ValueError(f"{name!r} is outside {self.path}; copy the file into the folder")
        if not os.path.isfile(path):
            raise ValueError(f"no picture {name!r} in {self.path}")
        return path

    def _example(self, row: _Row, task: str) -> Example:
        values = row.values
        image = load_image(self._inside(values["image"]), "picture")
        masks = {name: self._mask(name, file, image) for name, file in values.get("masks", {}).items()}
        question = values.get("question", "")
        wording = {
            "class": prompts.CLASS_PROMPT,
            "caption": prompts.CAPTION_PROMPT,
            "vqa": prompts.QUESTION_PROMPT,
        }
        prompt = values.get("prompt") or wording[task].replace("{question}", question)
        answers = values[_ANSWERS[task]]
        return Example(
            image=image,
            prompt=prompt if "<image>" in prompt else "<image>" + prompt,
            answers=answers,
            task=task,
            id=f"{row.number}-{task}" if len(row.tasks) > 1 else str(row.number),
            label=answers[0] if task == "class" else None,
            meta={**row.facts, **values, **({"masks": masks} if masks else {})},
        )

    def _mask(self, name: str, file: str, image: Image.Image) -> Bool[np.ndarray, "height width"]:
        mask = load_mask(self._inside(file), f"mask of {name!r}")
        if mask.shape != image.size[::-1]:
            raise ValueError(
                f"the mask of {name!r} is {mask.shape[1]}x{mask.shape[0]}, its picture {image.width}x{image.height}"
            )
        return mask


def _values(row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of a row that are filled: those with a meaning here, read; and the others as they are."""
    values: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for column, value in row.items():
        name = _ALSO.get(column, column)
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            continue
        if name not in _READERS:
            near = "" if "_" in column else did_you_mean(column.lower(), [*_READERS, *_ALSO], cutoff=0.8)
            if near:
                raise ValueError(f"unknown column {column!r}{near}")
            facts[column] = value
        elif name in values:
            other = next(short for short, long in _ALSO.items() if long == name)
            raise ValueError(f"both {name!r} and {other!r}; keep one")
        else:
            try:
                values[name] = _READERS[name](value)
            except ValueError as error:
                raise ValueError(f"{column!r} is {error}") from error
    return values, facts


def _tasks(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks a row is for."""
    able, only = [task for task, column in _ANSWERS.items() if column in values], values.get("task")
    if only is not None and only not in _ANSWERS:
        raise ValueError(f"unknown task {only!r}; use {', '.join(_ANSWERS)}")
    if only is not None and only not in able:
        raise ValueError(f"no {_ANSWERS[only]!r}, which task {only} needs")
    tasks = tuple(able) if only is None else (only,)
    if not tasks:
        raise ValueError(f"no {' or '.join(map(repr, _ANSWERS.values()))}, so there is no right answer")
    if only is None and "question" in values and "vqa" not in tasks:
        raise ValueError("a 'question' without 'answers'")
    prompt = values.get("prompt")
    if "vqa" in tasks and "question" not in values and prompt is None:
        raise ValueError("no 'question', which task vqa needs")
    if prompt is not None and len(tasks) > 1:
        raise ValueError(f"one 'prompt' for {' and '.join(tasks)}; say in 'task' which it is for")
    asked = [prompt] if prompt is not None else [values["question"]] if "vqa" in tasks else []
    if any(words.count("<image>") > 1 for words in asked):
        raise ValueError("more than one <image> for one picture")
    return tasks


def _text(value: Any) -> str:
    """The text of a cell. Raises ValueError, with what it is instead."""
    if not isinstance(value, str):
        kind = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
        raise ValueError(f"{kind.get(type(value), 'a number')}, not text")
    return plain(value)


def _names(value: Any, numbers: tuple[type, ...] = (int, float)) -> tuple[str, ...]:
    """One text or several: a list, a list as JSON, or with ``|`` between them; ``numbers`` count as text."""
    if isinstance(value, str) and value.strip().startswith("["):
        with suppress(ValueError, RecursionError):  # a text may begin with a bracket
            value = json.loads(value)
    parts = value if isinstance(value, list) else value.split("|") if isinstance(value, str) else [value]
    texts = [str(p) if isinstance(p, numbers) and not isinstance(p, bool) else _text(p) for p in parts]
    names = tuple(text.strip() for text in texts if text.strip())
    if not names or (isinstance(value, list) and len(names) < len(texts)):
        raise ValueError("a list with an empty text")
    return names


def _files(value: Any) -> dict[str, str]:
    """Names of files by name of object."""
    try:
        files = json_object(value) if isinstance(value, str) else value
    except ValueError:
        files = None
    if not isinstance(files, dict):
        raise ValueError('not a JSON object of files: give {"cup": "cup-mask.png"}')
    return {_text(name): _text(file) for name, file in files.items()}


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "image": _text,
    "image_b": _text,
    "answers_b": _names,
    "differ": _text,
    "task": _text,
    "prompt": _text,
    "question": _text,
    "answers": _names,
    "captions": _names,
    "label": _names,
    "objects": partial(_names, numbers=()),
    "masks": _files,
}
