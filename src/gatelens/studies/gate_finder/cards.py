"""A gate search as cards of a page: its own, and that of a study in which it is a section."""

from __future__ import annotations

from functools import partial

from gatelens.plots.card import Block, Card, Chart, Table
from gatelens.studies.gate_finder.figures import gate_figure, gate_layers
from gatelens.studies.gate_finder.result import SearchResult
from gatelens.studies.gate_finder.tables import GATE_MARK, heading

SHOWN = 12  # positions in the table
WORDS = {
    "candidates": "Every position from the first to the last at which the model’s input differs between pictures (the "
    "picture), and every position between it and the last of the prompt, which answers. What tokens are called plays "
    "no part in finding them.",
    "attention it gets": "The mean attention a position gets from those after the picture that can read it, all "
    "heads, as a share of what all candidates get, mean over layers.",
    "overlap with the classes": "The share of the nearest neighbours of a position’s residual stream that show the "
    "same class, at its best layer. It says that the class can be read there, not that anything reads it.",
    "a position cut": "Nothing after the picture and after the position reads it, in any layer or head; positions of "
    "the picture still read each other. Lost are accuracy, and log-probability of the right answer (nats).",
    "a position patched": "Its residual stream entering every layer comes from an example of another class. Flips: "
    "answers that become that example’s, of those pairs whose answers differ. Overlap: Σ min(p, q) with its answer.",
    "smallest set": "Positions are cut jointly, each time the one that leaves the lowest log-probability; the order is "
    "found on one half of the examples. Share, size and intervals come from the other half: the share of the right "
    "answer’s probability between the unmodified model and one with the whole picture cut off (at least chance). It is "
    "the smallest set on that one path, so its size is an upper bound: another set of fewer positions may carry as "
    "much. The interval of the size is over examples, along that path.",
}


def search_cards(result: SearchResult, name: str, title: str, say: bool = False) -> list[Card]:
    """Figures, named from ``name`` on, and the strongest positions; ``say`` adds the search's own sentence."""
    shown = (
        "Above: every candidate’s measures in the order of the prompt, whiskers 95 % intervals over "
        "examples; orange is a narrow gate. Below: how much is gone when so many positions are cut together."
    )
    caption = f"{result.verdict['sentence']} {shown}" if say else shown
    blocks: list[Block] = [Chart(name, partial(gate_figure, result), caption)]
    if len(result.layers):
        who = (
            "The gate’s residual stream entering one layer is another picture’s: where it carries the picture."
            if result.gate
            else "There is no narrow gate; patched here, one layer at a time, is what comes nearest to one."
        )
        blocks.append(Chart(f"{name}_layers", partial(gate_layers, result), who))
    blocks.append(_strongest(result))
    return [Card(title, blocks, WORDS)]


def _strongest(result: SearchResult) -> Table:
    top = result.ranking().head(SHOWN).place.tolist()
    part = result.measures[result.measures.place.isin(top)]
    part = part.sort_values("place", key=lambda column: column.map(top.index), kind="stable")
    names = {}
    for place in (result.places[p] for p in top):
        mark = f"{GATE_MARK} " if place in result.gate else ""
        role = "" if place.in_picture else f", {place.role}"
        names[place.number] = (f"{mark}{place.name}", f"position {place.position}{role}")
    marked = f"; {GATE_MARK} belongs to the gate" if result.gate else ""
    caption = (
        f"The strongest {len(top)} of {len(result.places)} candidates by nats lost when cut "
        f"({result.settings['how'][0]}){marked}. Small: 95 % intervals. Positions of blocks of the "
        "picture that do nothing as a whole were not cut and patched one by one."
    )
    return Table.from_means(
        part,
        rows="place",
        columns="measure",
        corner="position",
        headings={m: heading(m).replace(": ", ":\n") for m in part.measure},
        names=names,
        count=False,
        caption=caption,
    )
