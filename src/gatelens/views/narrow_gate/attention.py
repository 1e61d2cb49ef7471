"""Where the text looks, on the page."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gatelens.plots import card
from gatelens.plots.curve import layer_axis
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import Palette, styled
from gatelens.runs import Run

ROWS = 12  # of the table of positions
NAMED = 6  # positions written beside their stem

WORDS = {
    "cross-modal attention": (
        "f_j of layer l: attention of the text rows after the gate on position j of the image side, summed over "
        "rows and heads and scaled to sum to 1 over the image side (the paper's f_j^l)."
    ),
    "stands out": (
        "A position whose share of cross-modal attention is, in its highest layer and at the lower end of its 95 % "
        "interval (share − 1.96 standard errors over examples), above both {least} (the paper's 1 %) and {times} "
        "times the even share 1 / positions. With few positions an even share alone exceeds 1 %. "
        "Positions are counted from 0."
    ),
}


def cards(run: Run) -> list[card.Card]:
    """The attention shares, where they were measured."""
    if not run.done("attention"):
        return []
    table = run.table("attention")
    groups = run.table("attention_groups") if run.done("attention_groups") else None
    blocks: list[card.Block] = [
        card.Chart("attention", lambda dark: attention_shares(table, dark, groups), _caption(table))
    ]
    words = {"cross-modal attention": WORDS["cross-modal attention"]}
    if run.done("attention_positions"):
        found = run.table("attention_positions")
        options = {"least": 0.01, "times": 2.0} | run.manifest["settings"].get("sections", {}).get(
            "attention", {}
        )
        least, times = float(options["least"]), float(options["times"])
        blocks += [
            card.Chart(
                "attention_positions",
                lambda dark: attention_positions(table, found, least, times, dark),
                "Every position of the image side in the order of the prompt: its share in the layer where it is "
                "highest (line) and in the mean over layers (dot). Coloured ones stand out.",
            ),
            _positions(found, least, times),
        ]
        words["stands out"] = WORDS["stands out"].format(least=least, times=f"{times:g}")
    return [card.Card("Where the text looks", blocks, words)]


def _caption(table: pd.DataFrame) -> str:
    share = table[table.kind == "gate"].set_index("layer").share
    uniform = 1 / max(1, int((table.layer == table.layer.iloc[0]).sum()))
    return (
        "How the text after the image (the gate's own row left out) divides its attention among the "
        f"image-side positions. The gate takes {share.mean():.2f} on average and at most "
        f"{share.max():.2f}, in layer {int(share.idxmax())}; an even share would be {uniform:.3f} a "
        "position. The lower panel tells how much attention there is to divide."
    )


def _positions(found: pd.DataFrame, least: float, times: float) -> card.Table:
    out = found[found.stands_out]
    rows = [
        (
            r.name_,
            f"{r.mean_:.3f}",
            (f"{r.highest:.3f}", f"{r.low:.3f}–{r.high:.3f}"),
            str(int(r.layer)),
            f"{r.highest / r.even:.1f}",
        )
        for r in out.head(ROWS).rename(columns={"name": "name_", "mean": "mean_"}).itertuples()
    ]
    more = f" The {ROWS} highest are shown." if len(out) > ROWS else ""
    caption = (
        f"{len(found)} positions take more than {100 * least:g} % in the mean over layers or in some layer; "
        f"{len(out)} of them stand out, with more than {times:g} times the even share as well.{more}"
    )
    header = ("position", "mean\nshare", "highest\nshare", "in\nlayer", "times\nan even share")
    return card.Table(header, rows, caption, "Positions that stand out")


def attention_shares(table: pd.DataFrame, dark: bool = False, groups: pd.DataFrame | None = None) -> Figure:
    """How text's attention to the image side is divided, by layer; beneath, how much attention that is at
    all.

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
        figure = Figure(figsize=(9, 4.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        floor = pd.Series(0.0, index=by_kind.index)
        for kind, label, color in _bands(table, groups, p):
            if kind in by_kind and by_kind[kind].sum() > 0:
                upper.bar(layers, by_kind[kind], bottom=floor, width=0.8, color=color, label=label)
                floor = floor + by_kind[kind]
        upper.set_ylim(0, 1)
        upper.set_ylabel("share")
        upper.set_title("Where on the image side the text looks")
        upper.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=p.ink)
        lower.bar(layers, mass, width=0.8, color=p.faint)
        for layer, value in zip(layers, mass, strict=True):
            if len(layers) <= 16:
                lower.text(layer, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8, color=p.soft)
        lower.set_ylim(0, max(1e-3, 1.35 * float(mass.max())))
        lower.set_title("Part of all its attention that goes to the image side", fontsize=9.5)
        layer_axis(lower, layers)
    return figure


def _bands(table: pd.DataFrame, groups: pd.DataFrame | None, p: Palette) -> list[tuple[str, str, str]]:
    """``(kind or group, label, colour)`` from the bottom up."""
    n_image = int((table.kind == "image").sum() / max(1, table.layer.nunique()))
    markers = [("row_break", "row breaks", p.neutral), ("boi", "start of image", p.faint)]
    if groups is None:
        return [("gate", "the gate", p.gate), ("image", f"{n_image} image tokens", p.image), *markers]
    each = groups.groupby("group").positions.first()
    internal = each.get("internal_image", 0.0)
    return [
        ("gate", "the gate", p.gate),
        ("last_image", "last image token", p.third),
        ("internal_image", f"the {internal:.0f} internal image tokens", p.image),
        *markers,
    ]


def attention_positions(
    table: pd.DataFrame, found: pd.DataFrame, least: float = 0.01, times: float = 2.0, dark: bool = False
) -> Figure:
    """Share of every position of the image side, in its highest layer and in the mean over layers.

    Args:
        table: ``layer, kind, index, share, n, held, order`` as a study's ``attention`` table.
        found: ``kind, index, name, order, highest, even, stands_out`` as its ``attention_positions`` table.
        least, times: what a position must exceed to stand out: this share, and so many even shares.
        dark: draw on dark ground.
    """
    each = table.groupby(["kind", "index"], sort=False).agg(
        order=("order", "first"), highest=("share", "max"), mean=("share", "mean")
    )
    first = table[table.layer == table.layer.iloc[0]]
    even = float(first.n.iloc[0] / first.held.sum())
    out = found[found.stands_out]
    with styled(dark) as p:
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        axes = figure.subplots()
        color = {"gate": p.gate, "image": p.image, "row_break": p.third, "boi": p.ink}
        axes.vlines(each.order, 0, each.highest, color=p.faint, linewidth=1.2)
        axes.plot(each.order, each["mean"], ".", color=p.soft, markersize=3)
        for row in out.to_dict("records"):
            axes.vlines(row["order"], 0, row["highest"], color=color[row["kind"]], linewidth=2.2)
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
        axes.axhline(even, color=p.soft, linewidth=1, linestyle=":", label="even share")
        axes.axhline(
            max(least, times * even), color=p.soft, linewidth=1, linestyle="--", label="to stand out, above"
        )
        axes.set_ylim(0, 1.15 * top)
        axes.set_xlabel("position on the image side, from its first")
        axes.set_ylabel("share")
        axes.set_title("Positions of the image side: cross-modal attention in the highest layer")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=p.ink, fontsize=8.5)
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
