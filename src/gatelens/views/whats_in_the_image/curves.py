"""The figures of “What's in the image?”: attention by token type, knockout curves, localisation, trade-off."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelens.errors import DataError
from gatelens.plots.curve import layer_axis
from gatelens.plots.style import Palette, styled
from gatelens.studies.whats_in_the_image.compressed_context import AFRESH, REPROMPT
from gatelens.studies.whats_in_the_image.configurations import (
    ALL,
    BOTH,
    FROM,
    GENERATED,
    OUTSIDE,
    QUERY,
    WITHIN,
)
from gatelens.studies.whats_in_the_image.evidence import by_paper
from gatelens.studies.whats_in_the_image.scores import F1


def token_types(table: pd.DataFrame, dark: bool = False) -> Figure:
    """Where the generated tokens' attention goes, by layer (Fig. 1 of the paper).

    Args:
        table: ``layer, kind, share, even`` as the study's ``token_types`` table.
        dark: draw on dark ground.
    """
    whole, layers = by_paper(table), sorted({int(x) for x in table.layer})
    with styled(dark) as p:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        for kind, label, color, marker in (
            ("image", "image tokens", p.image, "o"),
            ("query", "query tokens: the prompt without the image", p.gate, "s"),
            ("generated", "generated tokens", p.third, "^"),
        ):
            part = whole[whole.kind == kind].sort_values("layer")
            axes.plot(part.layer, part.share, color=color, marker=marker, markersize=4, label=label)
            axes.plot(part.layer, part.even, color=color, linestyle=":", linewidth=1)
        for kind, label in (
            ("system", "of the query tokens: before the image"),
            ("markers", "of these: image markers"),
        ):
            part = table[table.kind == kind].sort_values("layer")
            if len(part) and part.share.max() > 0.005:
                style = "--" if kind == "system" else "-."
                axes.plot(part.layer, part.share, style, color=p.gate, linewidth=1, alpha=0.8, label=label)
        axes.plot([], [], ":", color=p.soft, linewidth=1, label="if every position were looked at alike")
        axes.set_ylim(0, 1)
        axes.set_ylabel("share of attention")
        axes.grid(axis="y")
        layer_axis(axes, layers)
        _legend_below(axes, p, 2)
    return figure


def knockout_curves(
    table: pd.DataFrame, chance: float | None, window: dict[str, Any] | None, how: str, dark: bool = False
) -> Figure:
    """Object F1 when a path is cut from layer l on; the window is shaded, its two knockouts beside the curve.

    Args:
        table: the study's ``knockout`` table.
        chance: F1 of another picture's description; None draws no line.
        window: ``start, stop`` of the window; None shades nothing.
        how: which kind of knockout.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no such ``how``.
    """
    part = table[(table.how == how) & (table.metric == F1)]
    if part.empty:
        raise DataError(f"the knockout table has no F1 with how={how!r}")
    with styled(dark) as p:
        marked = part[part.scope.isin([WITHIN, OUTSIDE])]
        figure = Figure(figsize=(9, 3.9), layout="constrained")
        if marked.empty:
            axes, bars = figure.subplots(), None
        else:
            axes, bars = figure.subplots(1, 2, sharey=True, width_ratios=[2.6, 1])
        colors = {GENERATED: p.third, QUERY: p.gate, BOTH: p.neutral}
        markers = {GENERATED: "^", QUERY: "s", BOTH: "o"}
        starts: list[int] = []
        for path, color in colors.items():
            line = part[(part.path == path) & part.scope.isin([ALL, FROM])].sort_values("start")
            starts = [int(x) for x in line.start]
            axes.plot(starts, line["mean"], color=color, marker=markers[path], markersize=4.5, label=path)
            axes.fill_between(starts, line.low, line.high, color=color, alpha=0.15, linewidth=0)
        if chance is not None:
            for one in (axes, *([] if bars is None else [bars])):
                one.axhline(chance, color=p.soft, linewidth=1, linestyle=":")
            axes.plot([], [], ":", color=p.soft, linewidth=1, label="another picture’s description")
        if window is not None:
            axes.axvspan(window["start"] - 0.5, window["stop"] - 0.5, color=p.faint, alpha=0.25, linewidth=0)
            span = _span(window)
            axes.text(
                (window["start"] + window["stop"] - 1) / 2,
                1.06,
                f"layers {span}",
                ha="center",
                fontsize=8.5,
                color=p.soft,
            )
        axes.set_ylim(-0.02, 1.13)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_title("Cut from layer l to the last", pad=12)
        axes.set_ylabel(F1)
        axes.grid(axis="y")
        layer_axis(axes, starts)
        axes.set_xlabel("first layer of the cut, l  (0: all layers)")
        if bars is not None:
            _window_bars(bars, marked, colors, p, window)
        _legend_below(axes, p, 2)
    return figure


def _window_bars(
    axes: Axes, marked: pd.DataFrame, colors: dict[str, str], p: Palette, window: dict[str, Any] | None
) -> None:
    width, groups = 0.26, (WITHIN, OUTSIDE)
    for i, (path, color) in enumerate(colors.items()):
        for g, scope in enumerate(groups):
            one = marked[(marked.path == path) & (marked.scope == scope)]
            if one.empty:
                continue
            row = one.iloc[0]
            x = g + (i - 1) * width
            axes.bar(x, row["mean"], width=width * 0.9, color=color)
            whisker = [[max(0.0, row["mean"] - row.low)], [max(0.0, row.high - row["mean"])]]
            axes.errorbar(x, row["mean"], yerr=whisker, fmt="none", ecolor=p.ink, elinewidth=1, capsize=2)
            axes.text(x, row.high + 0.02, f"{row['mean']:.2f}", ha="center", fontsize=7.5, color=p.soft)
    span = _span(window) if window is not None else "of the window"
    axes.set_xticks(range(len(groups)), [f"only in\nlayers {span}", f"in all but\nlayers {span}"])
    axes.tick_params(left=False, bottom=False)
    axes.spines["left"].set_visible(False)
    axes.set_title("Cut there, or elsewhere", pad=12)
    axes.grid(axis="y")


def localisation(table: pd.DataFrame, dark: bool = False) -> Figure:
    """How often an object's word looks hardest at a point of the object, by layers, with chance beside it.

    Args:
        table: ``first, last, hit, hit_low, hit_high, chance, near, …`` of the study.
        dark: draw on dark ground.
    """
    line = table.sort_values("first").reset_index(drop=True)
    with styled(dark) as p:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        x = range(len(line))
        for name, label, chance, color, marker in (
            ("hit", "maximum on the object", "chance", p.image, "o"),
            ("near", "maximum on the object or near it", "chance_near", p.neutral, "s"),
        ):
            axes.plot(x, line[name], color=color, marker=marker, markersize=4, label=label)
            axes.fill_between(
                x, line[f"{name}_low"], line[f"{name}_high"], color=color, alpha=0.15, linewidth=0
            )
            axes.plot(x, line[chance], color=color, linestyle=":", linewidth=1.2, label=f"chance: {label}")
        axes.set_ylim(0, 1.04)
        axes.set_ylabel("share of named objects")
        axes.grid(axis="y")
        single = bool((line["first"] == line["last"]).all())
        names = [f"{a}" if a == b else f"{a}–{b}" for a, b in zip(line["first"], line["last"], strict=True)]
        axes.set_xticks(x, names)
        axes.set_xlabel("layer" if single else "layers, attention averaged")
        _legend_below(axes, p, 2)
    return figure


def trade_off(table: pd.DataFrame, dark: bool = False) -> Figure:
    """Accuracy of answers from contexts of several sizes, by the tokens they keep.

    Args:
        table: ``context, keep, accuracy, low, high, tokens`` of the study.
        dark: draw on dark ground.
    """
    with styled(dark) as p:
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots()
        line = table[table.keep.notna() & (table.context != AFRESH)].sort_values("tokens")
        axes.plot(
            line.tokens, line.accuracy, color=p.image, marker="o", markersize=5, label="kept of the context"
        )
        axes.fill_between(line.tokens, line.low, line.high, color=p.image, alpha=0.15, linewidth=0)
        other = table[table.context == REPROMPT]
        if len(other):
            row = other.iloc[0]
            whisker = [[max(0.0, row.accuracy - row.low)], [max(0.0, row.high - row.accuracy)]]
            axes.errorbar(
                [row.tokens], [row.accuracy], yerr=whisker, fmt="D", color=p.third, markersize=5, capsize=2.5,
                elinewidth=1, label="the description’s words in place of the picture",
            )  # fmt: skip
        afresh = table[table.context == AFRESH]
        if len(afresh):
            axes.axhline(
                float(afresh.accuracy.iloc[0]), color=p.soft, linewidth=1, linestyle=":",
                label="each question in a prompt of its own, with the picture",
            )  # fmt: skip
        axes.set_xscale("log")
        ticks = list(dict.fromkeys(round(t) for t in line.tokens))
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("tokens in the cache")
        low, high = float(table.low.min()), max(float(table.high.max()), float(table.accuracy.max()))
        axes.set_ylim(max(0.0, low - 0.16), min(1.12, high + 0.12))
        for i, row in enumerate(line.itertuples()):  # in turn below and above: neighbours may stand close
            above = i % 2 == 1
            axes.annotate(
                f"{row.context}\n{row.accuracy:.2f}", (row.tokens, row.accuracy), xytext=(0, 8 if above else -9),
                va="bottom" if above else "top", textcoords="offset points", ha="center", fontsize=8.5,
                color=p.soft,
            )  # fmt: skip
        axes.margins(x=0.08)
        axes.set_ylabel("accuracy")
        axes.grid(axis="y")
        _legend_below(axes, p, 2)
    return figure


def _legend_below(axes: Axes, p: Palette, columns: int) -> None:
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, fontsize=8.5, labelcolor=p.ink
    )


def _span(window: dict[str, Any]) -> str:
    start, last = int(window["start"]), int(window["stop"]) - 1
    return f"{start}–{last}" if last > start else f"{start}"
