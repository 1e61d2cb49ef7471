"""Section *attention*: how the text divides its attention among the image side, by layer (NG's f_j^l).

``attention`` has every position of the image side, ``attention_groups`` NG's contributions (the gate, the last image
token, the internal image tokens, the markers), ``attention_positions`` the positions that take more than ``least`` of
it and whether they stand out (:func:`gatelens.measures.attention.standing_out`): found from the numbers,
where the paper names indices for each model by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from gatelens.data import Example
from gatelens.engine import look
from gatelens.examples import prepare
from gatelens.measures.attention import AttentionShare, image_side_slots, slot_place, standing_out
from gatelens.model import HookedVLM
from gatelens.plots.card import Block, Card, Chart, Table
from gatelens.plots.numbers import percent
from gatelens.runs import Run
from gatelens.studies.narrow_gate.attention.figures import attention_positions, attention_shares
from gatelens.studies.narrow_gate.knockout_table import QUERIES
from gatelens.studies.narrow_gate.verdict import attention_evidence
from gatelens.studies.options import Examples, NonNegative, Options
from gatelens.studies.section import (
    VALUES,
    Absent,
    Batch,
    Evidence,
    Measured,
    Section,
    Setup,
    Tables,
    cells,
    span_of,
)
from gatelens.tokens import TokenMap

WHERE = ["token", "row", "col", "tile", "order"]  # columns of a position's place
GROUP_SHARE = "share of the attention to the image side"
MOST_ROWS = 12  # of the table of positions on the page

WORDS = {
    "cross-modal attention": (
        "The paper’s f_j of layer l: attention from text rows after the gate to position j of the image side. It is "
        "summed over rows and heads and scaled to sum to 1 over the image side. It shows where text looks, not what it "
        "uses."
    ),
    "stands out": (
        "In its highest layer, the position’s share exceeds {least} (the paper’s 1 %) and {times} times an even share. "
        "The lower end of its 95 % interval counts. Positions are numbered from 0."
    ),
}

Place = tuple[str, int, int, int, int]


class AttentionOptions(Options):
    """Examples, and what a position must exceed to stand out."""

    n: Annotated[Examples, Field(description="Examples.")] = 200
    least: Annotated[NonNegative, Field(description="A share of cross-modal attention.")] = 0.01
    times: Annotated[NonNegative, Field(description="A multiple of an even share.")] = 2.0


@dataclass(frozen=True)
class Shares(Batch):
    """All examples, as sums over them are kept and no pattern.

    ``parts`` are ``(number of the first, examples)``, prompts of one length each: padding would need a mask of
    position × position for every example.
    """

    parts: Sequence[tuple[int, Sequence[Example]]]
    n_boot: int
    seed: int


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """One batch."""
    examples = setup.examples("vqa", "class", "caption")[0][1][: setup.section_options["attention"].n]
    if not examples:
        raise Absent("no examples were asked for")
    parts = [(start, part) for _, start, part in setup.batched_by_length(examples)]
    return [Shares("all", parts, setup.options.n_boot, setup.options.seed, units=len(parts))]


def measure(model: HookedVLM, batch: Shares) -> Tables:
    """``shares`` of every position with its place, ``groups``, and ``group_shares`` of every example."""
    share = AttentionShare(int(model.cfg.n_layers))
    places: dict[int, Place] = {}
    for start, part in batch.parts:
        inputs = prepare(model, part, start)
        note_places(places, inputs.tokens)
        with share.looking(inputs.tokens, QUERIES) as see:
            look(model, inputs, QUERIES, see)
    each, ids = share.groups_by_example(), [e.id for _, part in batch.parts for e in part]
    # single precision: a number per example, layer and group is most of what a run keeps of this section
    each = each.assign(id=[ids[i] for i in each.example], share=each.share.astype("float32"))
    return {
        "shares": with_places(share.table(), places),
        "groups": share.groups(batch.n_boot, batch.seed),
        "group_shares": each[["layer", "group", "id", "share"]],
    }


def note_places(places: dict[int, Place], tokens: TokenMap) -> None:
    """Adds token, grid row, column, tile and order on the image side of every slot of a batch.

    What differs between examples (the first word after the picture, or the grid) is left open: an empty text, −1.
    """
    slots = image_side_slots(tokens)
    for b in range(tokens.batch_size):
        at = (slots[b] >= 0).nonzero().flatten()
        grid = (x[b, at].tolist() for x in (slots, tokens.row, tokens.col, tokens.tile))
        for order, (slot, row, col, tile) in enumerate(zip(*grid, strict=True)):
            here = (tokens.strings[b][int(at[order])], row, col, tile, order)
            known = places.setdefault(slot, here)
            if known != here:
                token = known[0] if known[0] == here[0] else ""
                numbers = [k if k == h else -1 for k, h in zip(known[1:4], here[1:4], strict=True)]
                places[slot] = (token, *numbers, known[4])  # type: ignore[assignment]


def with_places(table: pd.DataFrame, places: dict[int, Place]) -> pd.DataFrame:
    """The shares with the columns :data:`WHERE` and a ``name`` for people, indices counted from 0."""
    rows = [
        (*slot_place(slot), *place, place_name(*slot_place(slot), place)) for slot, place in places.items()
    ]
    where = pd.DataFrame(rows, columns=["kind", "index", *WHERE, "name"])
    return table.merge(where, on=["kind", "index"], how="left", validate="many_to_one")


def place_name(kind: str, index: int, place: Place) -> str:
    """Such as ``image token 12 (row 1, column 4)``, ``row break 3``, ``gate <eoss>``."""
    token, row, col, tile, _ = place
    if kind == "image":
        parts = [f"tile {tile}"] * (tile > 0) + [f"row {row}", f"column {col}"] * (row >= 0 and col >= 0)
        return f"image token {index}" + (f" ({', '.join(parts)})" if parts else "")
    if kind == "row_break":
        return f"row break {index}"
    return f"{'gate' if kind == 'gate' else 'start of image'} {token}".strip()


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``attention``, ``attention_groups`` with their ``attention_by_example``, and ``attention_positions``."""
    options, shares = setup.section_options["attention"], measured.table("shares")
    return {
        "attention": shares,
        "attention_groups": measured.table("groups"),
        "attention_by_example": measured.table("group_shares"),
        "attention_positions": listed(shares, options.least, options.times),
    }


def listed(table: pd.DataFrame, least: float, times: float) -> pd.DataFrame:
    """:func:`gatelens.measures.attention.standing_out` with the places of :func:`with_places`."""
    where = table[["kind", "index", "name", *WHERE]].drop_duplicates(["kind", "index"])
    return standing_out(table, least, times).merge(where, on=["kind", "index"], how="left")


def evidence(run: Run) -> list[Evidence]:
    """Whether the gate stands out in some layer."""
    return attention_evidence(run.table("attention"))


def page(run: Run) -> list[Card]:
    """The shares by layer, and the positions that stand out."""
    table, groups, positions = (run.table(f"attention{name}") for name in ("", "_groups", "_positions"))
    options = run.settings["sections"]["attention"]
    least, times = float(options["least"]), float(options["times"])
    each = (
        "Every position of the image side in prompt order: its share in its highest layer (line) and its mean over "
        "layers (dot). Coloured positions stand out, with their 95 % intervals."
    )
    with_interval = {"low": "share_low", "high": "share_high"}
    listed_numbers = positions[["name", "mean", "highest", "low", "high", "layer", "even", "stands_out", "n"]]
    listed_numbers = listed_numbers.rename(columns={"low": "highest_low", "high": "highest_high"})
    blocks: list[Block] = [
        Chart(
            "attention",
            lambda dark: attention_shares(table, dark, groups),
            _caption(table),
            groups.assign(group=groups.group.str.replace("_", " ")).rename(columns=with_interval),
        ),
        Chart(
            "attention_positions",
            partial(attention_positions, table, positions, least, times),
            each,
            listed_numbers,
        ),
        _listed_positions(positions, least, times),
    ]
    words = dict(WORDS)
    words["stands out"] = WORDS["stands out"].format(least=least, times=f"{times:g}")
    share = table[table.kind == "gate"].groupby("layer").share.first()
    finding = (
        f"the gate gets at most {percent(share.max())} of the attention to the image side (layer "
        f"{share.idxmax()})"
    )
    return [Card("Where the text looks", blocks, words, short="Attention", finding=finding)]


def _caption(table: pd.DataFrame) -> str:
    share = table[table.kind == "gate"].set_index("layer").share
    uniform = 1 / max(1, int((table.layer == table.layer.iloc[0]).sum()))
    image = table[table.kind == "image"].groupby("layer").share.sum().mean()
    return (
        "How text after the gate divides its attention to the image side. Mean over layers: the gate "
        f"{percent(share.mean())}, the image tokens {percent(image)}; an even share is {percent(uniform, 1)} a "
        "position. Lines: 95 % intervals over prompts. The lower panel has none: only its sums were kept."
    )


def _listed_positions(positions: pd.DataFrame, least: float, times: float) -> Table:
    out = positions[positions.stands_out]
    more = f" The {MOST_ROWS} highest are shown." if len(out) > MOST_ROWS else ""
    shown = out.head(MOST_ROWS).assign(even_shares=out.highest / out.even)
    shown["highest"] = [(f"{r.highest:.3f}", f"{r.low:.3f}–{r.high:.3f}") for r in shown.itertuples()]
    headings = {"name": "position", "mean": "mean\nshare", "highest": "highest\nshare", "layer": "in\nlayer"}
    headings["even_shares"] = "times\nan even share"
    return Table.from_frame(
        shown,
        headings,
        {"mean": "{:.3f}".format, "layer": "{:.0f}".format, "even_shares": "{:.1f}".format},
        title="Positions that stand out",
        caption=f"{len(positions)} positions take more than {100 * least:g} %. {len(out)} of them stand out, with more "
        f"than {times:g} times an even share.{more}",
    )


def compared(run: Run) -> pd.DataFrame:
    """Shares by layer and group of positions, for the comparison of two runs."""
    table = run.table("attention_groups").rename(columns={"share": "mean"})
    return cells(table, GROUP_SHARE, _group_names(table))


def compared_values(run: Run) -> pd.DataFrame:
    """The shares of every example."""
    table = run.table("attention_by_example") if run.has("attention_by_example") else pd.DataFrame()
    if table.empty:
        return pd.DataFrame(columns=VALUES)
    values = table.assign(
        how="", metric=GROUP_SHARE, row=_group_names(table), value=table.share.astype(float)
    )
    return values.assign(span=span_of(None))[VALUES]


def _group_names(table: pd.DataFrame) -> pd.Series:
    return table.group.str.replace("_", " ") + ", layer " + table.layer.astype(str)


SECTION = Section(
    "attention",
    "where on the image side the text looks, and which positions stand out",
    batches,
    measure,
    conclude,
    AttentionOptions,
    evidence,
    page,
    cells=compared,
    values=compared_values,
)
