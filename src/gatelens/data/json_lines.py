"""JSON-lines tables, with every bad line named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gatelens.errors import DataError


def read_json_lines(file: Path, line_word: str = "line") -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers, counted from 1; empty lines are left out.

    Args:
        file: the table.
        line_word: what the error messages call a line.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    objects = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file.name} {line_word} {number} is no JSON: {error.msg}") from error
        if not isinstance(value, dict):
            raise DataError(f"{file.name} {line_word} {number} is no JSON object")
        objects.append((number, value))
    return objects


def read_text(file: Path) -> str:
    """The text of a table, with or without a byte-order mark.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
