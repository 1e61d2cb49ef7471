"""The result of a verification, as one JSON file made to be shared: no path, user or machine is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gatelens.atomic_files import readable, write_atomic
from gatelens.errors import OutputError
from gatelens.verification.row import FAIL, NOT_APPLICABLE, PASS, Row
from gatelens.verification.text import as_markdown, as_text

FORMAT, VERSION = "gatelens verification", 1
FILE = "verify.json"
_MOST = 1 << 20  # bytes that are read of a file from elsewhere


@dataclass(frozen=True)
class Verification:
    """Facts of the model, the checks, and the paper's table where it was asked for.

    Attributes:
        facts: model, revision, weights, dtype, device, quantisation, versions, tokens of a prompt.
        rule: what counts as equal.
        rows: the checks, in order.
        planned: how many there are when it is finished.
        paper: ``source``, ``note`` and ``cells`` of the published table next to measured numbers; empty without one.
        created: when it began, UTC.

    Example:
        >>> from gatelens.verification.row import Row
        >>> row = Row("parity", "logits", "next-token logits", "pass", measured=1e-6, bound=1e-5)
        >>> result = gl.Verification({"model": "mine"}, "within rounding", [row], planned=1)
        >>> result.passed, result.count("pass")
        (True, 1)
    """

    facts: Mapping[str, Any]
    rule: str
    rows: Sequence[Row] = ()
    planned: int = 0
    paper: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""

    @property
    def finished(self) -> bool:
        """Whether every check has an outcome, and there is one at all."""
        return len(self.rows) >= max(1, self.planned)

    @property
    def passed(self) -> bool:
        """Whether it is finished and no check failed."""
        return self.finished and not self.count(FAIL)

    def count(self, status: str) -> int:
        """How many checks have this outcome."""
        return sum(row.status == status for row in self.rows)

    @property
    def table(self) -> pd.DataFrame:
        """``group, name, what, status, reason, measured, bound, effect, seconds``, one row per check."""
        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(Row.__dataclass_fields__))

    @property
    def headline(self) -> str:
        """The result in one line."""
        n, failed, skipped = len(self.rows), self.count(FAIL), self.count(NOT_APPLICABLE)
        parts = [f"{self.count(PASS)} of {self.planned} checks pass"]
        parts += [f"{failed} fail"] if failed else []
        parts += [f"{skipped} not applicable"] if skipped else []
        parts += [f"{self.planned - n} not run yet"] if n < self.planned else []
        return ", ".join(parts)

    def as_json(self) -> str:
        """The file."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "created": self.created,
            "finished": self.finished,
            "passed": self.passed,
            "facts": dict(self.facts),
            "rule": self.rule,
            "planned": self.planned,
            "checks": [{k: _number(v) for k, v in asdict(row).items()} for row in self.rows],
            "paper": dict(self.paper),
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``verify.json`` into a folder."""
        write_atomic(Path(folder) / FILE, self.as_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Verification:
        """Read a file, or that of a folder.

        Raises:
            OutputError: it is not there, damaged, or of another version.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        with readable(file):
            if not file.is_file():
                raise OutputError(f"there is no file {str(file)!r}; give one that gatelens verify wrote")
            with open(file, "rb") as opened:
                raw = opened.read(_MOST + 1)
        try:
            content = json.loads(raw.decode()) if len(raw) <= _MOST else None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise OutputError(f"{str(file)!r} is not a result of gatelens verify; give its {FILE}")
        if content.get("version") != VERSION:
            raise OutputError(
                f"{str(file)!r} has version {content.get('version')!r:.20} of the format, and this gatelens reads "
                f"{VERSION}; update the older of the two, or run verify again"
            )
        try:
            result = _read(content)
            as_text(result), as_markdown(result)  # whatever is shown of it is there
            return result
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{str(file)!r} is damaged ({error!r:.80}); run verify again") from error

    def __str__(self) -> str:
        return as_text(self)


def _number(value: Any) -> Any:
    """JSON has no infinity, which represents a NaN in a comparison: 1e308 is as large."""
    return 1e308 if isinstance(value, float) and not value < 1e308 else value


def _read(content: Mapping[str, Any]) -> Verification:
    rows = [_row(one) for one in content["checks"]]
    facts, paper = dict(content["facts"]), dict(content["paper"])
    planned = int(content["planned"])
    created, rule = _printable(str(content["created"])), _printable(str(content["rule"]))
    return Verification(_cleaned(facts), rule, rows, planned, _cleaned(paper), created)


def _row(one: Mapping[str, Any]) -> Row:
    row = Row(**{name: _cleaned(one[name]) for name in Row.__dataclass_fields__})
    if row.status not in (PASS, FAIL, NOT_APPLICABLE):
        raise ValueError(f"status {row.status!r:.20}")
    for value in (row.measured, row.bound, row.effect, row.seconds):
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"number {value!r:.20}")
    if not all(isinstance(text, str) for text in (row.group, row.name, row.what, row.reason)):
        raise ValueError("a check without words")
    return row


def _cleaned(value: Any) -> Any:
    """A value of a file from elsewhere, without characters that move a terminal's cursor."""
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, dict):
        return {_printable(str(key)): _cleaned(one) for key, one in value.items()}
    return [_cleaned(one) for one in value] if isinstance(value, list) else value


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
