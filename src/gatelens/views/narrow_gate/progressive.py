"""The progressive knockout on the page: what is left when the path is cut from a layer on, or in a few layers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gatelens.errors import DataError
from gatelens.plots import card
from gatelens.plots.curve import layer_axis
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import styled
from gatelens.runs import Run
from gatelens.studies.narrow_gate.progressive import BOTH, FROM, UNCUT, WINDOW

WORDS = {
    "progressive knockout": (
        "“From layer l to the last”: in layer l and all after it the text cannot read the named tokens, in the layers "
        "before it can. “Window”: it cannot in the layers l to l + w − 1 alone. From layer 0 on it is the row of the "
        "knockout table, on the first of its examples."
    ),
    "layers that carry the effect": (
        "What a start layer adds to the loss is what cutting from it on costs more than cutting from the next start "
        "on; the curve is first made monotone, so that noise makes no negative part. Named are the fewest layers in a "
        "row that hold 90 % of the sum, where cutting all layers costs something (paired interval above 0)."
    ),
}


def cards(run: Run) -> list[card.Card]:
    """The curves of every kind of knockout, where they were measured."""
    if not run.done("progressive"):
        return []
    table, layers = run.table("progressive"), run.table("progressive_layers")
    hows = list(dict.fromkeys(table.how))
    figures = []
    for how in hows:
        name = "progressive" if len(hows) == 1 else f"progressive_{how}"
        kind = "" if len(hows) == 1 else f"Knockout {how}. "
        figures.append(
            card.Chart(
                name,
                lambda dark, how=how: progressive_curves(table, how, dark),  # type: ignore[misc]
                kind + caption(table[table.how == how], layers[layers.how == how]),
            )
        )
    return [card.Card("In which layers the path matters", figures, WORDS)]


def caption(table: pd.DataFrame, layers: pd.DataFrame) -> str:
    """What the curves show and, from the numbers, where the effect sets in."""
    width = _width(table)
    window = "one layer" if width == 1 else f"{width} layers"
    text = (
        "Left: the text cannot read the gate (orange) or the image tokens (blue) from a layer on to the last; as long "
        "as the curve lies low, what it needs of the picture passes in that layer or later. Right: cut in "
        f"{window} alone; it falls only where the layers before and after cannot make up for it. Bands: 95 % bootstrap "
        "interval over examples. "
    )
    return text + " ".join(_says(row) for row in layers.to_dict("records"))


def _says(row: dict[str, Any]) -> str:
    opening = f"{row['metric'][0].upper()}{row['metric'][1:]}, {row['keys']} → text: cutting every layer"
    if row["drop_low"] <= 0:
        interval = f"[{_number(row['drop_low'])}, {_number(row['drop_high'])}]"
        return f"{opening} costs nothing measurable ({_number(row['drop'])} {interval})."
    one = row["first"] == row["last"]
    where = f"layer {row['first']} carries" if one else f"layers {row['first']}–{row['last']} carry"
    text = f"{opening} costs {_number(row['drop'])}; {where} 90 % of it"
    if row["free_from"] < 0:
        return text + ", and the cut still costs something from the last start on."
    return (
        f"{text}, and cutting from layer {row['free_from']} on costs nothing measurable any more (at most "
        f"{_number(row['free_most'])}, the upper end of its interval)."
    )


def _number(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _width(table: pd.DataFrame) -> int:
    windows = table[table.way == WINDOW]
    return int((windows["last"] - windows.layer + 1).max())


def progressive_curves(table: pd.DataFrame, how: str | None = None, dark: bool = False) -> Figure:
    """Score against the start layer, a row of panels a metric: cut to the last layer, and in a window.

    Args:
        table: ``how, metric, keys (none | gate | image | gate + image), way (none | from | window), layer, last,
            mean, low, high, n`` as a study's ``progressive`` table.
        how: which kind of knockout; None is the first.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no such ``how``.
    """
    kinds = list(dict.fromkeys(table.how))
    how = how or (kinds[0] if kinds else "none")
    part = table[table.how == how]
    if part.empty:
        raise DataError(
            f"the progressive table has no rows with how={how!r} (it has: {', '.join(kinds) or 'none'})"
        )
    metrics = list(dict.fromkeys(part.metric))
    width = _width(part)
    titles = {FROM: "cut from layer l to the last", WINDOW: "cut in layer l alone"}
    if width > 1:
        titles[WINDOW] = f"cut in layers l to l + {width - 1} alone"
    with styled(dark) as p:
        figure = Figure(figsize=(9, 2.6 * len(metrics) + 0.7), layout="constrained")
        panels = figure.subplots(len(metrics), 2, sharey=True, squeeze=False)
        for line, metric in zip(panels, metrics, strict=True):
            one = part[part.metric == metric]
            for axes, way in zip(line, (FROM, WINDOW), strict=True):
                layers: list[int] = []
                for keys, color, mark in (("gate", p.gate, "o"), ("image", p.image, "s")):
                    curve = one[(one["keys"] == keys) & (one.way == way)].sort_values("layer")
                    layers = [int(x) for x in curve.layer]
                    label = f"{keys} → text"
                    axes.plot(layers, curve["mean"], color=color, marker=mark, markersize=4, label=label)
                    axes.fill_between(layers, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
                for keys, label, dots in (
                    (UNCUT, "unmodified", (1, 1.5)),
                    (BOTH, "floor: both cut in every layer", (4, 2)),
                ):
                    level = float(one[one["keys"] == keys]["mean"].iloc[0])
                    axes.axhline(level, color=p.soft, linewidth=1.2, linestyle=(0, dots), label=label)
                axes.set_ylim(-0.03, 1.05)
                axes.set_title(titles[way] if metric == metrics[0] else "")
                axes.grid(axis="y")
                layer_axis(axes, layers)
                axes.set_xlabel("layer l" if metric == metrics[-1] else "")
            line[0].set_ylabel(f"{metric}\n(n = {int(one.n.max())})")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=4,
            fontsize=8.5,
            labelcolor=p.ink,
            frameon=False,
        )
    return figure
