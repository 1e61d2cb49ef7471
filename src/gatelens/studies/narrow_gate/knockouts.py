"""Section *knockouts*: the paper's Table 1, what each task is worth when a path is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from gatelens.data.base import kind
from gatelens.studies.common import chunks_by_length, prepare
from gatelens.studies.narrow_gate import knockout_table as table
from gatelens.studies.narrow_gate.asking import repeats_of
from gatelens.studies.narrow_gate.section import Context, Piece, Section
from gatelens.studies.narrow_gate.verdict import task_verdicts

if TYPE_CHECKING:
    from gatelens.data import Example


def pieces(context: Context) -> list[Piece]:
    """A piece a batch: every row of the table on it."""
    found = []
    for task, examples in context.drawn.items():
        rows = rows_of(context, task)
        units = len(context.hows) * sum(row.repeats for row in rows)
        for number, start, part in chunks_by_length(context.model, examples, context.size):

            def compute(task: str = task, start: int = start, part: Sequence[Example] = part) -> pd.DataFrame:
                return answers(context, task, start, part)

            found.append(Piece(f"shards/{task}-{number:04d}", f"{task}, knockouts", compute, units))
    return found


def rows_of(context: Context, task: str) -> list[table.Row]:
    """The rows of the table for a task."""
    return table.table_rows(
        context.settings["random_tokens"], repeats_of(context.settings["random_repeats"], task)
    )


def answers(
    context: Context, task: str, start: int, part: Sequence[Example], rows: Sequence[table.Row] | None = None
) -> pd.DataFrame:
    """Every row of the knockout table on one batch: ``task, how, row, repeat, id, prediction, score, restricted``.

    ``rows``: other rows than those of the study.
    """
    rows = rows_of(context, task) if rows is None else rows
    longest = context.settings["max_new_tokens"].get(kind(task), 1)
    places = [(how, row, r) for how in context.hows for row in rows for r in range(row.repeats)]
    # the unmodified run is the same for every kind of knockout
    keys = [(None if row.keys is None else how, row.name, r) for how, row, r in places]
    runs = {
        key: table.specs(row, r, context.seed, how) for key, (how, row, r) in zip(keys, places, strict=True)
    }
    inputs = prepare(context.model, part, start)
    outcomes = table.outcomes(context.model, inputs, task, list(runs.values()), longest)
    said = dict(zip(runs, outcomes, strict=True))
    found: list[pd.DataFrame] = []
    for key, (how, row, repeat) in zip(keys, places, strict=True):
        scored = table.evaluate(context.model, part, task, said[key], context.labels, context.data.classes)
        found.append(table.labelled(task, how, row, repeat, scored))
        context.bar.step(f"{task}, {row.name}")
    return pd.concat(found, ignore_index=True)


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """``predictions``, ``knockout`` and ``tasks``."""
    predictions = pd.concat(tables, ignore_index=True)
    for task, examples in context.examples("caption"):
        predictions = table.score_captions(predictions, examples, task)
    run = context.run
    run.save_table("predictions", predictions)
    run.save_table("knockout", table.summarise(predictions, context.n_boot, context.seed))
    run.save_table(
        "tasks", task_verdicts(predictions, len(context.data.classes), context.n_boot, context.seed)
    )


SECTION = Section("knockouts", "answers with a path cut, the paper's Table 1", pieces, conclude)
