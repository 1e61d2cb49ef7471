"""The sections of the page, in order; each file of this folder named here has ``cards(run)``."""

from __future__ import annotations

from gatelens.plots.card import Card
from gatelens.runs import Run
from gatelens.views.narrow_gate import (
    attention,
    drawing,
    finder,
    knockouts,
    meaning,
    modality_gap,
    patching,
    progressive,
    questions,
    steering,
)

SECTIONS = (
    knockouts,
    progressive,
    questions,
    attention,
    modality_gap,
    meaning,
    patching,
    finder,
    steering,
    drawing,
)


def cards(run: Run) -> list[Card]:
    """All cards of a run; sections it did not measure have none.

    Raises:
        OutputError: the run has no finished knockout table.
    """
    return [one for section in SECTIONS for one in section.cards(run)]
