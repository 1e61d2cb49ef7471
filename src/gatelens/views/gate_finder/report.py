"""The page of a find-gate run, rendered from its tables alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from gatelens.plots import card, page, templating
from gatelens.runs import Run
from gatelens.studies.gate_finder.result import GateSearch
from gatelens.views.gate_finder.cards import cards


def figures(run: Run) -> dict[str, Callable[[bool], Figure]]:
    """The page's figures by file name.

    Raises:
        OutputError: the run lacks a finished table.
    """
    return {b.name: b.draw for one in _cards(run) for b in one.blocks if isinstance(b, card.Chart)}


def render(run: Run, light: Mapping[str, bytes] | None = None) -> str:
    """The page as HTML. ``light``: the figures on light ground as PNG, where they are drawn already.

    Raises:
        OutputError: the run lacks a finished table.
    """
    found = _cards(run)
    return templating.template("find_gate.html.j2").render(
        css=templating.css(),
        settings=run.manifest["settings"],
        created=run.manifest["created"][:10],
        verdict=run.json("verdict"),
        cards=found,
        figures=page.drawn(figures(run), light),
        method=[(term, text) for one in found for term, text in one.words.items()],
        facts=page.facts(run.manifest),
    )


def _cards(run: Run) -> list[card.Card]:
    return cards(GateSearch.from_run(run), "gate", "The positions and what they carry")
