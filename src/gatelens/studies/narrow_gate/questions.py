"""Section *questions*: is the gate enough for questions that need a relation or a count?

The paper leaves open whether one token can carry what such questions ask for (Serra et al. 2025, arXiv 2412.06646,
future work). The answers of the knockout table are broken down by what the data call the kind of their question; kinds
that are scarce among them get further questions, drawn by a seed of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gatelens.measures.stats import bootstrap_interval
from gatelens.measures.vqa import vqa_accuracy
from gatelens.plots.numbers import percent
from gatelens.runs import Run
from gatelens.studies.common import chunks_by_length, draw, provenance
from gatelens.studies.narrow_gate import knockouts
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE, table_rows
from gatelens.studies.narrow_gate.section import Context, Evidence, Piece, Section
from gatelens.studies.narrow_gate.verdict import (
    DISTRIBUTED,
    INCONCLUSIVE,
    MIXED,
    NARROW,
    task_verdicts,
)

if TYPE_CHECKING:
    from gatelens.data import Dataset, Example

ROWS = (NONE, GATE, IMAGE, FLOOR)
NAMED = (
    "kind",
    "category",
)  # where data sets keep the kind of a question (VQAv2: its answer type; MME: its subset)
SEED = 7919  # keeps the further questions apart from those every section shares
LOOKED_AT = 20  # further questions are sought among so many times as many as are wanted of a kind
CANDIDATES = 20  # answers a blind guesser chooses from, the most frequent ones


def kind_of(example: Example, by: str | None = None) -> str | None:
    """What kind of question it is: the fact ``by`` of the example, or the first of ``kind`` and ``category``."""
    for name in NAMED if by is None else (by,):
        if example.meta.get(name) is not None:
            return str(example.meta[name])
    return None


def further(
    data: Dataset, task: str, drawn: Sequence[Example], by: str | None, per_kind: int, n: int, seed: int
) -> list[Example]:
    """More questions of the kinds that have fewer than ``per_kind``, ``n`` at most, none twice.

    The data are asked for more and more questions by a seed of their own until every kind known has enough or they
    give no more.
    """
    have = Counter(kind_of(e, by) for e in drawn)
    del have[None]
    if not have or n == 0 or min(have.values()) >= per_kind:
        return []
    limit, most, before = 4 * per_kind, LOOKED_AT * per_kind, 0
    while True:
        found = draw(data, task, limit, seed + SEED)
        got, new = Counter(have), {}
        known = {e.id for e in drawn}
        for e in found:
            name = kind_of(e, by)
            if name is not None and got[name] < per_kind and e.id not in known:
                got[name] += 1
                known.add(e.id)
                new[e.id] = e
        # fewer than asked for need not be all there are: bad rows may have been left out
        if len(found) == before or limit >= most or min(got.values()) >= per_kind:
            return list(new.values())[:n]
        limit, before = min(4 * limit, most), len(found)


def pieces(context: Context) -> list[Piece]:
    """A piece a batch of the further questions; none where the kinds have enough, or the data name no kinds."""
    options = context.options("questions")
    names = [row for row in table_rows(1, 1) if row.name in ROWS]
    found: list[Piece] = []
    left = options["n"]
    for task, drawn in context.examples("vqa"):
        more = further(context.data, task, drawn, options["by"], options["n_per_kind"], left, context.seed)
        left -= len(more)
        context.run.manifest["info"] |= provenance(context.data)  # bad rows may have been met on the way
        for _, start, part in chunks_by_length(context.model, more, context.size):

            def compute(task: str = task, start: int = start, part: Sequence[Example] = part) -> pd.DataFrame:
                answers = knockouts.answers(context, task, start, part, names)
                return answers.merge(facts(part, options["by"]), on="id", how="left")

            units = len(context.hows) * len(names)
            found.append(
                Piece(f"shards/questions-{len(found):04d}", f"{task}, further questions", compute, units)
            )
    return found


def facts(examples: Sequence[Example], by: str | None) -> pd.DataFrame:
    """``id, kind`` and the accepted ``answers`` of the examples that name a kind."""
    named = [(e.id, kind_of(e, by), list(e.answers)) for e in examples if kind_of(e, by) is not None]
    return pd.DataFrame(named, columns=["id", "kind", "answers"])


def chance(answers: Sequence[Sequence[str]]) -> float:
    """VQA accuracy of the best answer a blind guesser can give to all of these questions.

    With one accepted answer a question it is the share of the most frequent one. It is the best guess for these very
    questions, so it is a little too high where they are few.
    """
    usual = Counter(Counter(a).most_common(1)[0][0] for a in answers if len(a))
    guesses = [guess for guess, _ in usual.most_common(CANDIDATES)]
    return max((float(np.mean([vqa_accuracy(g, a) for a in answers])) for g in guesses), default=0.0)


def summarise(answers: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """The table: ``how, task, kind, row, mean, low, high, n, chance``.

    Args:
        answers: ``how, task, kind, row, id, score, answers``, one row a question and cut.
        n_boot: bootstrap replicates.
        seed: draws them.
    """
    found = []
    for (how, task, name), group in answers.groupby(["how", "task", "kind"], sort=False):
        blind = chance([list(a) for a in group[group.row == NONE].answers])
        for row, part in group.groupby("row", sort=False):
            values = part.score.to_numpy(dtype=np.float64)
            low, high = bootstrap_interval(values, n_boot=n_boot, seed=seed)
            found.append((how, task, name, row, values.mean(), low, high, len(values), blind))
    columns = ["how", "task", "kind", "row", "mean", "low", "high", "n", "chance"]
    return pd.DataFrame(found, columns=columns)


def shares(answers: pd.DataFrame, table: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """What each cut removes of what the picture is worth to a kind, and the verdict: the columns of ``tasks`` and
    ``kind, chance``.

    As :func:`~gatelens.studies.narrow_gate.verdict.task_verdicts` judges a task, the floor at least ``chance``.
    """
    found = []
    for (task, name), part in answers.groupby(["task", "kind"], sort=False):
        mine = table[(table.task == task) & (table.kind == name)]
        blind = float(mine.chance.iloc[0])
        judged = task_verdicts(part, 0, n_boot, seed, chances={str(task): blind})
        found.append(judged.assign(kind=name, chance=blind))
    return pd.concat(found, ignore_index=True)


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """``question_kinds`` and ``question_kinds_shares``, where the data name kinds of questions."""
    predictions = context.run.table("predictions")
    by = context.options("questions")["by"]
    drawn = [facts(examples, by).assign(task=task) for task, examples in context.examples("vqa")]
    known = pd.concat(drawn, ignore_index=True) if drawn else pd.DataFrame()
    if known.empty:
        return
    columns = ["how", "task", "kind", "row", "id", "score", "answers"]
    answers = predictions[predictions.row.isin(ROWS)].merge(known, on=["task", "id"])[columns]
    answers = pd.concat([answers, *(t[columns] for t in tables)], ignore_index=True)
    answers = answers.sort_values("kind", kind="stable")
    table = summarise(answers, context.n_boot, context.seed)
    context.run.save_table("question_kinds", table)
    context.run.save_table("question_kinds_shares", shares(answers, table, context.n_boot, context.seed))


def evidence(run: Run) -> list[Evidence]:
    """One entry over all kinds of question; it names a path where no kind that can be judged contradicts."""
    if not run.done("question_kinds_shares"):
        return []
    table = run.table("question_kinds_shares")
    first = table[table.how == table.how.iloc[0]]
    found = [v for v in first.verdict if v != INCONCLUSIVE]
    says = MIXED if found else INCONCLUSIVE
    for one, other in ((NARROW, DISTRIBUTED), (DISTRIBUTED, NARROW)):
        if found and other not in found and 2 * found.count(one) >= len(found):
            says = one
    text = "; ".join(_says(row, first.task.nunique() > 1) for row in first.to_dict("records"))
    return [{"kind": "by kind of question", "says": says, "text": text}]


def _says(row: dict[str, Any], several: bool) -> str:
    name = f"{row['kind']} ({row['task']})" if several else row["kind"]
    if row["verdict"] == INCONCLUSIVE:
        return f"{name}: {INCONCLUSIVE} (n = {row['n']})"
    return (
        f"{name}: gate → text removes {percent(row['gate'])}, image → text {percent(row['image'])} (n = {row['n']}), "
        f"{row['verdict']}"
    )


SECTION = Section(
    "questions",
    "the gate's part in each kind of question: relations, counts, colours…",
    pieces,
    conclude,
    evidence,
    {"n": 600, "n_per_kind": 100, "by": None},
)
