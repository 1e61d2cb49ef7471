"""A verification as a page that needs no network, and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gatelens.atomic_files import write_atomic
from gatelens.plots.card import Block, Card, Cell, Table, Text
from gatelens.plots.page import Page, Verdict, render
from gatelens.verification.result import Verification
from gatelens.verification.row import FAIL, NOT_APPLICABLE, PASS, Row
from gatelens.verification.text import as_markdown, facts, numbers, value

GROUPS = {
    "tokens": "Which positions are the picture",
    "parity": "The same numbers as transformers",
    "interventions": "Interventions against torch hooks",
    "traps": "What goes wrong in silence",
}

_MARKS = {PASS: "✓ pass", FAIL: "✗ fail", NOT_APPLICABLE: "– n/a"}


def page_of(result: Verification) -> Page:
    """The page."""
    model = str(result.facts.get("model", ""))
    lead: list[str | tuple[str, str]] = [
        "verify",
        ("model", model),
        ("dtype", str(result.facts.get("dtype", ""))),
    ]
    lead += [("device", str(result.facts.get("device", ""))), result.created[:10]]
    groups = {row.group: [r for r in result.rows if r.group == row.group] for row in result.rows}
    cards = [
        Card(GROUPS.get(g, g), _blocks(rows), name=g, short=g.capitalize(), finding=_counted(rows))
        for g, rows in groups.items()
    ]
    cards.append(_prompt(result))
    if result.paper:
        cards.append(_paper(result))
    return Page(
        title=f"verify · {model}",
        lead=lead,
        verdicts=[Verdict(_headline(result), _sentence(result), tone=_tone(result))],
        cards=cards,
        method={
            "equal": f"{result.rule}.",
            "effect": "What the edit does to the logits of plain transformers: the largest difference.",
        },
        facts=list(facts(result)),
    )


def _headline(result: Verification) -> str:
    if result.count(FAIL):
        return "does not run as in transformers"
    return "runs as in transformers" if result.finished else "not finished"


def _sentence(result: Verification) -> str:
    failed = ", ".join(f"{row.group}: {row.name}" for row in result.rows if row.status == FAIL)
    return f"{result.headline}." + (f" Failed: {failed}." if failed else "")


def _tone(result: Verification) -> str:
    return "gate" if result.count(FAIL) else "image" if result.finished else "none"


def _counted(rows: list[Row]) -> str:
    ran = [r for r in rows if r.status != NOT_APPLICABLE]
    failed = [r.name for r in ran if r.status == FAIL]
    text = f"{len(ran) - len(failed)} of {len(ran)} pass"
    if len(ran) < len(rows):
        text += f", {len(rows) - len(ran)} not applicable"
    return f"{text}; failed: {', '.join(failed)}" if failed else text


def _blocks(rows: list[Row]) -> list[Block]:
    lines: list[list[Cell]] = [
        [row.name, _MARKS[row.status], (row.what, row.reason), numbers(row), value(row.effect)]
        for row in rows
    ]
    return [Table(["check", "", "what is compared", "measured, bound", "effect"], lines)]


def _prompt(result: Verification) -> Card:
    tokens: dict[str, Any] = dict(result.facts.get("tokens") or {})
    header, rows = tokens.get("header", []), tokens.get("rows", [])
    table = Table(header, [[str(cell) for cell in row] for row in rows], code=header[3:4])
    return Card("Who is where in a prompt", [table], name="prompt", short="Prompt")


def _paper(result: Verification) -> Card:
    cells = result.paper["cells"]
    rows: list[list[Cell]] = [
        [
            c["row"],
            c["column"],
            value(c["published"]),
            "–"
            if c["mean"] is None
            else (f"{c['mean']:.2f}", f"{c['low']:.2f} – {c['high']:.2f}, n = {c['n']}"),
            c["verdict"],
            c["reason"],
        ]
        for c in cells
    ]
    header = ["attention cut", "metric", "published", "measured", "", "why"]
    blocks: list[Block] = [Text(f"{result.paper['source']}. {result.paper['note']}")]
    if cells:
        blocks.append(Table(header, rows))
    counts = {verdict: sum(c["verdict"] == verdict for c in cells) for verdict in ("agrees", "differs")}
    finding = ", ".join(f"{n} {word}" for word, n in counts.items()) if cells else "none known"
    return Card("The paper's table beside this model", blocks, name="paper", short="Paper", finding=finding)


def write_pages(result: Verification, folder: Path) -> None:
    """``verify.md`` and ``verify.html``."""
    write_atomic(folder / "verify.md", as_markdown(result).encode())
    write_atomic(folder / "verify.html", render(page_of(result)).encode())
