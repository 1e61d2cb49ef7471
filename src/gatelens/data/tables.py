"""Tables that people write, CSV and JSON lines: every row with its number, every fault in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gatelens.errors import DataError

Row = dict[str, Any]


def read_csv(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Columns, and the rows that are not empty with their numbers, as a spreadsheet counts them below the header.

    Raises:
        DataError: the file cannot be read, or two columns have one name.
    """
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    number = 0
    try:
        columns = [name.strip() for name in next(reader, [])]
        for number, cells in enumerate(reader, start=1):
            if any(cells):
                rows.append((number, cells))
    except csv.Error as error:
        raise DataError(
            f"{file.name} row {number + 1} cannot be read ({error}); is a quotation mark missing?"
        ) from error
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file.name} has two columns {twice!r}; rename one")
    return columns, rows


def named(columns: Sequence[str], cells: Sequence[str]) -> Row:
    """The cells of a row by column.

    Raises:
        ValueError: a cell that has no column.
    """
    row = dict(zip(columns, cells, strict=False))
    if any(cells[len(columns) :]) or row.get(""):
        raise ValueError(
            f"{len(cells)} cells for {sum(map(bool, columns))} columns; put text with commas in quotes"
        )
    return row


def read_json_lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers, counted from 1.

    Raises:
        DataError: the file cannot be read.
    """
    lines = read_text(file).split("\n")  # and at nothing else: other line separators may stand in a JSON text
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def json_object(line: str) -> Row:
    """The object on a line.

    Raises:
        ValueError: there is none, or one that is not plain JSON.
    """
    try:
        value = json.loads(line, parse_constant=_not_json, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({getattr(error, 'msg', error)})") from error
    if not isinstance(value, dict):
        raise ValueError('not a JSON object: give {"column": value, ...} on each line')
    return value


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _each_once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(name for name in row if sum(name == other for other, _ in pairs) > 1)
        raise ValueError(f"{twice!r} twice in an object")
    return row


def plain(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: it holds what cannot be written as UTF-8, or a NUL.
    """
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("text with a NUL or an unpaired surrogate")
    return text


def read_text(file: Path) -> str:
    """The text of a table, with or without a byte-order mark.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        content = file.read_bytes()
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} line {line}: byte {content[error.start]:#04x} is not UTF-8; save the table as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from error
