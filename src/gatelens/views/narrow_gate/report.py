"""The report page of the narrow-gate study, rendered from the run's tables alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from gatelens.data.base import kind
from gatelens.plots import card, page, templating
from gatelens.runs import Run
from gatelens.studies.narrow_gate.reference import reference_for
from gatelens.views.narrow_gate.cards import cards
from gatelens.views.narrow_gate.words import ALWAYS_SAID, METHOD


def figures(run: Run) -> dict[str, Callable[[bool], Figure]]:
    """The page's figures by file name.

    Raises:
        OutputError: the run lacks a finished table.
    """
    return {b.name: b.draw for one in cards(run) for b in one.blocks if isinstance(b, card.Chart)}


def render(run: Run, light: Mapping[str, bytes] | None = None) -> str:
    """The page as HTML. ``light``: the figures on light ground as PNG, where they are drawn already.

    Raises:
        OutputError: the run lacks a finished table.
    """
    found = cards(run)
    settings = run.manifest["settings"]
    words = {term: text for one in found for term, text in one.words.items()}
    words |= {term: METHOD[term] for term in ALWAYS_SAID}
    return templating.template("narrow_gate.html.j2").render(
        css=templating.css(),
        settings=settings,
        created=run.manifest["created"][:10],
        verdict=run.json("verdict"),
        reference=reference_for(str(settings.get("model", ""))),
        cards=found,
        absent=run.json("absent") if run.done("absent") else [],
        figures=page.chart_pictures(figures(run), light),
        tokens=run.json("tokens"),
        examples=[_marked(e) for e in run.json("examples")],
        method=list(words.items()),
        facts=page.facts(run.manifest),
    )


def _marked(example: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for r in example["rows"]:
        if kind(example["task"]) == "caption":
            mark, tone = f"{r['score']:.2f}", "soft"
        else:
            mark, tone = ("right", "right") if r["score"] >= 0.5 else ("wrong", "wrong")
        rows.append({**r, "mark": mark, "tone": tone})
    return {**example, "rows": rows}
