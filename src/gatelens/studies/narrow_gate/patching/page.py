"""Patching on the page: what the answer becomes, layer by layer, and the map of classes."""

from __future__ import annotations

from functools import partial

import pandas as pd

from gatelens.plots.card import Card, Chart
from gatelens.plots.curve import curves
from gatelens.plots.heatmap import heat_map
from gatelens.plots.style import NotebookFigure, ReferenceLine, SeriesStyle
from gatelens.runs import Run

CUMULATIVE = "Patching what the attention reads at the gate, from a layer to the last"
WORDS = {
    "patched, class": (
        "The prediction under patching is a label of the target's class; counted over pairs of which both "
        "unpatched predictions are right."
    ),
    "patched, flipped": (
        "The prediction under patching is the target picture's own unpatched prediction, right or wrong; counted "
        "over pairs whose unpatched predictions differ."
    ),
}


def cards(run: Run) -> list[Card]:
    """The patching curves, and the map of classes where there are several pairs."""
    table, cumulative = run.table("patching"), run.table("patching_attention")
    charts = [
        Chart("patching", lambda dark: patching_curve(table, dark), _caption(table)),
        Chart(
            "patching_attention",
            lambda dark: patching_curve(cumulative, dark, CUMULATIVE),
            "The same for the input of the attention, in a layer and all after it: from layer 0 on, everything that "
            "text reads at the gate is the other picture’s, while the gate’s own stream stays the picture’s. Where "
            "orange falls, later layers no longer bring the class over.",
        ),
    ]
    classes = run.table("patching_classes") if run.has("patching_classes") else pd.DataFrame()
    if len(classes) > 1:
        charts.append(Chart("patching_classes", partial(class_map, classes), _classes_caption(classes)))
    return [Card("Another picture’s gate", charts, WORDS)]


def _caption(table: pd.DataFrame) -> str:
    flips = table[(table.measure == "flipped") & (table.layer >= 0)]
    text = (
        "The residual stream of the gate is replaced, in one layer, by that of a picture of another class. If the gate "
        "carries the class, the answer moves to the other picture's: orange rises, blue falls, predictions flip. "
        "Overlap is Σ min(p, q) of the next-token distributions."
    )
    if flips.empty:
        return text + " No pair had two different clean predictions, so none could flip."
    return text + f" Flips are counted over the {int(flips.n.iloc[0])} pairs whose clean predictions differ."


def _classes_caption(table: pd.DataFrame) -> str:
    low, high = int(table.n.min()), int(table.n.max())
    each = f"{low}" if low == high else f"{low} to {high}"
    best = "the best over all pairs" if table["mean"].max() > 0 else "it is none in any other layer either"
    return (
        f"Share of patched predictions that are the target’s class, in layer {int(table.layer.iloc[0])} ({best}), "
        f"by class pair; {each} pairs of pictures a cell, so single cells say little. Empty: not measured."
    )


def patching_curve(
    table: pd.DataFrame,
    dark: bool = False,
    title: str = "Patching the gate's residual stream, one layer at a time",
) -> NotebookFigure:
    """Overlap of the patched answer with base and target, and the shares of predictions that became the target's, by
    patched layer.

    Args:
        table: ``layer, measure, mean, low, high, n`` as a study's ``patching`` or ``patching_attention`` table;
            layer −1 is unpatched.
        dark: draw on dark ground.
        title: of the figure.
    """
    clean = table[(table.measure == "target") & (table.layer == -1)]
    level = float(clean["mean"].iloc[0]) if len(clean) else float("nan")
    return curves(
        table[table.layer >= 0],
        [
            SeriesStyle("target", "overlap with the patched-in picture's answer", "gate"),
            SeriesStyle("base", "overlap with the picture's own answer", "image"),
            SeriesStyle("flipped", "predictions flipped", "third", "--"),
            SeriesStyle("success", "predictions of the target's class", "ink", ":", "x"),
        ],
        by="measure",
        references=[ReferenceLine(level, "overlap of the two clean answers", "-.")],
        title=title,
        dark=dark,
    )


def class_map(table: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """Success by base (row) and target class (column), of a study's ``patching_classes`` table."""
    return heat_map(
        table,
        rows="base_class",
        columns="target_class",
        row_label="base",
        column_label="target: the picture the gate is taken from",
        title="Predictions of the target’s class",
        dark=dark,
    )
