"""Figures of a gate search: the measures over the prompt's tokens, and what the found set carries layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes

from gatelens.errors import DataError
from gatelens.plots.curve import layer_axis
from gatelens.plots.numbers import percent
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import Palette, styled
from gatelens.studies.gate_finder.verdict import DISTRIBUTED, NARROW

if TYPE_CHECKING:
    from gatelens.studies.gate_finder.result import GateSearch

# of the picture: with more, bars are the strongest of as many neighbours as fit in one cell
_MOST_CELLS = 160


def gate_figure(found: GateSearch, dark: bool = False) -> Figure:
    """Four panels over the prompt's tokens (attention, overlap, knockout, patching), and the share sets carry.

    Bars are means, whiskers 95 % bootstrap intervals; a pale band is a block that was measured as a whole only.
    """
    if not found.places:
        raise DataError("gate_figure: the search has no positions; run find_gate on a prompt with a picture")
    hows = found.settings["how"]
    with styled(dark) as p:
        figure = Figure(figsize=(10.5, 9.2), layout="constrained")
        axes = figure.subplots(6, 1, height_ratios=[1, 1, 1, 1, 0.22, 1.25])
        cells = _cells(found)
        marked = f" (bars how={hows[0]}" + (f", diamonds how={hows[1]}" if len(hows) > 1 else "")
        marked += "; pale: the block as a whole)"
        panels = [
            ("attention", "Attention it gets, share of all candidates (mean over layers)", None),
            ("overlap", "Neighbours of the same class, best layer", found.settings["overlap_by_chance"]),
            (f"{hows[0]} accuracy", f"Accuracy lost when nothing behind reads it{marked}", None),
            ("flipped", "Answers that become another picture's when it is patched", None),
        ]
        for one, (measure, title, level) in zip(axes[:4], panels, strict=True):
            _bars(one, found, cells, measure, p)
            one.set_title(title, fontsize=9.5)
            if measure.endswith(" accuracy") and len(hows) > 1:
                other = found.measures[found.measures.measure == f"{hows[1]} accuracy"]
                middle = other.place.map(cells.left) + other.place.map(cells.width) / 2
                one.plot(middle, other["mean"], "D", color=p.ink, markersize=2.5, markerfacecolor=p.ground)
            if level is not None:
                one.axhline(level, color=p.soft, linewidth=1, linestyle=":", label="by chance")
                one.legend(loc="upper left", fontsize=8, labelcolor=p.ink)
        _strip(axes[4], found, cells, p)
        for one in axes[:5]:
            one.set_xlim(cells["left"].min(), (cells["left"] + cells["width"]).max())
        _curve(axes[5], found, p)
        figure.suptitle(
            f"{found.model}: {found.verdict['headline']}", x=0.01, ha="left", fontweight="bold", color=p.ink
        )
    return figure


def _cells(found: GateSearch) -> pd.DataFrame:
    """Where each place is drawn: the picture's are narrow (several to a cell if many), the words' are wide."""
    n_picture = sum(one.in_picture for one in found.places)
    together = -(-n_picture // _MOST_CELLS)
    n_cells = -(-n_picture // together)
    n_behind = max(1, len(found.places) - n_picture)
    wide = max(
        1.0, min(0.10, 0.40 / n_behind) * n_cells / max(0.05, 1 - min(0.10, 0.40 / n_behind) * n_behind)
    )
    rows = []
    for one in found.places:
        if one.in_picture:
            rows.append((one.number, float(one.number // together), 1.0))
        else:
            rows.append((one.number, n_cells + 0.6 + (one.number - n_picture) * wide, wide))
    return pd.DataFrame(rows, columns=["place", "left", "width"]).set_index("place", drop=False)


def _color(found: GateSearch, place: int, p: Palette) -> str:
    if place in {one.number for one in found.gate}:
        return p.gate
    one = found.places[place]
    return p.image if one.in_picture and one.role == "image" else p.neutral if one.in_picture else p.third


def _bars(axes: Axes, found: GateSearch, cells: pd.DataFrame, measure: str, p: Palette) -> None:
    part = found.measures[found.measures.measure == measure].copy()
    part["left"] = part.place.map(cells.left)
    part["width"] = part.place.map(cells.width)
    part = part.sort_values("mean").groupby("left", as_index=False).last()  # the strongest of a cell
    if found.blocks.size and measure in set(found.blocks.measure):
        for row in found.blocks[found.blocks.measure == measure].itertuples():
            end = cells.left[row.last] + cells.width[row.last]
            axes.fill_between(
                [cells.left[row.place], end], 0, row.mean, color=p.faint, alpha=0.45, linewidth=0, zorder=0
            )
    if len(part):
        middle = part.left + part.width / 2
        colors = [_color(found, int(place), p) for place in part.place]
        axes.bar(middle, part["mean"], width=part.width * 0.86, color=colors)
        whiskers = [(part["mean"] - part.low).clip(lower=0), (part.high - part["mean"]).clip(lower=0)]
        axes.errorbar(middle, part["mean"], yerr=whiskers, fmt="none", ecolor=p.ink, elinewidth=0.8)
    least = (
        0.5 if measure.endswith("accuracy") or measure == "flipped" else 0.05
    )  # so that little looks little
    top = max([least, *part.high, *_block_tops(found, measure)])
    axes.set_ylim(min(0.0, *part.low) if len(part) else 0.0, 1.12 * top)
    axes.set_xticks([])
    axes.grid(axis="y")
    axes.spines["bottom"].set_color(p.faint)


def _block_tops(found: GateSearch, measure: str) -> list[float]:
    return (
        [float(x) for x in found.blocks[found.blocks.measure == measure]["mean"]] if found.blocks.size else []
    )


def _strip(axes: Axes, found: GateSearch, cells: pd.DataFrame, p: Palette) -> None:
    """The prompt's tokens as cells, words written beneath theirs."""
    for place, left, width in cells.itertuples(index=False):
        axes.bar(left + width / 2, 1, width=width * 0.9, color=_color(found, int(place), p))
    words = [one for one in found.places if not one.in_picture]
    picture = [one for one in found.places if one.in_picture]
    ticks = [float(cells.left[one.number] + cells.width[one.number] / 2) for one in words]
    labels = [one.token if len(one.token) <= 12 else f"{one.token[:11]}…" for one in words]
    shown = len(words) <= 14
    middle = (cells.left[picture[0].number] + cells.left[picture[-1].number] + 1) / 2
    axes.set_xticks(
        [middle, *(ticks if shown else [])],
        [f"the picture, {len(picture)} positions", *(labels if shown else [])],
    )
    axes.tick_params(axis="x", length=0, labelcolor=p.ink)
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _curve(axes: Axes, found: GateSearch, p: Palette) -> None:
    lines = {"zero": (p.ink, "-"), "mask": (p.neutral, "--")}
    meaningful = found.verdict["verdict"] in (NARROW, DISTRIBUTED)
    for how, part in found.curves.groupby("how", sort=False):
        color, line = lines[str(how)]
        axes.plot(part["size"], part.share, line, color=color, marker="o", markersize=2, label=f"how={how}")
        axes.fill_between(part["size"], part.low, part.high, color=color, alpha=0.15, linewidth=0)
    axes.axhline(found.settings["part"], color=p.soft, linewidth=1, linestyle=":")
    largest = int(found.curves["size"].max())
    ticks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if k <= largest]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    if meaningful:
        axes.set_ylim(
            min(-0.05, float(found.curves.low.min())), max(1.1, float(found.curves.high.max()) * 1.03)
        )
    axes.set_xlabel("positions cut jointly")
    axes.set_title(
        f"Share of what the picture is worth that the set takes (dotted: {percent(found.settings['part'])})",
        fontsize=9.5,
    )
    axes.grid(axis="y")
    axes.legend(loc="lower right", fontsize=8, labelcolor=p.ink)


def gate_layers(found: GateSearch, dark: bool = False) -> Figure:
    """Answers that become the other picture's, and the overlap gained with them, when the found set (the places that
    carry most where there is no narrow one) is patched in one layer alone; bands are 95 % bootstrap intervals.

    Raises:
        DataError: nothing was patched.
    """
    if found.layers.empty:
        raise DataError("gate_layers: nothing was patched in this search; run find_gate with n_pairs above 0")
    who = ", ".join(f"{found.places[p].name} ({found.places[p].position})" for p in found.settings["patched"])
    with styled(dark) as p:
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.subplots()
        color = p.gate if found.gate else p.image
        lines = {
            "flipped": ("answers that become the other picture's", color, "-"),
            "target overlap": ("overlap gained with its answer", p.third, "--"),
        }
        for measure, part in found.layers.groupby("measure", sort=False):
            label, tone, line = lines[str(measure)]
            axes.plot(part.layer, part["mean"], line, color=tone, marker="o", markersize=4, label=label)
            axes.fill_between(part.layer, part.low, part.high, color=tone, alpha=0.15, linewidth=0)
        if "joint_mean" in found.settings:
            axes.axhline(found.settings["joint_mean"], color=p.soft, linewidth=1, linestyle=":")
            axes.plot([], [], ":", color=p.soft, linewidth=1, label="answers, patched in all layers")
        axes.set_ylim(min(-0.02, float(found.layers.low.min())), 1.04)
        axes.set_title(f"Patching {who if len(who) < 70 else who[:69] + '…'}, one layer at a time")
        axes.grid(axis="y")
        layer_axis(axes, sorted(int(x) for x in set(found.layers.layer)))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize=8.5, labelcolor=p.ink)
    return figure
