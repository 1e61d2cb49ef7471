"""A gate search as cards of a page: its own, and that of a study in which it is a section."""

from __future__ import annotations

from gatelens.plots import card
from gatelens.studies.gate_finder.result import GateSearch
from gatelens.views.gate_finder.figures import gate_figure, gate_layers
from gatelens.views.gate_finder.tables import GATE_MARK, heading, numbers

SHOWN = 12  # positions in the table
WORDS = {
    "candidates": "Every position from the first to the last at which the model’s input differs between pictures (the "
    "picture), and every position between it and the last of the prompt, which answers. What tokens are called plays "
    "no part in finding them.",
    "attention it gets": "The mean attention a position gets from those behind the picture that can read it, all "
    "heads, as a share of what all candidates get, mean over layers.",
    "overlap with the classes": "The share of the nearest neighbours of a position’s residual stream that show the "
    "same class, at its best layer. It says that the class can be read there, not that anything reads it.",
    "a position cut": "Nothing behind the picture and behind the position reads it, in any layer or head; positions of "
    "the picture still read each other. Lost are accuracy, and log-probability of the right answer (nats).",
    "a position patched": "Its residual stream entering every layer comes from an example of another class. Flips: "
    "answers that become that example’s, of those pairs whose answers differ. Overlap: Σ min(p, q) with its answer.",
    "smallest set": "Positions are cut jointly, each time the one that leaves the lowest log-probability; the order is "
    "found on one half of the examples. Share, size and intervals come from the other half: the share of the right "
    "answer’s probability between the unmodified model and one with the whole picture cut off (at least chance).",
}


def cards(found: GateSearch, name: str, title: str, say: bool = False) -> list[card.Card]:
    """Figures (their names begin with ``name``) and the table of the strongest positions.

    ``say``: also the search's own sentence, where the page does not open with it.
    """
    shown = (
        "Above: every candidate’s measures in the order of the prompt, whiskers 95 % bootstrap intervals over "
        "examples; orange is a narrow gate. Below: how much is gone when so many positions are cut together."
    )
    caption = f"{found.verdict['sentence']} {shown}" if say else shown
    blocks: list[card.Block] = [card.Chart(name, lambda dark: gate_figure(found, dark), caption)]
    if len(found.layers):
        who = (
            "The gate’s residual stream entering one layer is another picture’s: where it carries the picture."
            if found.gate
            else "There is no narrow gate; patched here, one layer at a time, is what comes nearest to one."
        )
        blocks.append(card.Chart(f"{name}_layers", lambda dark: gate_layers(found, dark), who))
    blocks.append(_table(found))
    return [card.Card(title, blocks, WORDS)]


def _table(found: GateSearch) -> card.Table:
    measures = list(dict.fromkeys(found.measures.measure))
    top = found.ranking().head(SHOWN).place
    gate = {p.number for p in found.gate}
    rows: list[list[str | tuple[str, str]]] = []
    for place in top:
        one, cells = found.places[place], numbers(found, place)
        mark = f"{GATE_MARK} " if place in gate else ""
        where = f"position {one.position}" + ("" if one.in_picture else f", {one.role}")
        rows.append([(f"{mark}{one.name}", where), *(cells.get(measure, ("–", "")) for measure in measures)])
    heads = ["position", *(heading(measure).replace(": ", ":\n") for measure in measures)]
    marked = f"; {GATE_MARK} belongs to the gate" if gate else ""
    caption = (
        f"The strongest {len(rows)} of {len(found.places)} candidates by nats lost when cut "
        f"({found.settings['how'][0]}){marked}. Small: 95 % bootstrap intervals. Positions of blocks of the "
        "picture that do nothing as a whole were not cut and patched one by one."
    )
    return card.Table(heads, rows, caption)
