"""Section *attention*: how the text divides its attention among the image side, by layer (NG's f_j^l).

``attention`` has every position of the image side, ``attention_groups`` NG's contributions (the gate, the last image
token, the internal image tokens, the markers), ``attention_positions`` the positions that take more than ``least`` of
it and whether they stand out (:func:`gatelens.measures.standing_out`): found from the numbers, where the paper names
indices for each model by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from gatelens.engine import look
from gatelens.measures.attention import AttentionShare, image_side_slots, slot_place
from gatelens.measures.attention import standing_out
from gatelens.studies.common import chunks_by_length, prepare
from gatelens.studies.narrow_gate.knockout_table import QUERIES
from gatelens.studies.narrow_gate.section import Context, Piece, Section
from gatelens.studies.narrow_gate.verdict import attention_evidence

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap

STAGE = "attention"
GROUPS_STAGE = "attention_groups"
POSITIONS_STAGE = "attention_positions"
WHERE = ["token", "row", "col", "tile", "order"]  # columns of a position's place

Place = tuple[str, int, int, int, int]


def pieces(context: Context) -> list[Piece]:
    """One piece: sums over all batches are kept, not the patterns."""
    examples = context.examples("vqa", "class", "caption")[0][1][: context.options("attention")["n"]]

    # prompts of one length: padding would need a mask of position × position for every example
    batches = chunks_by_length(context.model, examples, context.size)

    def compute() -> pd.DataFrame:
        share = AttentionShare(int(context.model.cfg.n_layers))
        places: dict[int, Place] = {}
        for _, start, part in batches:
            inputs = prepare(context.model, part, start)
            note_places(places, inputs.tokens)
            with share.looking(inputs.tokens, QUERIES) as see:
                look(context.model, inputs, QUERIES, see)
            context.bar.step("attention share")
        # saved first: the piece counts as done once its own table is there
        context.run.save_table(GROUPS_STAGE, share.groups(context.n_boot, context.seed))
        return with_places(share.table(), places)

    return [Piece(STAGE, "attention share", compute, len(batches))] if examples else []


def note_places(places: dict[int, Place], tokens: TokenMap) -> None:
    """Adds token, grid row, column, tile and order on the image side of every slot of a batch.

    What differs between examples (the first word after the picture, say, or the grid of pictures of several sizes)
    is left open: an empty text, −1.
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
        found = [f"tile {tile}"] * (tile > 0) + [f"row {row}", f"column {col}"] * (row >= 0 and col >= 0)
        return f"image token {index}" + (f" ({', '.join(found)})" if found else "")
    if kind == "row_break":
        return f"row break {index}"
    return f"{'gate' if kind == 'gate' else 'start of image'} {token}".strip()


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """The piece is the table of shares; the positions that stand out follow from it."""
    if tables:
        options = context.options("attention")
        context.run.save_table(POSITIONS_STAGE, listed(tables[0], options["least"], options["times"]))


def listed(table: pd.DataFrame, least: float, times: float) -> pd.DataFrame:
    """:func:`gatelens.measures.standing_out` with the places of :func:`with_places`."""
    where = table[["kind", "index", "name", *WHERE]].drop_duplicates(["kind", "index"])
    return standing_out(table, least, times).merge(where, on=["kind", "index"], how="left")


SECTION = Section(
    "attention",
    "where on the image side the text looks, and which positions stand out",
    pieces,
    conclude,
    lambda run: attention_evidence(run.table(STAGE)) if run.done(STAGE) else [],
    {"n": 200, "least": 0.01, "times": 2.0},
)
