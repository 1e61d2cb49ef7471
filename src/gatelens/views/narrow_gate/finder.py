"""The search for a gate that is told no names, on the page."""

from __future__ import annotations

from gatelens.plots import card
from gatelens.runs import Run
from gatelens.studies.narrow_gate.finder import NAME, found_in
from gatelens.views.gate_finder.cards import cards as cards_of

TITLE = "Every position, ranked by what it does"


def cards(run: Run) -> list[card.Card]:
    """Figures and table of the search; why there was none where it could not be done."""
    if not run.done(NAME):
        return []
    found = found_in(run)
    if found is None:
        reason = f"Nothing was searched: {run.json(NAME)['why_not']}."
        return [card.Card(TITLE, [card.Table(["gate finder"], [["not run"]], reason)])]
    return cards_of(found, NAME, TITLE, say=True)
