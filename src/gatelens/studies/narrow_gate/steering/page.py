"""A direction added at the gate, on the page: what it changes and what it costs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gatelens.measures.stats import wilson_interval
from gatelens.plots.card import Block, Card, Cell, Chart, Pictures, Table, mean_cell
from gatelens.plots.curve import SHARE, curve, layer_axis
from gatelens.plots.numbers import MISSING, percent
from gatelens.plots.style import NotebookFigure, Palette, legend_below, styled
from gatelens.runs import Run
from gatelens.studies.narrow_gate.steering.directions import MEANS, NOTHING, OTHER, RANDOM, REFERENCE
from gatelens.studies.narrow_gate.steering.table import (
    ALL,
    CAPTION_KEPT,
    CAPTION_SUCCESS,
    ELSEWHERE,
    KEPT,
    SUCCESS,
    VQA,
    VQA_OVERLAP,
)

HEADS = {
    SUCCESS: "target class",
    KEPT: "own class",
    ELSEWHERE: "probability on neither",
    CAPTION_SUCCESS: "caption names the target",
    CAPTION_KEPT: "rest of the caption kept",
    VQA: "other questions right",
    VQA_OVERLAP: "overlap of their answers",
}
WORDS = {
    "steering direction": (
        "The mean residual stream at the gate of pictures of the target class, minus that of the base class. One half "
        "of the pictures gives it and the layer; the other half is steered. Dose 2 is twice the difference. Random: a "
        "random direction of the same length. Another pair: that of two other classes, brought to this length."
    ),
    HEADS[SUCCESS]: "The prediction is the target class, over pictures answered correctly when unsteered.",
    HEADS[CAPTION_KEPT]: (
        "F1 of the words of the steered and the unsteered caption. The two classes’ names and words in nine captions "
        "of ten are left out."
    ),
    HEADS[VQA]: (
        "Questions steered along a pair of classes that neither question nor answers name. Overlap: Σ min(p, q) of the "
        "answer’s first token with the unsteered one."
    ),
    "last position": (
        "The same recipe at the last prompt position, in its own best layer, where the answer is certainly read."
    ),
}


def cards(run: Run) -> list[Card]:
    """Dose curve, table of doses, and captions."""
    table, layers = run.table("steering"), run.table("steering_layers")
    if table.empty:  # no picture was answered correctly, and nothing else was asked
        return []
    caption = (
        "Left: dose 1 on the pictures the direction comes from; the ring marks the layer chosen. Right: on the others. "
        "Good steering: orange high, grey low, blue level. Bands: 95 % intervals over pictures."
    )
    blocks: list[Block] = [
        Chart(
            "steering",
            partial(dose_curve, table, layers),
            caption,
            table[table.pair == ALL].drop(columns="pair"),
        ),
        _table(table, layers),
    ]
    if run.has("steering_examples"):
        blocks.append(_pictures(run.json("steering_examples")))
    return [Card("Steering the gate", blocks, WORDS, short="Steering", finding=_finding(table))]


def _finding(table: pd.DataFrame) -> str:
    """The share of answers that dose 1 changes."""
    part = table[(table.pair == ALL) & (table.measure == SUCCESS) & (table.dose == 1.0)]
    by_direction = part.groupby("direction")["mean"].first()
    if MEANS not in by_direction:
        return ""
    random = f" (random direction {percent(by_direction[RANDOM])})" if RANDOM in by_direction else ""
    return f"dose 1 changes {percent(by_direction[MEANS])} of answers{random}"


def _table(table: pd.DataFrame, layers: pd.DataFrame) -> Table:
    part = table[table.pair == ALL]
    measures = [m for m in HEADS if m in set(part.measure)]
    rows: list[list[Cell]] = []
    shown = [NOTHING, MEANS, RANDOM, OTHER, REFERENCE]
    for direction in shown:
        for dose, mine in part[part.direction == direction].groupby("dose"):
            by_measure = mine.set_index("measure")
            name = "unsteered" if direction == NOTHING else f"{direction} × {dose:g}"
            cells: list[Cell] = [name]
            for measure in measures:
                cells.append(mean_cell(by_measure.loc[measure]) if measure in by_measure.index else MISSING)
            rows.append(cells)
    heads = [
        "added at the gate",
        *(f"{HEADS[m]}\nn = {int(part[part.measure == m].n.max())}" for m in measures),
    ]
    names = [row[0] for row in rows]
    controls = [n for n in names if isinstance(n, str) and n.startswith((RANDOM, OTHER, REFERENCE))]
    layer = int(layers[(layers.place == "gate") & layers.chosen].layer.iloc[0])
    caption = (
        "The best dose changes most answers and leaves questions and captions as they were. The directions are in "
        "directions.safetensors: "
        f'gl.steer(load_file("directions.safetensors")["BASE-TARGET"], at="gate", layers=[{layer}], scale=1.0).'
    )
    return Table(heads, rows, caption=caption, controls=controls)


def _pictures(examples: list[dict[str, Any]]) -> Pictures:
    doses: list[float] = [dose for dose, _ in examples[0]["captions"]]
    rows = []
    for one in examples:
        said = dict(one["captions"])
        cells = [(str(one["picture"]) if dose == doses[0] else "", said.get(dose, MISSING)) for dose in doses]
        rows.append((" → ".join(one["pair"]), cells))
    heads = ["direction", *("unsteered" if dose == 0 else f"dose {dose:g}" for dose in doses)]
    return Pictures(heads, rows, "Captions of the first pictures of the first pairs, not selected.")


def dose_curve(table: pd.DataFrame, layers: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """Success by layer on the fitting half, and success, controls and cost by dose on the other.

    Args:
        table: ``pair, layer, dose, direction, measure, mean, low, high, n`` as a study's ``steering`` table.
        layers: ``place, layer, success, chosen`` as its ``steering_layers`` table.
        dark: draw on dark ground.
    """
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(10.5, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 2))
        _by_layer(left, layers, p)
        part = table[table.pair == ALL]
        lines = [
            (MEANS, SUCCESS, "answers changed to the target class", p.gate, "-", "o"),
            (RANDOM, SUCCESS, "the same, random direction", p.neutral, "-", "o"),
            (OTHER, SUCCESS, "the same, another pair’s direction", p.neutral, ":", "s"),
            (MEANS, VQA, "other questions right", p.image, "-", "o"),
            (MEANS, CAPTION_KEPT, "rest of the caption kept", p.image, "--", "^"),
            (RANDOM, VQA, "other questions right, random direction", p.faint, "-", ""),
        ]
        for direction, measure, label, color, line, marker in lines:
            mine = part[(part.direction.isin([direction, NOTHING])) & (part.measure == measure)]
            mine = mine.sort_values("dose")
            if len(mine) < 2:
                continue
            looks = {"color": color, "label": label, "line": line, "marker": marker}
            curve(right, mine.dose, mine["mean"], mine.low, mine.high, **looks)
        right.set_xlabel("dose: multiples of the difference of class means")
        right.set_title("On pictures the directions were not fitted on")
        for axes in (left, right):
            axes.set_ylim(*SHARE)
            axes.grid(axis="y")
        legend_below(figure)
    return figure


def _by_layer(axes: Axes, layers: pd.DataFrame, p: Palette) -> None:
    for place, color, label in (("last", p.faint, "at the last position"), ("gate", p.gate, "at the gate")):
        part = layers[layers.place == place].sort_values("layer")
        # of outcomes: how many of n were turned
        turned = [
            wilson_interval(round(r.success * r.n), r.n) if r.n else (np.nan,) * 2 for r in part.itertuples()
        ]
        low, high = zip(*turned, strict=True)
        curve(axes, part.layer, part.success, low, high, color=color, marker="o", label=label)
        if place == "gate":
            best = part[part.chosen]
            axes.plot(best.layer, best.success, "o", markersize=11, markerfacecolor="none", color=p.ink)
    axes.set_title("Choosing the layer, dose 1")
    layer_axis(axes, layers.layer)
