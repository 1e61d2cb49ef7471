"""Section *knockouts*: the answers with a path cut, the paper's Table 1.

The text can no longer read the gate, the image tokens, ten of them drawn at random, the last one, or gate and image
together; classes, questions and captions are scored in each case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from gatelens.data import Example
from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.examples import Labels, labels_of, prepare
from gatelens.model import HookedVLM
from gatelens.plots import card
from gatelens.plots.bars import bars
from gatelens.plots.numbers import MISSING, number, percent, percent_span
from gatelens.plots.pictures import picture_uri
from gatelens.plots.style import NotebookFigure, ReferenceLine
from gatelens.plots.tidy import rows_with
from gatelens.runs import Run
from gatelens.studies.narrow_gate import knockout_table as table
from gatelens.studies.narrow_gate.asking import repeats_of
from gatelens.studies.narrow_gate.blind import blind_scores, facts, other_questions
from gatelens.studies.narrow_gate.reference import reference_for
from gatelens.studies.narrow_gate.verdict import task_verdicts
from gatelens.studies.options import How, kinds_of_knockout
from gatelens.studies.section import Batch, Measured, Section, Setup, Tables

CAPTION = (
    "A short bar means that the cut tokens carried the picture to the text. Whiskers: 95 % interval over examples. "
    "Dashed: accuracy without the picture. The last row is a control that cuts every path at once."
)
SHOWN = {"vqa": 3, "class": 2, "caption": 3}  # example pictures in the report, the first drawn of each task


@dataclass(frozen=True)
class Answers(Batch):
    """Examples of one task, the first numbered ``start``, to be answered under every row and kind of knockout."""

    task: str
    start: int
    examples: Sequence[Example]
    hows: Sequence[How]
    rows: Sequence[table.Row]
    seed: int
    max_new_tokens: int
    classes: Sequence[str]


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """Batches of every task, all rows of the table on each."""
    options = setup.options
    hows = kinds_of_knockout(options.how)
    _tokens(setup)  # refuses prompts without a gate
    work: list[Batch] = []
    for task, examples in setup.drawn.items():
        rows = table.table_rows(options.random_tokens, repeats_of(options.random_repeats, task))
        units = len(hows) * sum(row.repeats for row in rows)
        for i, start, part in setup.batched_by_length(examples):
            work.append(
                Answers(
                    f"{task}-{i:04d}", task, start, part, hows, rows, options.seed,
                    options.longest(task), setup.data.classes, units=units,
                )
            )  # fmt: skip
    return work


def measure(model: HookedVLM, batch: Answers) -> Tables:
    """``answers``: ``task, how, row, repeat, id, prediction, score, restricted``."""
    places, runs = [], {}
    for how in batch.hows:
        for row in batch.rows:
            for repeat in range(row.repeats):
                # the unmodified run is the same for every kind of knockout
                key = (None if row.keys is None else how, row.name, repeat)
                runs[key] = row.interventions(repeat, batch.seed, how)
                places.append((key, {"how": how, "row": row.name, "repeat": repeat}))
    inputs = prepare(model, batch.examples, batch.start)
    outcomes = table.outcomes(model, inputs, batch.task, list(runs.values()), batch.max_new_tokens)
    said, labels = dict(zip(runs, outcomes, strict=True)), Labels(model, any_word=True)
    answers = []
    for key, place in places:
        scored = table.evaluate(model, batch.examples, batch.task, said[key], labels, batch.classes)
        answers.append(pd.DataFrame({"task": batch.task, **place, **scored}))
    return {"answers": pd.concat(answers, ignore_index=True)}


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``predictions``, ``knockout``, ``tasks``; ``tokens`` and ``examples`` of the report."""
    options, predictions = setup.options, measured.table("answers")
    for task, examples in setup.examples("caption"):
        predictions = table.score_captions(predictions, examples, task)
    return {
        "predictions": predictions,
        "knockout": table.summarise(predictions, options.n_boot, options.seed),
        "tasks": task_verdicts(
            predictions, len(setup.data.classes), options.n_boot, options.seed, blind_accuracy(setup)
        ),
        "tokens": _tokens(setup),
        "examples": _examples(setup, predictions),
    }


def blind_accuracy(setup: Setup) -> dict[str, float]:
    """What each task of questions scores when they are answered without the picture."""
    floors = {}
    for task, examples in setup.examples("vqa"):
        others = other_questions(setup.data, task, examples, setup.options.seed)
        floors[task] = float(blind_scores(facts(examples), facts(others)).mean())
    return floors


def _tokens(setup: Setup) -> dict[str, Any]:
    """Who is where in one prompt, and what the gate is. Raises DataError where there is none."""
    example = setup.examples("vqa", "class", "caption")[0][1][0]
    tokens = prepare(setup.model, [example]).tokens
    where, shown = tokens.positions("gate"), tokens.show()
    if not where:
        raise DataError(
            f"example {example.id!r}: its prompt has no position after the image, so there is no gate"
        )
    position = where[-1]
    literal = bool(tokens.mask("eoi").any())
    return {
        "header": list(shown.header[1:]),
        "rows": [list(r[1:]) for r in shown.rows],
        "gate": {"string": tokens.strings[0][position], "literal": literal, "position": position},
        "prompt": example.prompt,
        "n_image": int(tokens.mask("image").sum()),
    }


def _examples(setup: Setup, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """The first drawn examples of each task with every row's answer: not selected."""
    first = kinds_of_knockout(setup.options.how)[0]
    shown = predictions[(predictions.how == first) & (predictions["repeat"] == 0)]
    out = []
    for asked, n in SHOWN.items():
        for task, examples in setup.examples(asked):
            for e in examples[:n]:
                part = shown[(shown.task == task) & (shown.id == e.id)]
                rows = part[["row", "prediction", "score"]].to_dict("records")
                picture = picture_uri(e.image, 256, enlarge=True) if e.image is not None else ""
                facts = {"task": task, "id": e.id, "prompt": e.prompt, "answers": list(labels_of(e))}
                out.append({**facts, "picture": picture, "rows": rows})
    return out


def page(run: Run) -> list[card.Card]:
    """The table and its bars for every kind of knockout; the paper's own numbers where the model is one of its."""
    knockout = run.table("knockout")
    blocks: list[card.Block] = []
    tasks = run.table("tasks")
    chances = tasks.groupby("metric").chance.first().to_dict()
    for how, name, title in table.kinds_shown(knockout, "knockout"):
        part = knockout[knockout.how == how]
        repeats = part.groupby("row").repeats.max()
        drawn = {row: (row, f"mean of {n} draws") for row, n in repeats.items() if n > 1}
        looks: dict[str, Any] = {"corner": "attention cut", "controls": (table.FLOOR,), "title": title}
        blocks.append(card.Table.from_means(part, names=drawn, **looks))
        drawing = partial(knockout_bars, knockout, how, chances=chances)
        blocks.append(card.Chart(name, drawing, CAPTION, fold="The same as a figure"))
        blocks.append(shares_lost(tasks[tasks.how == how]))
    cards = [card.Card("What is left when a path is cut", blocks, short="Knockouts", finding=_finding(run))]
    reference = reference_for(str(run.settings["model"]))
    if reference:
        rows = [[name, *map(number, values)] for name, values in reference.rows]
        note = f"{reference.model}: {reference.source}. {reference.note}"
        shown = card.Table(["attention cut", *reference.columns], rows, caption=note)
        cards.append(card.Card("What the paper found for this model", [shown], short="Paper"))
    return cards


def shares_lost(tasks: pd.DataFrame, names: Mapping[str, str] | None = None) -> card.Table:
    """The shares of what the picture is worth that both cuts lose: the numbers of the verdict.

    Args:
        tasks: of :func:`~gatelens.studies.narrow_gate.verdict.task_verdicts`, a row of the table each.
        names: what each row is called; without, by its metric.
    """
    rows: list[list[card.Cell]] = []
    for index, r in zip(tasks.index, tasks.to_dict("records"), strict=True):
        worth = [number(r[name]) for name in ("none", "floor")]
        shares = [_share(r, name) for name in ("gate", "image")]
        rows.append([(names or {}).get(index, r["metric"]), *worth, *shares, str(r["n"])])
    header = ["", "nothing cut", "floor", "lost:\ngate → text", "lost:\nimage → text", "n"]
    caption = "The share of “nothing cut” minus “floor” that a cut loses. Above 100 %: worse than without the picture."
    return card.Table(header, rows, title="Lost, of what the picture is worth", caption=caption)


def _share(row: Mapping[str, Any], name: str) -> card.Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return (percent(row[name]), percent_span(low, high)) if pd.notna(low) else MISSING


def _finding(run: Run) -> str:
    """What is left of the first metric."""
    scores = run.table("knockout")
    metric = scores.metric.iloc[0]
    first = scores[(scores.how == scores.how.iloc[0]) & (scores.metric == metric)].set_index("row")["mean"]
    cut = {"gate cut": table.GATE, "image cut": table.IMAGE}
    left = ", ".join(f"{name} {number(first[row])}" for name, row in cut.items())
    return f"{metric} {number(first[table.NONE])}; {left}"


def knockout_bars(
    knockout: pd.DataFrame,
    how: str | None = None,
    dark: bool = False,
    chances: Mapping[str, float] | None = None,
) -> NotebookFigure:
    """One panel a metric, one bar a row of the knockout table, whiskers the 95 % interval.

    Args:
        knockout: ``how, row, metric, mean, low, high, n`` as a study's ``knockout`` table.
        how: which kind of knockout; None is the first.
        dark: draw on dark ground.
        chances: of a metric what is scored without the picture, drawn as a line; the column ``chance`` of a study's
            ``tasks`` table.

    Raises:
        DataError: the table has no such ``how``.
    """
    part = rows_with(knockout, "how", how, "the knockout table")
    # restricted accuracy stands in the table; a panel of its own would only crowd the figure
    part = part[part.metric != table.RESTRICTED]
    tops = {m: 1.0 if "accuracy" in m else max(float(g.high.max()), 0.05) for m, g in part.groupby("metric")}
    titles = {m: f"{m}  (n = {int(g.n.max())})" for m, g in part.groupby("metric")}
    colors = {table.NONE: "neutral", table.GATE: "gate", table.IMAGE: "image"}
    known = {metric: level for metric, level in (chances or {}).items() if level > 0}
    return bars(
        part, groups="row", panels="metric", colors=colors, top=tops, titles=titles, values=True, dark=dark,
        references=[ReferenceLine(known, "without the picture", (0, (3, 2)))] if known else [],
    )  # fmt: skip


def closing(run: Run) -> list[card.Card]:
    """Who is where in one prompt, and the first examples of each task with their answers."""
    tokens = card.token_card(run.json("tokens"), "The first example’s prompt")
    shown = []
    for e in run.json("examples"):
        answers = [_marked(e, row) for row in e["rows"]]
        shown.append(card.Example(e["picture"], e["id"], e["task"], e["prompt"], e["answers"], answers))
    text = "The first examples drawn of each task, not selected. Random rows: the first draw."
    named = f"{len(shown)} pictures with every answer"
    return [
        tokens,
        card.Card("Examples", [card.Text(text), card.Examples(shown)], framed=False, finding=named),
    ]


def _marked(example: Mapping[str, Any], row: Mapping[str, Any]) -> card.Answer:
    if kind(example["task"]) == "caption":
        return card.Answer(row["row"], row["prediction"], number(row["score"]))
    mark = "right" if row["score"] >= 0.5 else "wrong"
    return card.Answer(row["row"], row["prediction"], mark, mark)


SECTION = Section(
    "knockouts", "answers with a path cut, the paper’s Table 1", batches, measure, conclude, page=page
)
