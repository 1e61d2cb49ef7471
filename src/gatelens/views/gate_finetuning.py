"""The page of the study that fine-tunes the gate away: what is left when a path is cut, before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Drawing

from gatelens.data.base import kind
from gatelens.plots import card, page, templating
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import styled
from gatelens.runs import Run
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE, RESTRICTED
from gatelens.views.narrow_gate.words import ALWAYS_SAID, METHOD

SHOWN = (NONE, GATE, IMAGE, FLOOR)
TITLES = {
    "before": "Before",
    "masked": "Trained with the gate masked",
    "swapped": "… then with another picture’s gate",
    "control": "Trained as long with nothing cut",
}


def figures(run: Run) -> dict[str, Callable[[bool], Drawing]]:
    """The page's figures by file name."""
    return {b.name: b.draw for one in cards(run) for b in one.blocks if isinstance(b, card.Chart)}


def render(run: Run, light: Mapping[str, bytes] | None = None) -> str:
    """The page as HTML. ``light``: the figures on light ground as PNG, where they are drawn already.

    Raises:
        OutputError: the run lacks a finished table.
    """
    table, verdict = run.table("knockout"), run.json("verdict")
    used = {f"knockout {how}" for how in table.how} | {kind(m) for m in table.metric}
    words = {t: text for t, text in METHOD.items() if t in used or t in ALWAYS_SAID}
    longest = {"vqa": 20, "caption": 60, **run.manifest["settings"]["measured"].get("max_new_tokens", {})}
    stages = [s["name"] for s in verdict["stages"]]
    return templating.template("gate_finetuning.html.j2").render(
        css=templating.css(),
        settings=run.manifest["settings"],
        created=run.manifest["created"][:10],
        verdict=verdict,
        titles=TITLES,
        links={s: "before/report.html" if s == "before" else f"{s}/study/report.html" for s in stages},
        cards=cards(run),
        figures=page.chart_pictures(figures(run), light),
        method=[(term, text.format(**longest)) for term, text in words.items()],
        facts=page.facts(run.manifest),
    )


def cards(run: Run) -> list[card.Card]:
    """Bars and table before and after; the loss of the trainings."""
    table, loss = run.table("knockout"), run.table("loss")
    how = table.how.iloc[0]
    bars = card.Chart(
        "before_after",
        lambda dark: before_after(table, how, dark),
        "What the model gets right with a path cut from the text, before and after. If the orange bar rises to the "
        "grey one, the gate is no longer needed; if the blue one falls, the image tokens now are.",
    )
    curve = card.Chart(
        "loss",
        lambda dark: loss_curves(loss, dark),
        "Cross-entropy of the answers' tokens while training, the mean of every 25 steps.",
    )
    return [
        card.Card("What is left when a path is cut", [bars, _table(table, how)]),
        card.Card("The training", [curve]),
    ]


def _table(table: pd.DataFrame, how: str) -> card.Table:
    part = table[(table.how == how) & table.row.isin(SHOWN) & (table.metric != RESTRICTED)]
    metrics = list(dict.fromkeys(part.metric))
    rows: list[list[Any]] = []
    for stage in dict.fromkeys(part.stage):
        for name in SHOWN:
            mine = part[(part.stage == stage) & (part.row == name)].set_index("metric")
            cells: list[Any] = [(TITLES.get(stage, stage), name)]
            for metric in metrics:
                r = mine.loc[metric]
                cells.append((f"{r['mean']:.2f}", f"{r['low']:.2f} – {r['high']:.2f}"))
            rows.append(cells)
    return card.Table(["", *metrics], rows)


def before_after(table: pd.DataFrame, how: str | None = None, dark: bool = False) -> Figure:
    """One panel a metric; for each stage a bar unmodified, with the gate cut, with the image cut, with both.

    Args:
        table: ``stage, how, row, metric, mean, low, high`` as the study's ``knockout`` table.
        how: which kind of knockout; None is the first.
        dark: draw on dark ground.
    """
    part = table[(table.how == (how or table.how.iloc[0])) & (table.metric != RESTRICTED)]
    metrics, stages = list(dict.fromkeys(part.metric)), list(dict.fromkeys(part.stage))
    with styled(dark) as p:
        figure = Figure(figsize=(9, 0.5 + 0.95 * len(stages)), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        colors = {NONE: p.neutral, GATE: p.gate, IMAGE: p.image, FLOOR: p.faint}
        for axes, metric in zip(panels, metrics, strict=True):
            for k, name in enumerate(SHOWN):
                one = part[(part.metric == metric) & (part.row == name)].set_index("stage").reindex(stages)
                y = [i + (k - 1.5) * 0.2 for i in range(len(stages))]
                axes.barh(
                    y, one["mean"], height=0.18, color=colors[name], label=name if axes is panels[0] else None
                )
                whiskers = [(one["mean"] - one.low).clip(lower=0), (one.high - one["mean"]).clip(lower=0)]
                axes.errorbar(
                    one["mean"], y, xerr=whiskers, fmt="none", ecolor=p.ink, elinewidth=0.8, capsize=2
                )
            axes.set_title(metric)
            axes.grid(axis="x")
            axes.tick_params(left=False)
            axes.set_xlim(left=0)
        panels[0].set_yticks(
            range(len(stages)), [TITLES.get(s, s).replace(" with ", "\nwith ") for s in stages]
        )
        panels[0].invert_yaxis()
        figure.legend(loc="outside lower center", ncols=4, labelcolor=p.ink)
    return figure


def loss_curves(loss: pd.DataFrame, dark: bool = False) -> Figure:
    """The loss of each training.

    Args:
        loss: ``stage, step, loss`` as the study's ``loss`` table; nats a token.
        dark: draw on dark ground.
    """
    with styled(dark) as p:
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.subplots()
        colors = {"masked": p.gate, "swapped": p.third, "control": p.neutral}
        for stage, part in loss.groupby("stage", sort=False):
            means = part.groupby(part.step // 25).agg(step=("step", "mean"), loss=("loss", "mean"))
            axes.plot(
                means.step,
                means.loss,
                color=colors.get(str(stage), p.image),
                label=TITLES.get(str(stage), stage),
            )
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("nats a token")
        axes.grid(axis="y")
        axes.legend(labelcolor=p.ink)
    return figure
