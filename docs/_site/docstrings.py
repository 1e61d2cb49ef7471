"""How docstrings are read: types stand in signatures alone, and each name has its own entry."""

from __future__ import annotations

import re
from typing import Any

from sphinx.ext.napoleon.docstring import GoogleDocstring


def without_types() -> None:
    """Let Napoleon read what comes before a colon in ``Returns:`` or in a property's docstring as text, no type."""
    GoogleDocstring._consume_returns_section = _returned  # type: ignore[method-assign]
    GoogleDocstring._consume_inline_attribute = _said_of_attribute  # type: ignore[method-assign]


def _returned(doc: Any, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:
    lines = doc._dedent(doc._consume_to_next_section())
    return [("", "", lines)] if lines else []


def _said_of_attribute(doc: Any) -> tuple[str, list[str]]:
    lines = [doc._lines.next(), *doc._dedent(doc._consume_to_end())]
    return "", type(doc)(lines, doc._config).lines()


def one_name_each(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """``:ivar a, b: text`` as one entry for each name; Sphinx takes all but the last for a type.

    A name that ends in an underscore would be a reference, and lose it.
    """
    split: list[str] = []
    while lines:
        entry = [lines.pop(0)]
        found = re.match(r":(ivar|param) ((?:\w+, )*\w+): ?(.*)$", entry[0])
        while found and lines and (not lines[0] or lines[0].startswith(" ")):
            entry.append(lines.pop(0))
        for each in found[2].split(", ") if found else ():
            escaped = re.sub("_$", r"\\_", each)
            split += [f":{found[1]} {escaped}: {found[3]}", *entry[1:]]
        split += [] if found else entry
    lines[:] = split


def as_read(doc: str, what: str) -> list[str]:
    """What Sphinx gets of a docstring, as lines of reStructuredText; ``what`` is ``function``, ``property`` …"""
    without_types()
    lines = GoogleDocstring(doc, what=what).lines()
    one_name_each(None, what, "", None, None, lines)
    return lines
