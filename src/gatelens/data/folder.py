"""A user's own folder: pictures and one table of text, ``data.csv`` or ``data.jsonl``.

Columns: ``image`` (a file in the folder), ``task`` (class, vqa or caption; may be left out when it shows from
the columns), ``question`` (vqa), ``answer`` or ``answers`` (vqa; several as a JSON list or separated by ``|``),
``caption`` or ``captions``, ``label`` (class), and ``prompt`` to replace the default wording.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gatelens.data import prompts
from gatelens.data.base import Example, check_drawn, note_bad_row
from gatelens.data.json_lines import read_json_lines, read_text
from gatelens.errors import DataError, InputError
from gatelens.pictures import load_image

Result = TypeVar("Result")
TABLES = ("data.csv", "data.jsonl")
_ANSWER_COLUMNS = {
    "class": ("label",),
    "vqa": ("answers", "answer"),
    "caption": ("captions", "caption"),
}


class Folder:
    """Examples from a folder. The table is checked whole when it is opened; pictures when they are used.

    With ``skip_bad`` bad rows are left out and listed in ``skipped`` instead of being an error.
    """

    def __init__(self, path: str | Path, skip_bad: bool = False):
        self.path = Path(path)
        self.name = self.path.name
        self.skip_bad = skip_bad
        self.skipped: list[dict[str, Any]] = []
        table = next((self.path / t for t in TABLES if (self.path / t).exists()), None)
        if table is None:
            raise DataError(f"{self.path} has no {' or '.join(TABLES)}; put one beside the pictures")
        self._table = table
        checked = [self._unless_bad(number, self._check, number, row) for number, row in _read(table)]
        self._rows = [row for row in checked if row is not None]
        self.tasks = tuple(t for t in _ANSWER_COLUMNS if any(r["task"] == t for r in self._rows))
        labels = {r["answers"][0] for r in self._rows if r["task"] == "class"}
        self.classes: tuple[str, ...] = tuple(sorted(labels))

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Example]:
        """The task's rows, ``limit`` of them drawn by ``seed``, in the table's order.

        Raises:
            DataError: no row has this task, or a picture cannot be read (named with its row).
        """
        check_drawn(self.name, limit, seed)
        rows = [r for r in self._rows if r["task"] == task]
        if not rows:
            raise DataError(
                f"{self._table} has no row for task {task!r}; it has {', '.join(self.tasks) or 'none'}"
            )
        if limit is not None and limit < len(rows):
            chosen = sorted(np.random.default_rng(seed).permutation(len(rows))[:limit])
            rows = [rows[i] for i in chosen]
        examples = [self._unless_bad(r["number"], self._example, r) for r in rows]
        return [e for e in examples if e is not None]

    def _unless_bad(self, number: int, make: Callable[..., Result], *arguments: Any) -> Result | None:
        """What ``make`` makes of a row; None when the row is bad and bad rows are left out."""
        try:
            return make(*arguments)
        except DataError as error:
            if not self.skip_bad:
                raise
            note_bad_row(self.skipped, self.name, number, str(error))
            return None

    def _check(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        where = f"{self._table.name} row {number}"
        if not row.get("image"):
            raise DataError(f"{where} has no 'image'; name a picture in {self.path}")
        if not (self.path / str(row["image"])).is_file():
            raise DataError(f"{where}: no picture {row['image']!r} in {self.path}")
        task = row.get("task") or _guess_task(row)
        if task not in _ANSWER_COLUMNS:
            raise DataError(f"{where}: unknown task {task!r}; use {', '.join(_ANSWER_COLUMNS)}")
        answers = next((_listed(row[c]) for c in _ANSWER_COLUMNS[task] if row.get(c)), ())
        if not answers:
            raise DataError(
                f"{where} has no {' or '.join(map(repr, _ANSWER_COLUMNS[task]))}, which task {task} needs"
            )
        if task == "vqa" and not (row.get("question") or row.get("prompt")):
            raise DataError(f"{where} has no 'question', which task vqa needs")
        return {**row, "task": task, "answers": answers, "number": number}

    def _example(self, row: dict[str, Any]) -> Example:
        task = row["task"]
        default = {
            "class": prompts.CLASS_PROMPT,
            "caption": prompts.CAPTION_PROMPT,
            "vqa": prompts.QUESTION_PROMPT.format(question=row.get("question")),
        }[task]
        prompt = row.get("prompt") or default
        path = self.path / row["image"]
        try:
            image = load_image(path)
        except InputError:
            raise DataError(
                f"{self._table.name} row {row['number']}: {path} is no readable picture; replace it or remove the row"
            ) from None
        return Example(
            image=image,
            prompt=prompt if "<image>" in prompt else "<image>" + prompt,
            answers=row["answers"],
            task=task,
            id=str(row["number"]),
            label=row["answers"][0] if task == "class" else None,
            meta={k: v for k, v in row.items() if k not in ("answers", "number")},
        )


def _read(table: Path) -> list[tuple[int, dict[str, Any]]]:
    """(row number, row) pairs; numbers count from 1 as a person would, the header of a CSV not counted."""
    if table.suffix == ".csv":
        return list(enumerate(csv.DictReader(read_text(table).splitlines()), start=1))
    return read_json_lines(table, line_word="row")


def _guess_task(row: dict[str, Any]) -> str:
    if row.get("question"):
        return "vqa"
    if row.get("caption") or row.get("captions"):
        return "caption"
    return "class"


def _listed(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(str(v) for v in value)
    text = str(value).strip()
    if text.startswith("["):
        try:
            return tuple(str(v) for v in json.loads(text))
        except json.JSONDecodeError:
            pass
    return tuple(part.strip() for part in text.split("|") if part.strip())
