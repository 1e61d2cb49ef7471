"""The training runs, and the narrow-gate study before and after each: the one section of this study.

A batch is a stage: the model as given, or trained as the stage says. Unlike any other, its ``measure`` uses a folder:
the stage's own, for checkpoints of the training, the trained weights and the inner run, so an interrupted stage
resumes there. The model has its own weights back when the stage is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup

from gatelens.data import Dataset, Example
from gatelens.errors import DataError
from gatelens.executors import Executor
from gatelens.interventions import knockout
from gatelens.model import HookedVLM
from gatelens.model.checkpoints import put_weights, weights
from gatelens.plots.bars import bars
from gatelens.plots.card import Block, Card, Cell, Chart, Table, Text
from gatelens.plots.curve import curves
from gatelens.plots.numbers import MISSING, number, percent
from gatelens.plots.style import NotebookFigure, SeriesStyle
from gatelens.plots.tidy import rows_with
from gatelens.runs import Run
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE, QUERIES, RESTRICTED
from gatelens.studies.narrow_gate.knockouts import shares_lost
from gatelens.studies.narrow_gate.study import STUDY as NARROW_GATE
from gatelens.studies.runner import run_study
from gatelens.studies.section import Batch, Measured, Section, Setup, Tables
from gatelens.studies.study import verdict_of
from gatelens.training import OthersGate, fine_tune

BEFORE, MASKED, SWAPPED, CONTROL = "before", "masked", "swapped", "control"
TITLES = {
    BEFORE: "Before",
    MASKED: "Trained with the gate masked",
    SWAPPED: "… then with another picture’s gate",
    CONTROL: "Trained equally long with nothing cut",
}
SHOWN = {NONE: "neutral", GATE: "gate", IMAGE: "image", FLOOR: "faint"}  # rows, and their colours
AVERAGED = 25  # steps


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        folder: keeps its checkpoints; a finished training found there is not done again, its weights are put in place.
        holds: the interventions of every step.
        steps, lr: of AdamW.
    """

    folder: Path
    holds: Any
    steps: int
    lr: float


@dataclass(frozen=True)
class Stage(Batch):
    """The model after some trainings, measured.

    Attributes:
        trainings: one after the other; the last is the stage's own. None: the model as it is.
        examples: what is learned.
        settings: further arguments of the training.
        folder: of the trained weights.
        data, called, measured: of the narrow-gate study, and ``study`` its folder.
        progress: show bars.
        executor: measures the batches of that study.
    """

    trainings: Sequence[Training]
    examples: Sequence[Example]
    settings: Mapping[str, Any]
    folder: Path
    data: Dataset
    called: str
    measured: Mapping[str, Any]
    study: Path
    progress: bool
    executor: Executor


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """The stages in order: before and masked always, the others where wanted."""
    options, folder = setup.options, setup.run.path
    if folder is None:
        raise DataError("gate fine-tuning keeps its trained weights: give a folder for the run (out=)")
    lr = setup.run.settings["lr"]
    masked = Training(
        folder / MASKED / "training", [knockout(queries=QUERIES, keys="gate")], options.steps, lr
    )
    trainings: dict[str, list[Training]] = {BEFORE: [], MASKED: [masked]}
    if options.swap_steps:
        # what has been learned need not be shaken up again: half the learning rate
        swapped = Training(folder / SWAPPED / "training", OthersGate(), options.swap_steps, lr / 2)
        trainings[SWAPPED] = [masked, swapped]
    if options.control:
        as_long = options.steps + options.swap_steps
        trainings[CONTROL] = [Training(folder / CONTROL / "training", [], as_long, lr)]
    learned = [e for examples in setup.drawn.values() for e in examples]
    model = setup.run.settings["model"]
    settings = {name: getattr(options, name) for name in ("batch_size", "parameters", "seed")}
    return [
        Stage(
            name, done, learned, settings, folder / name, setup.data, f"{model}, after “{name}”" if done else model,
            options.inner(), folder / name / "study" if done else folder / name, setup.progress, setup.executor,
        )
        for name, done in trainings.items()
    ]  # fmt: skip


def measure(model: HookedVLM, batch: Stage) -> Tables:
    """Train and measure: ``knockout`` and ``tasks`` of the narrow-gate run, its ``verdict``, and the ``loss``."""
    tables = {}
    with torch.inference_mode(False), own_weights(model):
        for training in batch.trainings:
            tables["loss"] = fine_tune(
                model, batch.examples, training.holds, out=training.folder, steps=training.steps, lr=training.lr,
                progress=batch.progress, **batch.settings,
            )  # fmt: skip
        if batch.trainings:
            if not (batch.folder / "model").exists():
                model.save_pretrained(batch.folder / "model")
            model.loaded_from = str((batch.folder / "model").absolute()), {"device": str(model.device)}
        run = run_study(
            NARROW_GATE, model, batch.data, batch.study, name=batch.called, progress=batch.progress,
            executor=batch.executor, **batch.measured,
        )  # fmt: skip
    said = {name: verdict_of(run)[name] for name in ("verdict", "headline", "sentence")}
    tables |= {"knockout": run.table("knockout"), "tasks": run.table("tasks")}
    return {**tables, "verdict": pd.DataFrame([{**said, "flips": _flips(run)}])}


@contextmanager
def own_weights(model: HookedVLM) -> Iterator[None]:
    """Keep the weights on the CPU while the block lasts, and put them back at its end."""
    kept = {name: value.cpu().clone() for name, value in weights(model).items()}
    source = model.loaded_from
    try:
        yield
    finally:
        put_weights(model, kept)
        model.loaded_from = source


def _flips(run: Run) -> float:
    """Which way wins where the two disagree: predictions that another picture's gate flips at the best layer."""
    if not run.has("patching"):
        return float("nan")
    table = run.table("patching")
    return float(table[(table.measure == "flipped") & (table.layer >= 0)]["mean"].max())


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``knockout``, ``shares`` (the columns of ``tasks``) and ``loss``, each with a ``stage``; ``stages`` in words."""
    names = [batch.name for batch in batches(setup, measured)]
    tables = {}
    for name, of in (("knockout", "knockout"), ("shares", "tasks"), ("loss", "loss")):
        parts = [measured[s][of].assign(stage=s) for s in names if of in measured[s]]
        tables[name] = pd.concat(parts, ignore_index=True)
    stages = []
    for name in names:
        row = measured[name]["verdict"].iloc[0]
        log = measured[name].get("loss")
        # nats per token, the mean of the last twentieth of the steps
        loss = None if log is None else float(np.mean(log.loss.tail(max(1, len(log) // 20))))
        said = {key: row[key] for key in ("verdict", "headline", "sentence")}
        flips = None if np.isnan(row.flips) else float(row.flips)
        stages.append({"name": name, **said, "loss": loss, "flips": flips})
    return {**tables, "stages": stages}


def page(run: Run) -> list[Card]:
    """Bars and table before and after; the loss of the trainings."""
    table, loss = run.table("knockout"), run.table("loss")
    first = shown_rows(table)
    compared = Chart(
        "before_after",
        partial(before_after, table, None),
        "Scores with a path cut, before and after. Orange as high as grey: the gate is no longer needed. Blue low: the "
        "image tokens are. Whiskers: 95 % intervals.",
    )
    curve = Chart(
        "loss",
        partial(loss_curves, loss),
        f"Cross-entropy of the answers’ tokens during training, the mean of every {AVERAGED} steps. No interval: each "
        "training ran once.",
        loss.drop(columns="lr"),
    )
    first = first.assign(cell=first.stage + " " + first.row)
    names: dict[str, Cell] = {
        f"{stage} {row}": (TITLES.get(stage, stage), row) for stage in first.stage.unique() for row in SHOWN
    }
    numbers = Table.from_means(first, rows="cell", names=names, count=False)
    shares = run.table("shares")
    shares = shares[shares.how == shares.how.iloc[0]]
    named = {
        i: f"{TITLES.get(s, s)}: {m}"
        for i, s, m in zip(shares.index, shares.stage, shares.metric, strict=True)
    }
    blocks: list[Block] = [compared, numbers, shares_lost(shares, named), *_stage_blocks(run.json("stages"))]
    left = Card("What is left when a path is cut", blocks, short="Knockouts")
    return [left, Card("The training", [curve], short="Training")]


def _stage_blocks(stages: Sequence[Mapping[str, Any]]) -> list[Block]:
    """What else is known of each stage, and where its own report is."""
    rows: list[list[Cell]] = []
    for stage in stages:
        flips, loss = stage["flips"], stage["loss"]
        rows.append([
            TITLES[stage["name"]],
            stage["verdict"],
            MISSING if flips is None else percent(flips),
            MISSING if loss is None else number(loss, 3),
        ])  # fmt: skip
    header = ["", "verdict", "answers changed by\nanother picture’s gate", "final loss\nnats per token"]
    links = [
        Markup('<a href="{}">{}</a>').format(report_of(stage["name"]), TITLES[stage["name"]].lower())
        for stage in stages
    ]
    note = Markup("In the best layer. Intervals are in the report of each stage: {}.").format(
        Markup(", ").join(links)
    )
    return [Table(header, rows, title="Each stage"), Text(note)]


def report_of(stage: str) -> str:
    """The path of a stage's report, from the run's own folder."""
    return f"{stage}/report.html" if stage == BEFORE else f"{stage}/study/report.html"


def shown_rows(table: pd.DataFrame, how: str | None = None) -> pd.DataFrame:
    """The rows that are compared, of one kind of knockout (None: the first), in their order."""
    part = rows_with(table, "how", how, "the knockout table")
    part = part[part.row.isin(SHOWN) & (part.metric != RESTRICTED)]
    stages = list(part.stage.unique())
    order = {name: place for place, name in enumerate([*stages, *SHOWN])}
    return part.sort_values(["stage", "row"], key=lambda column: column.map(order), kind="stable")


def before_after(table: pd.DataFrame, how: str | None = None, dark: bool = False) -> NotebookFigure:
    """One panel a metric; for each stage a bar unmodified, with the gate cut, with the image cut, with both.

    Args:
        table: ``stage, how, row, metric, mean, low, high`` as the study's ``knockout`` table.
        how: which kind of knockout; None is the first.
        dark: draw on dark ground.
    """
    return bars(
        shown_rows(table, how),
        groups="stage",
        by="row",
        series=[SeriesStyle(row, color=color) for row, color in SHOWN.items()],
        panels="metric",
        labels={stage: title.replace(" with ", "\nwith ") for stage, title in TITLES.items()},
        dark=dark,
    )


def loss_curves(loss: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """The loss of each training.

    Args:
        loss: ``stage, step, loss`` as the study's ``loss`` table; nats per token.
        dark: draw on dark ground.
    """
    group = [loss.stage, (loss.step // AVERAGED).rename("part")]
    means = loss.groupby(group, sort=False)[["step", "loss"]].mean().reset_index(level="stage")
    colors = {MASKED: "gate", SWAPPED: "third", CONTROL: "neutral"}
    figure = curves(
        means.rename(columns={"loss": "mean"}),
        [SeriesStyle(stage, TITLES[stage], color, marker="") for stage, color in colors.items()],
        by="stage",
        x="step",
        ylabel="nats per token",
        ylim=None,
        dark=dark,
    )
    figure.axes[0].set_yscale("log")
    return figure


SECTION = Section(
    "stages",
    "the model before and after each training, measured in the same way",
    batches,
    measure,
    conclude,
    page=page,
    here=True,
)
