"""Figures of section *attention*: shares by layer, and every position of the image side."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from gatelens.plots.bars import stacked_bars
from gatelens.plots.curve import layer_axis, reference
from gatelens.plots.style import NotebookFigure, Palette, styled

NAMED = 6  # positions written beside their stem


def attention_shares(
    table: pd.DataFrame, dark: bool = False, groups: pd.DataFrame | None = None
) -> NotebookFigure:
    """How text's attention to the image side is divided, by layer; beneath, how much attention that is at all.

    Args:
        table: ``layer, kind, share, image_side_mass`` as a study's ``attention`` table.
        dark: draw on dark ground.
        groups: ``layer, group, share, positions`` as its ``attention_groups`` table, which tells the last image
            token apart from the others.
    """
    if groups is None:
        by_kind = table.pivot_table(index="layer", columns="kind", values="share", aggfunc="sum").fillna(0)
    else:
        by_kind = groups.pivot(index="layer", columns="group", values="share").fillna(0)
    mass = table.groupby("layer").image_side_mass.first()
    layers = [int(x) for x in by_kind.index]
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(9, 4.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        bands = [band for band in _bands(table, groups, p) if band[0] in by_kind]
        stacked_bars(upper, layers, [(by_kind[kind], label, color) for kind, label, color in bands])
        if groups is not None:
            _intervals(upper, groups, [kind for kind, _, _ in bands], p)
        upper.set_ylim(0, 1)
        upper.set_ylabel("share")
        upper.set_title("Where on the image side the text looks")
        upper.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        lower.bar(layers, mass, width=0.8, color=p.faint)
        for layer, value in zip(layers, mass, strict=True):
            if len(layers) <= 16:
                lower.text(layer, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8, color=p.soft)
        lower.set_ylim(0, max(1e-3, 1.35 * float(mass.max())))
        lower.set_title("Part of all its attention that goes to the image side", fontsize=9.5)
        layer_axis(lower, layers)
    return figure


def _intervals(axes: Axes, groups: pd.DataFrame, order: list[str], p: Palette) -> None:
    """The interval of each group's share, at the upper end of its bar; the last bar ends at 1."""
    for _, part in groups.groupby("layer"):
        mine = part.set_index("group")
        below = 0.0
        for one in (mine.loc[name] for name in order[:-1] if name in mine.index):
            axes.vlines(one.layer, below + one.low, below + one.high, color=p.ink, linewidth=1.4)
            below += one.share


def _bands(table: pd.DataFrame, groups: pd.DataFrame | None, p: Palette) -> list[tuple[str, str, str]]:
    """``(kind or group, label, colour)`` from the bottom up."""
    n_image = int((table.kind == "image").sum() / max(1, table.layer.nunique()))
    if groups is None:
        image = [("image", f"{n_image} image tokens", p.image)]
    else:
        internal = groups.groupby("group").positions.first().get("internal_image", 0.0)
        image = [("last_image", "last image token", p.third)]
        image += [("internal_image", f"the {internal:.0f} internal image tokens", p.image)]
    markers = [("row_break", "row breaks", p.neutral), ("boi", "start of image", p.faint)]
    return [("gate", "the gate", p.gate), *image, *markers]


def attention_positions(
    table: pd.DataFrame, positions: pd.DataFrame, least: float = 0.01, times: float = 2.0, dark: bool = False
) -> NotebookFigure:
    """Share of every position of the image side, in its highest layer and in the mean over layers.

    ``positions`` is a study's ``attention_positions`` table; ``least`` and ``times`` an even share are drawn as lines.
    """
    each = table.groupby(["kind", "index"], sort=False).agg(
        order=("order", "first"), highest=("share", "max"), mean=("share", "mean")
    )
    first = table[table.layer == table.layer.iloc[0]]
    even = float(first.n.iloc[0] / first.held.sum())
    out = positions[positions.stands_out]
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(9, 3.4), layout="constrained")
        axes = figure.subplots()
        color = {"gate": p.gate, "image": p.image, "row_break": p.third, "boi": p.ink}
        axes.vlines(each.order, 0, each.highest, color=p.faint, linewidth=1.2)
        axes.plot(each.order, each["mean"], ".", color=p.soft, markersize=3)
        for row in out.to_dict("records"):
            axes.vlines(row["order"], 0, row["highest"], color=color[row["kind"]], linewidth=2.2)
            axes.plot(
                [row["order"]] * 2, [row["low"], row["high"]], "_-", color=p.ink, linewidth=1, markersize=5
            )
        top = max(float(each.highest.max()), even)
        for row in _apart(out.head(NAMED).to_dict("records"), float(each.order.max())):
            left = row["order"] > 0.5 * each.order.max()
            axes.annotate(
                _short(row),
                (row["order"], row["highest"]),
                xytext=(-4 if left else 4, 1),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=8,
                color=color[row["kind"]],
                parse_math=False,
            )
        reference(axes, even, "even share", color=p.soft)
        reference(axes, max(least, times * even), "to stand out, above", color=p.soft, line="--")
        axes.set_ylim(0, 1.15 * top)
        axes.set_xlabel("position on the image side, from its first")
        axes.set_ylabel("share")
        axes.set_title("Positions of the image side: cross-modal attention in the highest layer")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _apart(rows: list[dict[str, Any]], width: float) -> list[dict[str, Any]]:
    """Those of the rows, highest first, whose names do not run into one named before."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        if all(abs(float(row["order"]) - float(k["order"])) > 0.2 * width for k in kept):
            kept.append(row)
    return kept


def _short(row: dict[str, Any]) -> str:
    return str(row["name"]).split(" (")[0]
