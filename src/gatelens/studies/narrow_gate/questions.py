"""Section *questions*: is the gate enough for questions that need a relation or a count?

The paper leaves open whether one token can carry what such questions ask for (Serra et al. 2025, arXiv 2412.06646,
future work). The answers of the knockout table are broken down by kind of question, as the data name it; kinds
that are scarce among them get further questions, drawn by a seed of their own.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from gatelens.data import Dataset, Example
from gatelens.examples import draw
from gatelens.measures.stats import summary
from gatelens.model import HookedVLM
from gatelens.plots.bars import bars
from gatelens.plots.card import Block, Card, Cell, Chart, Table, mean_cell
from gatelens.plots.numbers import MISSING, number, percent
from gatelens.plots.style import NotebookFigure, ReferenceLine, SeriesStyle
from gatelens.plots.tidy import rows_with
from gatelens.runs import Run
from gatelens.studies.narrow_gate import knockouts
from gatelens.studies.narrow_gate.blind import blind_scores, facts, kind_of, other_questions
from gatelens.studies.narrow_gate.knockout_table import (
    FLOOR,
    GATE,
    IMAGE,
    NONE,
    kinds_shown,
    metric_of,
    table_rows,
)
from gatelens.studies.narrow_gate.verdict import (
    DISTRIBUTED,
    INCONCLUSIVE,
    MIXED,
    NARROW,
    agreed,
    task_verdicts,
)
from gatelens.studies.options import Examples, Options, Says, kinds_of_knockout
from gatelens.studies.section import VALUES, Absent, Batch, Evidence, Measured, Section, Setup, Tables, cells

ROWS = (NONE, GATE, IMAGE, FLOOR)
SEED = 7919  # keeps the further questions apart from those every section shares
LOOKED_AT = 20  # further questions are sought among this many times the number wanted of a kind


MOST_GROUPS = 8  # kinds in the figure; data with more show the most frequent ones
WORDS = {
    "kind of question": (
        "As the data name it: what is asked (emoji-scenes), the answer type (VQAv2), the subset (MME). Kinds with few "
        "questions in the knockout table get further ones."
    ),
    "blind": (
        "VQA accuracy of a guesser that sees the question only. It gives the answer most frequent for that question "
        "elsewhere in the data, or for its kind. A lower floor is raised to it."
    ),
    "removed": "(unmodified − cut) / (unmodified − floor), with its interval over questions, the cuts paired.",
}


class QuestionsOptions(Options):
    """Further questions, and what tells their kinds."""

    n: Annotated[Examples, Field(description="Further questions, at most.")] = 600
    n_per_kind: Annotated[Examples, Field(description="Questions wanted of each kind.")] = 100
    by: Annotated[
        str | None,
        Says("a name, or null"),
        Field(description="The fact of a question that is its kind. Default: kind or category."),
    ] = None


@dataclass(frozen=True)
class Further(knockouts.Answers):
    """Further questions, answered under the rows that the shares need; ``by`` tells their kinds."""

    by: str | None


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """Batches of the further questions; none where the kinds have enough of them."""
    options: QuestionsOptions = setup.section_options["questions"]
    study, hows = setup.options, kinds_of_knockout(setup.options.how)
    rows = [row for row in table_rows(1, 1) if row.name in ROWS]
    if not any(kind_of(e, options.by) for _, drawn in setup.examples("vqa") for e in drawn):
        raise Absent("the data do not name kinds of questions")
    work: list[Batch] = []
    left = options.n
    for task, drawn in setup.examples("vqa"):
        more = further(setup.data, task, drawn, options.by, options.n_per_kind, left, study.seed)
        left -= len(more)
        for _, start, part in setup.batched_by_length(more):
            work.append(
                Further(
                    f"{len(work):04d}", task, start, part, hows, rows, study.seed, study.longest(task),
                    setup.data.classes, options.by, units=len(hows) * len(rows),
                )
            )  # fmt: skip
    return work


def measure(model: HookedVLM, batch: Further) -> Tables:
    """``answers``: those of the knockout table, with ``kind`` and the accepted ``answers``."""
    answers = knockouts.measure(model, batch)["answers"]
    return {"answers": answers.merge(facts(batch.examples, batch.by), on="id", how="left")}


def further(
    data: Dataset, task: str, drawn: Sequence[Example], by: str | None, per_kind: int, n: int, seed: int
) -> list[Example]:
    """More questions of the kinds that have fewer than ``per_kind``, ``n`` at most, none twice.

    The data are asked for more and more, by another seed, until every kind known has enough or they give no more.
    """
    have = Counter(kind_of(e, by) for e in drawn)
    del have[None]
    if not have or n == 0 or min(have.values()) >= per_kind:
        return []
    limit, most, before = 4 * per_kind, LOOKED_AT * per_kind, 0
    while True:
        asked = draw(data, task, limit, seed + SEED)
        got, new = Counter(have), {}
        known = {e.id for e in drawn}
        for e in asked:
            name = kind_of(e, by)
            if name is not None and got[name] < per_kind and e.id not in known:
                got[name] += 1
                known.add(e.id)
                new[e.id] = e
        # fewer than asked for need not be all there are: bad rows may have been left out
        if len(asked) == before or limit >= most or min(got.values()) >= per_kind:
            return list(new.values())[:n]
        limit, before = min(4 * limit, most), len(asked)


def summarise(answers: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """``how, task, kind, row, mean, low, high, n, chance`` of ``how, task, kind, row, id, score, blind``."""
    place = ["how", "task", "kind"]
    clean = answers[answers.row == NONE].groupby(place, sort=False)
    chance = clean.blind.mean().rename("chance").reset_index()
    # rows of one kind side by side
    ordered = pd.concat([part for _, part in answers.groupby(place, sort=False)])
    return summary(ordered, [*place, "row"], n_boot=n_boot, seed=seed).merge(chance, on=place)


def shares(answers: pd.DataFrame, table: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """:func:`~gatelens.studies.narrow_gate.verdict.task_verdicts` of each kind, the floor at least its ``chance``; with
    the column ``kind``."""
    tables = []
    for (task, name), part in answers.groupby(["task", "kind"], sort=False):
        mine = table[(table.task == task) & (table.kind == name)]
        blind = float(mine.chance.iloc[0])
        tables.append(task_verdicts(part, 0, n_boot, seed, chances={str(task): blind}).assign(kind=name))
    return pd.concat(tables, ignore_index=True)


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``question_kinds``, ``question_kinds_shares``, and the ``question_scores`` they are made of."""
    predictions, by = setup.run.table("predictions"), setup.section_options["questions"].by
    columns = ["how", "task", "row", "id", "score", "kind", "question", "answers"]
    tables = [measured.table("answers")]
    for task, examples in setup.examples("vqa"):
        mine = predictions[predictions.row.isin(ROWS) & (predictions.task == task)]
        tables.append(mine.merge(facts(examples, by), on="id"))
    answers = pd.concat([t[columns] for t in reversed(tables) if len(t)], ignore_index=True)
    answers = answers[answers.kind != ""].sort_values("kind", kind="stable", ignore_index=True)
    for task, examples in setup.examples("vqa"):
        others = facts(other_questions(setup.data, task, examples, setup.options.seed), by)
        mine = answers[answers.task == task]
        answers.loc[mine.index, "blind"] = blind_scores(mine, others)
    n_boot, seed = setup.options.n_boot, setup.options.seed
    table = summarise(answers, n_boot, seed)
    scores = answers[["how", "task", "kind", "row", "id", "score"]]
    judged = shares(answers, table, n_boot, seed)
    return {"question_kinds": table, "question_kinds_shares": judged, "question_scores": scores}


def evidence(run: Run) -> list[Evidence]:
    """One entry over all kinds of question; it names a path where no kind that can be judged contradicts."""
    table = run.table("question_kinds_shares")
    first = table[table.how == table.how.iloc[0]]
    said = []
    for name, row in zip(_names(first), first.to_dict("records"), strict=True):
        removed = f"gate → text removes {percent(row['gate'])}, image → text {percent(row['image'])}"
        known = row["verdict"] != INCONCLUSIVE
        number_of = f"(n = {row['n']})"
        said.append(
            f"{name}: {removed} {number_of}, {row['verdict']}"
            if known
            else f"{name}: {INCONCLUSIVE} {number_of}"
        )
    line = _finding(first)
    return [
        {"kind": "by kind of question", "says": agreed(first.verdict), "text": "; ".join(said), "line": line}
    ]


def _finding(shares: pd.DataFrame) -> str:
    """How many kinds speak for which path."""
    said = {
        NARROW: "the gate carries most in {}",
        DISTRIBUTED: "the image tokens in {}",
        MIXED: "neither alone in {}",
    }
    known = int((shares.verdict != INCONCLUSIVE).sum())
    counts = {v: int((shares.verdict == v).sum()) for v in said}
    parts = [said[v].format(f"{n} of {known}") for v, n in counts.items() if n]
    return f"{', '.join(parts)} kinds" if parts else "no kind can be judged"


def page(run: Run) -> list[Card]:
    """Bars and table of every kind of knockout."""
    table, shares = run.table("question_kinds"), run.table("question_kinds_shares")
    blocks: list[Block] = []
    for how, name, title in kinds_shown(table, "question_kinds"):
        mine = shares[shares.how == how]
        blocks.append(Chart(name, partial(question_bars, table, how), caption(mine)))
        blocks.append(shares_table(table[table.how == how], mine, title))
    finding = _finding(shares[shares.how == shares.how.iloc[0]])
    return [Card("Which questions the gate is enough for", blocks, WORDS, short="Questions", finding=finding)]


def caption(shares: pd.DataFrame) -> str:
    """What the bars show, and the kinds by verdict."""
    text = (
        "VQA accuracy by kind of question with a path cut. Whiskers: 95 % interval over questions. Dashed: the best "
        "guess from the question alone."
    )
    names = _names(shares)
    said = {
        NARROW: "The gate carries most for {}.",
        DISTRIBUTED: "The image tokens carry most for {}.",
        MIXED: "Neither path alone explains {}.",
        INCONCLUSIVE: "Nothing can be said of {}.",
    }
    for verdict, sentence in said.items():
        kinds = [n for n, v in zip(names, shares.verdict, strict=True) if v == verdict]
        if kinds:
            text += " " + sentence.format(", ".join(kinds))
    if len(shares) > MOST_GROUPS:
        text += (
            f" The figure shows the {MOST_GROUPS} kinds with the most questions, the table all {len(shares)}."
        )
    return text


def shares_table(table: pd.DataFrame, shares: pd.DataFrame, title: str = "") -> Table:
    """A row per kind: the scores, the blind guess, what each cut removes, the verdict."""
    heads = ["kind of question", *ROWS, "blind", "gate cut\nremoves", "image cut\nremoves", "verdict"]
    rows: list[list[Cell]] = []
    why = set()
    for name, one in zip(_names(shares), shares.to_dict("records"), strict=True):
        mine = table[(table.task == one["task"]) & (table.kind == one["kind"])].set_index("row")
        cells: list[Cell] = [(name, f"n = {one['n']}"), *(mean_cell(mine.loc[row]) for row in ROWS)]
        cells.append(number(one["chance"]))
        for cut in ("gate", "image"):
            low, high = percent(one[f"{cut}_low"]), percent(one[f"{cut}_high"])
            known = one["verdict"] != INCONCLUSIVE
            cells.append((percent(one[cut]), f"{low} to {high}") if known else MISSING)
        cells.append(one["verdict"])
        rows.append(cells)
        if one["verdict"] == INCONCLUSIVE:
            why.add(f"{name}: {one['why']}")
    text = "; ".join(sorted(why)) + "." if why else ""
    return Table(heads, rows, text[:1].upper() + text[1:], title)


def _names(shares: pd.DataFrame) -> list[str]:
    several = shares.task.nunique() > 1
    return [f"{k} ({t})" if several else str(k) for k, t in zip(shares.kind, shares.task, strict=True)]


def question_bars(table: pd.DataFrame, how: str | None = None, dark: bool = False) -> NotebookFigure:
    """A group of bars a kind of question, one a cut; the blind guess as a dashed line across the group.

    ``how`` None is the first kind of knockout in a study's ``question_kinds`` table.

    Raises:
        DataError: the table has no such ``how``.
    """
    part = rows_with(table, "how", how, "the table of question kinds")
    part = part.assign(name=_names(part))
    groups = part[part.row == NONE].nlargest(MOST_GROUPS, "n").sort_index()
    labels = {
        name: "\n".join([*textwrap.wrap(name.replace("_", " "), 15), f"n = {int(n)}"])
        for name, n in zip(groups.name, groups.n, strict=True)
    }
    return bars(
        part[part.name.isin(groups.name)],
        groups="name",
        by="row",
        series=[
            SeriesStyle(NONE, "unmodified", "neutral"),
            SeriesStyle(GATE, color="gate"),
            SeriesStyle(IMAGE, color="image"),
            SeriesStyle(FLOOR, f"{FLOOR} (floor)", "faint"),
        ],
        references=[
            ReferenceLine(dict(zip(groups.name, groups.chance, strict=True)), "blind guess", (0, (3, 2)))
        ],
        labels=labels,
        title="Answers by kind of question with a path cut",
        value_label="VQA accuracy",
        top=1.05,
        horizontal=False,
        dark=dark,
    )


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Scores by kind of question, for the comparison of two runs."""
    return cells(table, table.task.map(metric_of), _cut(table))


def compared_values(run: Run) -> pd.DataFrame:
    """The score of every question; none of a run made before they were kept."""
    if not run.has("question_scores"):
        return pd.DataFrame(columns=VALUES)
    table = run.table("question_scores")
    named = {"metric": table.task.map(metric_of), "row": _cut(table), "value": table.score}
    return table.assign(**named, span=1.0)[VALUES]


def _cut(table: pd.DataFrame) -> pd.Series:
    return table.kind.astype(str) + ": " + table.row


SECTION = Section(
    "questions",
    "the gate’s part in each kind of question: relations, counts, colours…",
    batches,
    measure,
    conclude,
    QuestionsOptions,
    evidence,
    page,
    reads=("knockouts",),
    cells=lambda run: compared(run.table("question_kinds")),
    values=compared_values,
)
