"""How scores become sets: rules tuned on the development split, kept in a file with the command that made them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatelens.atomic_files import write_atomic
from gatelens.bench.cases import Rule
from gatelens.errors import DataError

STORED = Path(__file__).with_name("rules.json")  # of the methods that are built in


def read_rules(file: str | os.PathLike[str] = STORED) -> dict[str, Rule]:
    """By method, the rule in a file of :func:`write_rules`; by default of the methods that are built in.

    Raises:
        DataError: no such file, or it holds something else.

    Example:
        >>> gl.bench.read_rules()["attention_share"]
        Rule(share=0.45, floor=0.0)
    """
    try:
        held = json.loads(Path(file).read_text(encoding="utf-8"))
        return {
            str(name): Rule(float(one["share"]), float(one["floor"])) for name, one in held["rules"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{str(file)!r} holds no rules ({type(error).__name__}: {error}): give the rules.json of a run with --tune"
        ) from error


def write_rules(file: str | os.PathLike[str], rules: Mapping[str, Rule], made: Mapping[str, Any]) -> None:
    """Keep rules with what they were made by.

    Raises:
        OutputError: the file can't be written.
    """
    held = {
        name: {"share": round(rule.share, 4), "floor": round(rule.floor, 6)} for name, rule in rules.items()
    }
    write_atomic(Path(file), (json.dumps({"made": dict(made), "rules": held}, indent=1) + "\n").encode())
