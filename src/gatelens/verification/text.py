"""A verification as text: for a terminal, line by line, and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from gatelens.verification.row import NOT_APPLICABLE, Row

WIDTH = 100
_SHORT = {NOT_APPLICABLE: "n/a"}
_OF_MODEL = ("model", "revision", "class", "family", "weights", "fingerprint")
_OF_RUN = ("dtype", "device", "quantisation", "prompts")


class Shown(Protocol):
    """What is shown of a verification; see :class:`gatelens.verification.result.Verification`."""

    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def rule(self) -> str: ...
    @property
    def rows(self) -> Sequence[Row]: ...
    @property
    def paper(self) -> Mapping[str, Any]: ...
    @property
    def created(self) -> str: ...
    @property
    def headline(self) -> str: ...


def value(number: float | None) -> str:
    """A measured number: counts as they are, distances with two digits."""
    if number is None:
        return "–"
    if number >= 1e300:
        return "NaN"
    return str(int(number)) if float(number).is_integer() and number < 1e6 else f"{number:.2g}"


def numbers(row: Row) -> str:
    """``1.2e-06 ≤ 9.5e-06``: measured against its bound."""
    if row.measured is None or row.bound is None:
        return ""
    return f"{value(row.measured)} {'≤' if row.measured <= row.bound else '>'} {value(row.bound)}"


def line(row: Row) -> str:
    """A check as one line, with its reason below where it does not pass."""
    head = f"{_SHORT.get(row.status, row.status).upper():4}  {row.group}: {row.name}"
    shown = f"{head:<50}{numbers(row):>22}{row.seconds:>8.1f} s"
    if row.status == "pass":
        return shown.rstrip()
    fold = textwrap.TextWrapper(
        WIDTH, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
    )
    return "\n".join([shown.rstrip(), *fold.wrap(row.reason)])


def facts(result: Shown) -> Iterator[tuple[str, str]]:
    """Name and value of what is known of the model, in order; tokens and versions apart."""
    for name in (*_OF_MODEL, *_OF_RUN):
        if result.facts.get(name):
            yield name, str(result.facts[name])
    versions = result.facts.get("versions") or {}
    yield "versions", ", ".join(f"{name} {number}" for name, number in dict(versions).items())
    yield "began", result.created


def heading(result: Shown) -> str:
    """The facts, and who is where in a prompt, for a terminal."""
    fold = textwrap.TextWrapper(WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False)
    lines = [text for name, words in facts(result) for text in fold.wrap(f"{name:14}{words}")]
    return "\n".join([*lines, "", *_columns(result.facts.get("tokens") or {})])


def _columns(tokens: Mapping[str, Any]) -> list[str]:
    table = [[str(cell) for cell in row] for row in (tokens.get("header", ()), *tokens.get("rows", ()))]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]


def paper_lines(paper: Mapping[str, Any]) -> list[str]:
    """The published table next to what was measured."""
    if not paper.get("cells"):
        return [str(paper["source"])] if paper else []
    cells = [
        [c["row"], c["column"], value(c["published"]), _measured(c), c["verdict"]] for c in paper["cells"]
    ]
    rows = [["cut", "metric", "published", "measured", "verdict"], *cells]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    shown = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [str(paper["source"]), *shown]


def _measured(cell: Mapping[str, Any]) -> str:
    if cell.get("mean") is None:
        return "–"
    return f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}], n = {cell['n']}"


def as_text(result: Shown) -> str:
    """The whole of it for a terminal."""
    lines = [heading(result), "", *map(line, result.rows)]
    if result.paper:
        lines += ["", *paper_lines(result.paper)]
    return "\n".join([*lines, "", result.headline])


def as_markdown(result: Shown) -> str:
    """The whole of it as Markdown."""
    parts = [
        f"# gatelens verify: {_md(str(result.facts.get('model', '')))}",
        "",
        f"**{_md(result.headline)}.**",
        "",
    ]
    parts += [f"- {name}: {_md(words)}" for name, words in facts(result)]
    tokens = result.facts.get("tokens") or {}
    parts += ["", "## A prompt", "", *_md_table(tokens.get("header", ()), tokens.get("rows", ()))]
    rows = [
        (
            r.status,
            f"{r.group}: {r.name}",
            r.what,
            value(r.measured),
            value(r.bound),
            value(r.effect),
            r.reason,
        )
        for r in result.rows
    ]
    header = ("", "check", "what is compared", "measured", "bound", "effect", "reason")
    parts += ["", "## Checks", "", *_md_table(header, rows), "", f"Equal means {_md(result.rule)}."]
    if result.paper.get("cells"):
        published = [
            (c["row"], c["column"], value(c["published"]), _measured(c), c["verdict"], c["reason"])
            for c in result.paper["cells"]
        ]
        columns = ("cut", "metric", "published", "measured", "verdict", "reason")
        parts += [
            "",
            "## The paper's table",
            "",
            *_md_table(columns, published),
            "",
            _md(str(result.paper["source"])),
        ]
    return "\n".join(parts) + "\n"


def _md_table(header: Any, rows: Any) -> list[str]:
    lines = [[_md(str(cell)) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(row)} |" for row in lines]


def _md(text: str) -> str:
    for mark in "\\|<>*`[]":
        text = text.replace(mark, "\\" + mark)
    return text
