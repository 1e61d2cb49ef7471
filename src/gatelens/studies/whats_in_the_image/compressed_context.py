"""Section *compressed_context*: questions answered from a few of a picture's keys and values.

The description prompt runs once; each layer keeps the prompt without the image and the K % of image tokens that the
description attends to most, and questions are answered from that. MME's are asked in pairs, with its ACC and ACC+.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gatelens.data import Example
from gatelens.errors import InterventionError
from gatelens.measures.answers import vqa_accuracy
from gatelens.measures.mme import MEAN, REPORTED_COMPRESSED_CONTEXT, mme_scores, yes_or_no
from gatelens.model import HookedVLM
from gatelens.plots.card import Block, Card, Cell, Chart, Table
from gatelens.plots.curve import curve, label_points, reference
from gatelens.plots.numbers import MISSING, cell, number, percent, signed, span
from gatelens.plots.style import NotebookFigure, legend_below, styled
from gatelens.runs import Run
from gatelens.studies.section import Absent, Batch, Evidence, Measured, Section, Setup, Tables
from gatelens.studies.whats_in_the_image.answers import AFRESH, FULL, REPROMPT, answer_all, summarise
from gatelens.studies.whats_in_the_image.questions import are_paired, by_picture, kind_of, question_of
from gatelens.studies.whats_in_the_image.verdict import NOTE

UNITS = 8  # of a batch, in those of a batch under one knockout: for the progress bar
REPORTED = {FULL: REPORTED_COMPRESSED_CONTEXT["full"], **REPORTED_COMPRESSED_CONTEXT}

TRADE_OFF = (
    "The description prompt runs once. Each layer keeps the prompt without the image and the K % of image tokens that "
    "the description attended to most. Questions are answered from what is kept. Query only keeps no image token."
)
MME = (
    "ACC: questions answered correctly. ACC+: pictures with both questions answered correctly. Means over the subsets "
    "asked. "
    "Chance is 50 and 25."
)


@dataclass(frozen=True)
class QuestionBatch(Batch):
    """Pictures and their questions.

    Attributes:
        pictures: the questions about each.
        keeps: shares of image tokens.
        prompt: has the picture described.
        describe_tokens: the longest description.
        paired: MME's questions, scored by its rule.
    """

    pictures: Sequence[Sequence[Example]]
    keeps: Sequence[float]
    prompt: str
    describe_tokens: int
    paired: bool


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """All pictures that are asked about."""
    options, questions = setup.options, setup.drawn["questions"]
    if not questions:
        raise Absent(f"data {setup.data.name!r} has no questions to ask")
    keeps = [1.0, *sorted(options.keep, reverse=True), 0.0]
    prompt, paired = setup.drawn["pictures"][0].prompt, are_paired(questions)
    return [
        QuestionBatch(f"{number:04d}", part, keeps, prompt, options.longest, paired, units=UNITS)
        for number, _, part in setup.batched(by_picture(questions))
    ]


def measure(model: HookedVLM, batch: QuestionBatch) -> Tables:
    """``answers``: see :func:`gatelens.studies.whats_in_the_image.answers.answer_all`; ``pairs`` of MME: ``context,
    subset, picture, prediction, answer``.

    Raises:
        Absent: some families' attention leaves no room for a compressed context.
    """
    try:
        answers = answer_all(
            model,
            batch.pictures,
            batch.keeps,
            batch.prompt,
            batch.describe_tokens,
            score=mme_score if batch.paired else vqa_accuracy,
        )
    except InterventionError as error:
        raise Absent(str(error)) from error
    if not batch.paired:
        return {"answers": answers}
    right = {
        (asked[0].id, kind_of(e), question_of(e)): e.answers[0] for asked in batch.pictures for e in asked
    }
    pairs = answers.rename(columns={"kind": "subset"})
    pairs["answer"] = [right[k] for k in zip(pairs.picture, pairs.subset, pairs.question, strict=True)]
    return {"answers": answers, "pairs": pairs[["context", "subset", "picture", "prediction", "answer"]]}


def mme_score(answer: str, accepted: Sequence[str]) -> float:
    """1 where the answer is the right one of yes and no, by MME's rule."""
    return float(yes_or_no(answer) == yes_or_no(accepted[0]))


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``answers`` and ``trade_off``; ``mme`` where the questions are MME's."""
    n_boot, seed = setup.options.n_boot, setup.options.seed
    answers, pairs = measured.table("answers"), measured.table("pairs")
    tables = {"answers": answers, "trade_off": summarise(answers, n_boot, seed)}
    if len(pairs):
        tables["mme"] = mme_table(pairs, n_boot, seed)
    return tables


def mme_table(pairs: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """ACC and ACC+ of MME's subsets for every context: :func:`gatelens.measures.mme.mme_scores` after ``context``.

    Args:
        pairs: ``context, subset, picture, prediction, answer``.
        n_boot, seed: of the intervals.
    """
    tables = []
    for name, part in pairs.groupby("context", sort=False):
        table = mme_scores(part.drop(columns="context"), n_boot, seed)
        table.insert(0, "context", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def evidence(run: Run) -> list[Evidence]:
    """What is left of the accuracy when only some of the context is kept; it decides nothing."""
    if not run.has("trade_off"):
        return []
    trade = run.table("trade_off")
    full = trade[trade.keep == 1].iloc[-1]
    parts = [
        f"{r.accuracy:.2f} [{r.low:.2f}, {r.high:.2f}] from {r.context} ({r.tokens:.0f} tokens)"
        for r in trade[trade.keep < 1].itertuples()
    ]
    text = (
        f"questions are answered with accuracy {full.accuracy:.2f} from the full context ({full.tokens:.0f} tokens), "
        f"{', '.join(parts)} (n = {int(full.n_questions)})"
    )
    line = f"questions: {full.accuracy:.2f} from the full context"
    for r in trade[trade.keep == 0].itertuples():
        line += f", {cell(r.accuracy, r.low, r.high)} from {r.context}"
    return [
        {
            "kind": "compressed context",
            "says": NOTE,
            "text": text,
            "line": f"{line} (n = {int(full.n_questions)})",
        }
    ]


def page(run: Run) -> list[Card]:
    """The trade-off, and MME's scores next to those of the paper."""
    if not run.has("trade_off"):
        return []
    trade = run.table("trade_off")
    full = trade[trade.context == FULL].iloc[0]
    caption = (
        f"{int(full.n_questions)} questions about {int(full.n_pictures)} pictures, answered after the description "
        "prompt from what is kept of it. Bands: 95 % intervals."
    )
    chart = Chart("trade_off", lambda dark: trade_off_figure(trade, dark), caption)
    blocks: list[Block] = [chart, _trade_off_block(trade)]
    words = {"compressed context": TRADE_OFF}
    if run.has("mme"):
        blocks.append(_mme_block(run.table("mme")))
        words["MME"] = MME
    finding = f"{number(full.accuracy)} from the full context"
    for r in trade[trade.keep == 0].itertuples():
        finding += f", {number(r.accuracy)} from {r.context}"
    return [Card("A compressed context", blocks, words, short="Context", finding=finding)]


def _trade_off_block(trade: pd.DataFrame) -> Table:
    full = trade[trade.context == FULL].iloc[0]
    columns = {
        "context": "context",
        "accuracy": "accuracy",
        "difference": "to full",
        "same_answer": "same answer\nas full",
        "tokens": "tokens",
        "memory": "memory",
    }
    table = trade.assign(
        accuracy=[(number(r.accuracy), span(r.low, r.high)) for r in trade.itertuples()],
        difference=["" if r.context == FULL else signed(r.difference) for r in trade.itertuples()],
        memory=trade["nbytes"] / full["nbytes"],  # a Series has an attribute of that name
    )
    return Table.from_frame(
        table,
        columns,
        {
            "same_answer": percent,
            "tokens": lambda n: f"{n:.0f}",
            "memory": percent,
        },
        controls=[AFRESH, REPROMPT],
    )


def _mme_block(scores: pd.DataFrame) -> Table:
    """ACC and ACC+ of every context, next to what the paper reports for its model."""
    rows: list[list[Cell]] = []
    for r in scores[scores.subset == MEAN].itertuples():
        reported = REPORTED.get(r.context)
        rows.append(
            [
                r.context,
                (f"{100 * r.acc:.2f}", span(100 * r.acc_low, 100 * r.acc_high, 1)),
                (f"{100 * r.acc_plus:.2f}", span(100 * r.acc_plus_low, 100 * r.acc_plus_high, 1)),
                f"{reported[0]:.2f} / {reported[1]:.2f}" if reported else MISSING,
            ]
        )
    header = ["context", "ACC", "ACC+", "reported for InternVL2-76B\nACC / ACC+"]
    return Table(header, rows, title="MME")


def trade_off_figure(trade: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """Accuracy of answers from contexts of several sizes, by the tokens they keep."""
    line = trade[trade.keep.notna() & (trade.context != AFRESH)].sort_values("tokens")
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots()
        curve(
            axes, line.tokens, line.accuracy, line.low, line.high,
            color=p.image, label="kept of the context", marker="o",
        )  # fmt: skip
        for r in trade[trade.context == REPROMPT].itertuples():
            whiskers = [[max(0.0, r.accuracy - r.low)], [max(0.0, r.high - r.accuracy)]]
            axes.errorbar(
                [r.tokens], [r.accuracy], yerr=whiskers, fmt="D", color=p.third, markersize=5, capsize=2.5,
                elinewidth=1, label="the description’s words in place of the picture",
            )  # fmt: skip
        for r in trade[trade.context == AFRESH].itertuples():
            label = "each question in a prompt of its own, with the picture"
            reference(axes, r.accuracy, label, color=p.soft)
        texts = [f"{r.context}\n{number(r.accuracy)}" for r in line.itertuples()]
        below = [i % 2 == 0 for i in range(len(line))]  # in turn below and above: neighbours may stand close
        label_points(axes, line.tokens, line.accuracy, texts, color=p.soft, below=below)
        axes.set_xscale("log")
        ticks = list(dict.fromkeys(round(t) for t in line.tokens))
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("tokens in the cache")
        low, high = float(trade.low.min()), max(float(trade.high.max()), float(trade.accuracy.max()))
        axes.set_ylim(max(0.0, low - 0.16), min(1.12, high + 0.12))
        axes.margins(x=0.08)
        axes.set_ylabel("accuracy")
        axes.grid(axis="y")
        legend_below(figure)
    return figure


SECTION = Section(
    "compressed_context",
    "questions answered from a few of the image tokens",
    batches,
    measure,
    conclude,
    evidence=evidence,
    page=page,
)
