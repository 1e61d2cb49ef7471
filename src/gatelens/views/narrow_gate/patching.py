"""Another picture's gate, on the page."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gatelens.plots import card
from gatelens.plots.curve import layer_axis
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import styled
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


def cards(run: Run) -> list[card.Card]:
    """The patching curves, where pairs were patched, and the map of classes where there are several pairs."""
    if not run.done("patching"):
        return []
    table = run.table("patching")
    blocks: list[card.Block] = [
        card.Chart("patching", lambda dark: patching_curve(table, dark), _caption(table))
    ]
    if run.done("patching_attention"):
        cumulative = run.table("patching_attention")
        caption = (
            "The same for the input of the attention, in a layer and all after it: from layer 0 on, everything that "
            "text reads at the gate is the other picture’s, while the gate’s own stream stays the picture’s. Where "
            "orange falls, later layers no longer bring the class over."
        )
        draw = card.Chart(
            "patching_attention", lambda dark: patching_curve(cumulative, dark, CUMULATIVE), caption
        )
        blocks.append(draw)
    if run.done("patching_classes"):
        classes = run.table("patching_classes")
        if len(classes) > 1:
            blocks.append(
                card.Chart(
                    "patching_classes", lambda dark: class_map(classes, dark), _classes_caption(classes)
                )
            )
    return [card.Card("Another picture’s gate", blocks, WORDS)]


def _caption(table: pd.DataFrame) -> str:
    flips = table[(table.measure == "flipped") & (table.layer >= 0)]
    text = (
        "The residual stream of the gate is replaced, in one layer, by that of a picture of another "
        "class. If the gate carries the class, the answer moves to the other picture's: orange rises, blue "
        "falls, predictions flip. "
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
) -> Figure:
    """Overlap of the patched answer with base and target, and the shares of predictions that became the target's, by
    patched layer.

    Args:
        table: ``layer, measure, mean, low, high, n`` as a study's ``patching`` or ``patching_attention`` table;
            layer −1 is unpatched.
        dark: draw on dark ground.
        title: of the figure.
    """
    with styled(dark) as p:
        figure = Figure(figsize=(9, 4.0), layout="constrained")
        axes = figure.subplots()
        lines = [
            ("target", "overlap with the patched-in picture's answer", p.gate, "-", "o"),
            ("base", "overlap with the picture's own answer", p.image, "-", "o"),
            ("flipped", "predictions flipped", p.third, "--", "o"),
            ("success", "predictions of the target's class", p.ink, ":", "x"),
        ]
        layers: list[int] = []
        for measure, label, color, line, marker in lines:
            part = table[(table.measure == measure) & (table.layer >= 0)].sort_values("layer")
            if part.empty:
                continue
            layers = [int(x) for x in part.layer]
            axes.plot(layers, part["mean"], line, color=color, marker=marker, markersize=4, label=label)
            axes.fill_between(layers, part.low, part.high, color=color, alpha=0.15, linewidth=0)
        clean = table[(table.measure == "target") & (table.layer == -1)]
        if len(clean):
            axes.axhline(float(clean["mean"].iloc[0]), color=p.soft, linewidth=1, linestyle="-.")
            label = "overlap of the two clean answers"
            axes.plot([], [], "-.", color=p.soft, linewidth=1, label=label)
        axes.set_ylim(-0.02, 1.04)
        axes.set_title(title)
        axes.grid(axis="y")
        layer_axis(axes, layers)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8.5, labelcolor=p.ink)
    return figure


def class_map(table: pd.DataFrame, dark: bool = False) -> Figure:
    """Success by base (row) and target class (column).

    Args:
        table: ``base_class, target_class, mean, n`` as a study's ``patching_classes`` table.
        dark: draw on dark ground.
    """
    from matplotlib.colors import LinearSegmentedColormap

    bases, targets = (sorted(set(table[c])) for c in ("base_class", "target_class"))
    grid = table.pivot(index="base_class", columns="target_class", values="mean").reindex(
        index=bases, columns=targets
    )
    with styled(dark) as p:
        size = (2.6 + 0.62 * len(targets), 1.9 + 0.46 * len(bases))
        figure = Figure(figsize=(max(5.0, size[0]), size[1]), layout="constrained")
        axes = figure.subplots()
        colors = LinearSegmentedColormap.from_list("gate", [p.ground, p.gate]).with_extremes(bad=p.grid)
        shown = axes.imshow(
            np.ma.masked_invalid(grid.to_numpy(dtype=float)), cmap=colors, vmin=0, vmax=1, aspect="auto"
        )
        if len(bases) * len(targets) <= 400:
            for i, row in enumerate(grid.to_numpy(dtype=float)):
                for j, value in enumerate(row):
                    if np.isfinite(value):
                        ink = p.ground if value > 0.55 else p.ink
                        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
        axes.set_xticks(range(len(targets)), targets, rotation=35, ha="right")
        axes.set_yticks(range(len(bases)), bases)
        axes.tick_params(length=0)
        axes.set_xlabel("target: the picture the gate is taken from")
        axes.set_ylabel("base")
        axes.set_title("Predictions of the target’s class")
        figure.colorbar(shown, ax=axes, shrink=0.8).outline.set_visible(False)
    return figure
