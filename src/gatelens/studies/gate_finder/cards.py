"""A gate search as cards of a page: its own, and that of a study in which it is a section."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd

from gatelens.plots.card import Block, Card, Chart, Table
from gatelens.plots.numbers import percent, percent_cell
from gatelens.plots.opening import BarTable, Diagram, Opening, Path, Planted
from gatelens.studies.gate_finder.figures import gate_figure, gate_layers
from gatelens.studies.gate_finder.result import LOST, SearchResult
from gatelens.studies.gate_finder.tables import GATE_MARK, heading
from gatelens.studies.gate_finder.verdict import DISTRIBUTED, INCONCLUSIVE, NARROW, named

SHOWN, SHOWN_BARS = 12, 6  # positions in the table, and on the first screen
NAME = "finder"  # of the section
WORDS = {
    "candidates": (
        "Every position at which the model’s input differs between pictures, and every one between these and the last "
        "of the prompt. Token names play no part."
    ),
    "attention it gets": (
        "Mean attention from positions after the picture that can read it, all heads and layers, as a share of what "
        "all candidates get."
    ),
    "overlap with the classes": (
        "The share of a residual stream’s nearest neighbours that show the same class, at its best layer. The class "
        "can be read there, whether or not the model reads it."
    ),
    "a position cut": (
        "Nothing after the picture reads it, in any layer or head; positions of the picture still read each other. "
        "Lost: accuracy, and log-probability of the correct answer in nats."
    ),
    "a position taken or kept": (
        "Taken: its residual stream in every layer is that of a picture of another class. Flips: answers that become "
        "that picture’s. Overlap: Σ min(p, q) with its answer. Kept: all others have the other picture’s; how much of "
        "the original answer, against that picture’s, remains with it alone."
    ),
    "smallest set": (
        "Positions are ranked by what they add: alone, to all others, and in random orders. Then all sets of the "
        "strongest are tried. Both use one half of the examples, and the other half measures the chosen set. Kept "
        "share: what the set carries when it alone has its own picture. Lost share: what is lost when it alone has "
        "another’s. The share is the mean of the two. The size is an upper bound: another set may need fewer positions."
    ),
}


def search_line(result: SearchResult) -> str:
    """What was found, in a line."""
    said = result.verdict
    one = result.smallest
    if said["verdict"] not in (NARROW, DISTRIBUTED):
        return "the search is inconclusive" if said["verdict"] == INCONCLUSIVE else str(said["verdict"])
    bound = "" if one["size"] == 1 else "at most "
    if one["size"] is None:
        return f"of {len(result.places)} positions, more carry the picture than were cut"
    where = f": {named(result.places, one['places'])}" if said["verdict"] == NARROW else ""
    size, verb = f"[{one['low']}, {one['high']}]", "carries" if one["size"] == 1 else "carry"
    share = percent(min(one["share"], 1.0))
    return (
        f"{bound}{one['size']} {size} of {len(result.places)} positions {verb} {share} of the picture{where}"
    )


def search_opening(result: SearchResult, planted: Planted | None = None) -> Opening:
    """The first screen: through the set found, and past it."""
    drawn, bars = ([_diagram(result)], _alone(result)) if result.gate else ([], _together(result))
    return Opening(drawn, bars if bars.rows else None, planted, {"smallest set": WORDS["smallest set"]})


def _alone(result: SearchResult) -> BarTable:
    """What cutting one position loses, of the strongest."""
    part = result.measures[result.measures.measure == f"{result.settings['how'][0]} accuracy"]
    top = result.ranking().head(SHOWN_BARS).place.tolist()
    names = {p: f"{result.places[p].name} ({result.places[p].position})" for p in top}
    part = part[part.place.isin(top)].assign(metric=LOST, row=lambda t: t.place.map(names))
    colors = {names[p]: "gate" if result.places[p] in result.gate else "image" for p in top}
    caption = "Each cut alone, the most nats lost first; position in brackets. Whiskers: 95 % interval."
    return BarTable.from_means(part, colors, tops={LOST: 1.0}, caption=caption, link=f"#{NAME}")


def _together(result: SearchResult) -> BarTable:
    """What the positions carry together: how many it takes."""
    curve = result.curves[result.curves.how == result.decides]
    doubled = [2**i for i in range(int(curve["size"].max()).bit_length())]
    part = curve[curve["size"].isin([*doubled, curve["size"].max()])]
    n = result.settings["n"] - result.settings["n"] // 2
    part = part.assign(
        metric="share carried", n=n, mean=part["share"], row=part["size"].astype(str) + " together"
    )
    caption = "Share of what the picture is worth, the strongest positions first. Whiskers: 95 % interval."
    colors = dict.fromkeys(part.row, "image")
    return BarTable.from_means(part, colors, tops={"share carried": 1.0}, caption=caption, link=f"#{NAME}")


def _diagram(result: SearchResult) -> Diagram:
    """Through the gate found, and past it: accuracy above chance that is lost when all other positions are cut."""
    one, settings = result.smallest, result.settings
    above = settings["accuracy"] - settings["chance"]
    past = [settings["around"] / above] if settings.get("around") is not None and above > 0 else []
    name = result.gate[0].name if len(result.gate) == 1 else f"{len(result.gate)} positions"
    return Diagram(
        Path("the set", [one["share"]], "gate"), Path("all others", past, "image"),
        ("the image", f"{settings['n_picture']} positions"), (name if len(name) <= 14 else f"{name[:13]}…", "the set"),
        ("answer", "the class"), link=f"#{NAME}",
    )  # fmt: skip


def search_answer(result: SearchResult) -> str:
    """The sentence the report opens with."""
    said, one = result.verdict, result.smallest
    if one["size"] and said["verdict"] in (NARROW, DISTRIBUTED):
        bound = "" if one["size"] == 1 else "At most "
        share = percent_cell(*(min(one[name], 1.0) for name in ("share", "share_low", "share_high")))
        return (
            f"{bound}{one['size']} of {len(result.places)} positions [{one['low']}, {one['high']}], "
            f"{_whose(result, one)}, carr{'ies' if one['size'] == 1 else 'y'} {share} of what the picture is worth."
        )
    if said["verdict"] == DISTRIBUTED:
        return f"No set that was cut, of up to {one['low'] - 1} positions, carries what the picture is worth."
    if said["verdict"] == INCONCLUSIVE:
        return "The search cannot tell a few positions from many; give more examples."
    return "The model does not read the class off the picture, so there is no gate to look for."


def _whose(result: SearchResult, one: Mapping[str, Any]) -> str:
    """The positions of a set: by name where it is the gate, by where they are of a larger one."""
    if result.gate:
        return named(result.places, one["places"])
    inside = sum(result.places[p].in_picture for p in one["places"])
    after = len(one["places"]) - inside
    return f"{inside} in the picture and {after} after it" if after else "all in the picture"


def search_cards(result: SearchResult, name: str, title: str) -> list[Card]:
    """Figures, named from ``name`` on, and the strongest positions."""
    shown = (
        "Above: every candidate’s measures in prompt order, with 95 % intervals over examples. Orange: a narrow gate. "
        "Below: what the strongest positions carry together."
    )
    blocks: list[Block] = [
        Chart(name, partial(gate_figure, result), shown, _with_interval(result.curves.drop(columns="added")))
    ]
    if len(result.layers):
        who = (
            "The gate’s residual stream entering one layer comes from another picture. Where curves are high, it "
            "carries the picture."
            if result.gate
            else "There is no narrow gate. The strongest position is patched, one layer at a time."
        )
        who += " Bands: 95 % intervals over pairs."
        blocks.append(Chart(f"{name}_layers", partial(gate_layers, result), who, result.layers))
    blocks.append(_strongest(result))
    return [Card(title, blocks, WORDS, short="Positions", finding=search_line(result))]


def _with_interval(curves: pd.DataFrame) -> pd.DataFrame:
    return curves.rename(columns={"low": "share_low", "high": "share_high"})


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
        f"({result.settings['how'][0]}){marked}. Blocks of the picture without an effect were not split."
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
