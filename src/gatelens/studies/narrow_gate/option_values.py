"""What an option of a section may be, checked before a model is loaded or a folder opened."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gatelens.errors import DataError
from gatelens.studies.narrow_gate.steering import doses_of

Rule = tuple[str, Callable[[Any], bool]]


def whole(value: Any, least: int) -> bool:
    """Whether it is a whole number, and not below ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _whole(least: int) -> Rule:
    return f"a whole number, {least} or more", lambda value: whole(value, least)


def _or_none(rule: Rule) -> Rule:
    says, fits = rule
    return f"{says}, or null", lambda value: value is None or fits(value)


def _share(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _pairs(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list | tuple) and all(
        isinstance(p, str) or (isinstance(p, list | tuple) and all(isinstance(name, str) for name in p))
        for p in value
    )


RULES: dict[str, Rule] = {
    "window": _or_none(_whole(1)),
    "step": _or_none(_whole(1)),
    "every": _or_none(_whole(1)),
    "classes": _or_none(_whole(2)),
    "k": _whole(1),
    "folds": _whole(2),
    "layers": _whole(0),
    "extra": _whole(0),
    "refine": _whole(0),
    "least": ("a number, 0 or more", _share),
    "times": ("a number, 0 or more", _share),
    "by": _or_none(("a name", lambda value: isinstance(value, str))),
    "pairs": _or_none(("class pairs, as 'cat-dog,fox-pig'", _pairs)),
}


def check_value(section: str, option: str, value: Any) -> None:
    """Refuse what an option cannot be; those that begin with ``n`` count examples.

    Raises:
        DataError: a value of another kind, or out of range.
    """
    if option == "doses":
        doses_of(value)
        return
    says, fits = _whole(0) if option.startswith("n") else RULES[option]
    if not fits(value):
        raise DataError(f"option {section}.{option}={value!r}: give {says}")
