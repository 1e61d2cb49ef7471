"""Another picture's gate, on the page."""

from __future__ import annotations

import pandas as pd

from gatelens.runs import Run
from gatelens.views.narrow_gate import card
from gatelens.views.style import Figure, integer_layers, styled


def cards(run: Run) -> list[card.Card]:
    """The patching curves, where pairs were patched."""
    if not run.done("patching"):
        return []
    table = run.table("patching")
    figure = card.Figure("patching", lambda dark: patching_curve(table, dark), _caption(table))
    return [card.Card("Another picture’s gate", [figure])]


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


def patching_curve(table: pd.DataFrame, dark: bool = False) -> Figure:
    """Overlap of the patched answer with base and target, and the share of flipped predictions, by patched
    layer.

    Args:
        table: ``layer, measure, mean, low, high, n`` as a study's ``patching`` table; layer −1 is unpatched.
        dark: draw on dark ground.
    """
    with styled(dark) as p:
        figure = Figure(figsize=(9, 4.0), layout="constrained")
        axes = figure.subplots()
        lines = [
            ("target", "overlap with the patched-in picture's answer", p.gate, "-"),
            ("base", "overlap with the picture's own answer", p.image, "-"),
            ("flipped", "predictions flipped", p.third, "--"),
        ]
        layers: list[int] = []
        for measure, label, color, line in lines:
            part = table[(table.measure == measure) & (table.layer >= 0)].sort_values("layer")
            if part.empty:
                continue
            layers = [int(x) for x in part.layer]
            axes.plot(layers, part["mean"], line, color=color, marker="o", markersize=4, label=label)
            axes.fill_between(layers, part.low, part.high, color=color, alpha=0.15, linewidth=0)
        clean = table[(table.measure == "target") & (table.layer == -1)]
        if len(clean):
            axes.axhline(float(clean["mean"].iloc[0]), color=p.soft, linewidth=1, linestyle=":")
            label = "overlap of the two clean answers"
            axes.plot([], [], ":", color=p.soft, linewidth=1, label=label)
        axes.set_ylim(-0.02, 1.04)
        axes.set_title("Patching the gate's residual stream, one layer at a time")
        axes.grid(axis="y")
        integer_layers(axes, layers)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8.5, labelcolor=p.ink)
    return figure
