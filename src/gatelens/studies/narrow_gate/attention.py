"""Section *attention*: how the text divides its attention among the image side, by layer."""

from __future__ import annotations

import pandas as pd

from gatelens.engine import look
from gatelens.measures.attention import AttentionShare
from gatelens.studies.common import chunks, prepare
from gatelens.studies.narrow_gate.knockout_table import QUERIES
from gatelens.studies.narrow_gate.section import Context, Piece, Section
from gatelens.studies.narrow_gate.verdict import attention_evidence

STAGE = "attention"


def pieces(context: Context) -> list[Piece]:
    """One piece: sums over all batches are kept, not the patterns."""
    examples = context.examples("vqa", "class", "caption")[0][1][: context.options("attention")["n"]]

    def compute() -> pd.DataFrame:
        share = AttentionShare(int(context.model.cfg.n_layers))
        for _, start, part in chunks(examples, context.size):
            inputs = prepare(context.model, part, start)
            with share.looking(inputs.tokens, QUERIES) as see:
                look(context.model, inputs, QUERIES, see)
            context.bar.step("attention share")
        return share.table()

    return (
        [Piece(STAGE, "attention share", compute, len(list(chunks(examples, context.size))))]
        if examples
        else []
    )


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """The piece is the table."""


SECTION = Section(
    "attention",
    "where on the image side the text looks",
    pieces,
    conclude,
    lambda run: attention_evidence(run.table(STAGE)) if run.done(STAGE) else [],
    {"n": 200},
)
