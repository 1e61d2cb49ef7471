"""Figures of a gate search: the measures over the prompt's tokens, and what the chosen set carries layer by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gatelens.errors import DataError
from gatelens.plots.bars import interval_bars
from gatelens.plots.curve import curve, curves, reference
from gatelens.plots.numbers import percent
from gatelens.plots.style import NotebookFigure, Palette, ReferenceLine, SeriesStyle, styled
from gatelens.studies.gate_finder.result import SearchResult
from gatelens.studies.gate_finder.verdict import DISTRIBUTED, NARROW, RESAMPLE

# of the picture: with more, bars are the strongest of as many neighbours as fit in one cell
_MOST_CELLS = 160


def gate_figure(result: SearchResult, dark: bool = False) -> NotebookFigure:
    """Four panels over the prompt's tokens (attention, overlap, knockout, patching), and the share sets carry.

    Bars are means, whiskers 95 % intervals; a pale band is what a block adds on average over random orders of blocks.
    """
    if not result.places:
        raise DataError("gate_figure: the search has no positions; run find_gate on a prompt with a picture")
    hows = result.settings["how"]
    marked = f" (bars: {hows[0]}{f', diamonds: {hows[1]}' if len(hows) > 1 else ''})"
    panels = {
        "attention": "Attention it gets, share of all candidates (mean over layers)",
        "overlap": "Neighbours of the same class, best layer",
        f"{hows[0]} accuracy": f"Accuracy lost when nothing after it reads it{marked}",
        "flipped": "Answers that become another picture’s when it is taken from there; pale: the share of a block",
    }
    cells = _cells(result)
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(10.5, 9.2), layout="constrained")
        axes = figure.subplots(6, 1, height_ratios=[1, 1, 1, 1, 0.22, 1.25])
        cells["color"] = [_color(result, place, p) for place in cells.index]
        for one, (measure, title) in zip(axes[:4], panels.items(), strict=True):
            _bars(one, result, cells, measure, p)
            one.set_title(title, fontsize=9.5)
        reference(axes[1], result.settings["overlap_by_chance"], "by chance", color=p.soft)
        axes[1].legend(loc="upper left", fontsize=8)
        if len(hows) > 1:
            other = result.measures[result.measures.measure == f"{hows[1]} accuracy"]
            middle = other.place.map(cells.middle)
            axes[2].vlines(middle, other.low, other.high, color=p.ink, linewidth=0.8)
            axes[2].plot(middle, other["mean"], "D", color=p.ink, markersize=2.5, markerfacecolor=p.ground)
        _strip(axes[4], result, cells, p)
        for one in axes[:5]:
            one.set_xlim(cells.left.min(), (cells.left + cells.width).max())
        _growing_sets(axes[5], result, p)
        title = f"{result.model}: {result.verdict['headline']}"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=p.ink)
    return figure


def _cells(result: SearchResult) -> pd.DataFrame:
    """Where each place is drawn: the picture's are narrow (several to a cell if many), the words' are wide."""
    n_picture = sum(one.in_picture for one in result.places)
    together = -(-n_picture // _MOST_CELLS)
    n_cells = -(-n_picture // together)
    n_after = max(1, len(result.places) - n_picture)
    share = min(0.10, 0.40 / n_after)
    wide = max(1.0, share * n_cells / max(0.05, 1 - share * n_after))
    number = pd.Series([one.number for one in result.places])
    after = number - n_picture
    left = (number // together).astype(float).where(after < 0, n_cells + 0.6 + after * wide)
    cells = pd.DataFrame({"left": left, "width": np.where(after < 0, 1.0, wide)})
    return cells.assign(middle=cells.left + cells.width / 2)


def _color(result: SearchResult, place: int, p: Palette) -> str:
    one = result.places[place]
    if one in result.gate:
        return p.gate
    if not one.in_picture:
        return p.third
    return p.image if one.role == "image" else p.neutral


def _bars(axes: Axes, result: SearchResult, cells: pd.DataFrame, measure: str, p: Palette) -> None:
    part = result.measures[result.measures.measure == measure]
    part = part.join(cells, on="place").sort_values("mean")
    part = part.groupby("left", as_index=False).last()  # the strongest of a cell
    # a share of what the picture is worth means nothing where it is worth nothing
    means = measure == "flipped" and result.verdict["verdict"] in (NARROW, DISTRIBUTED)
    blocks = result.blocks[(result.blocks.measure == "shared") & means]
    for row in blocks.itertuples():
        span = [cells.left[row.place], cells.left[row.last] + cells.width[row.last]]
        axes.fill_between(span, 0, row.mean, color=p.faint, alpha=0.45, linewidth=0, zorder=0)
    if len(part):
        heights, width = (part.middle, part["mean"], part.low, part.high), part.width * 0.86
        interval_bars(axes, *heights, color=list(part.color), ink=p.ink, width=width)
    # so that little looks little
    least = 0.5 if measure.endswith("accuracy") or measure == "flipped" else 0.05
    axes.set_ylim(min([0.0, *part.low]), 1.12 * max([least, *part.high, *blocks["mean"]]))
    axes.set_xticks([])
    axes.grid(axis="y")
    axes.spines["bottom"].set_color(p.faint)


def _strip(axes: Axes, result: SearchResult, cells: pd.DataFrame, p: Palette) -> None:
    """The prompt's tokens as cells, words written beneath theirs."""
    axes.bar(cells.middle, 1, width=cells.width * 0.9, color=cells.color)
    picture = [one.number for one in result.places if one.in_picture]
    words = [one for one in result.places if not one.in_picture]
    words = words if len(words) <= 14 else []
    labels = [one.token if len(one.token) <= 12 else f"{one.token[:11]}…" for one in words]
    middle = (cells.left[picture[0]] + cells.left[picture[-1]] + 1) / 2
    ticks = [middle, *cells.middle[[one.number for one in words]]]
    axes.set_xticks(ticks, [f"the picture, {len(picture)} positions", *labels])
    axes.tick_params(axis="x", length=0, labelcolor=p.ink)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)


def _growing_sets(axes: Axes, result: SearchResult, p: Palette) -> None:
    lines = {RESAMPLE: (p.ink, "-"), "zero": (p.neutral, "-"), "mask": (p.neutral, "--")}
    for how, part in result.curves.groupby("how", sort=False):
        color, line = lines[str(how)]
        points = part["size"], part.share, part.low, part.high
        curve(
            axes,
            *points,
            color=color,
            label="kept and taken" if how == RESAMPLE else f"knockout {how}",
            line=line,
            marker=".",
        )
    reference(axes, result.settings["part"], color=p.soft)
    ticks = [2**power for power in range(13) if 2**power <= result.curves["size"].max()]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    if result.verdict["verdict"] in (NARROW, DISTRIBUTED):  # else shares mean nothing
        axes.set_ylim(min(-0.05, result.curves.low.min()), max(1.1, 1.03 * result.curves.high.max()))
    axes.set_xlabel("positions of the set, in the one order found (the smallest number is an upper bound)")
    part = percent(result.settings["part"])
    axes.set_title(f"Share of what the picture is worth that the set carries (dotted: {part})", fontsize=9.5)
    axes.grid(axis="y")
    axes.legend(loc="lower right", fontsize=8)


def gate_layers(result: SearchResult, dark: bool = False) -> NotebookFigure:
    """What the chosen set, else the strongest place, carries when it is patched in one layer alone.

    Lines are the answers that become the other picture's and the overlap gained with them; bands are 95 %
    intervals.

    Raises:
        DataError: nothing was patched.
    """
    if result.layers.empty:
        raise DataError("gate_layers: nothing was patched in this search; run find_gate with n_pairs above 0")
    patched = [result.places[p] for p in result.settings["patched"]]
    who = ", ".join(f"{place.name} (position {place.position})" for place in patched)
    joint = result.settings.get("joint_mean", float("nan"))
    color = "gate" if result.gate else "image"
    series = [
        SeriesStyle("flipped", "answers that become the other picture’s", color),
        SeriesStyle("target overlap", "overlap gained with its answer", "third", line="--"),
    ]
    return curves(
        result.layers,
        series,
        by="measure",
        references=[ReferenceLine(joint, "answers, patched in all layers")],
        title=f"Patching {who if len(who) < 70 else who[:69] + '…'}, one layer at a time",
        ylim=(min(-0.02, float(result.layers.low.min())), 1.04),
        dark=dark,
    )
