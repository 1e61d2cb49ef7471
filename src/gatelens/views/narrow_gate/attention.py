"""Where the text looks, on the page."""

from __future__ import annotations

import pandas as pd

from gatelens.runs import Run
from gatelens.views.narrow_gate import card
from gatelens.views.style import Figure, integer_layers, styled


def cards(run: Run) -> list[card.Card]:
    """The attention shares, where they were measured."""
    if not run.done("attention"):
        return []
    table = run.table("attention")
    figure = card.Figure("attention", lambda dark: attention_shares(table, dark), _caption(table))
    return [card.Card("Where the text looks", [figure])]


def _caption(table: pd.DataFrame) -> str:
    share = table[table.kind == "gate"].set_index("layer").share
    uniform = 1 / max(1, int((table.layer == table.layer.iloc[0]).sum()))
    return (
        "How the text after the image (the gate's own row left out) divides its attention among the "
        f"image-side positions. The gate takes {share.mean():.2f} on average and at most "
        f"{share.max():.2f}, in layer {int(share.idxmax())}; an even share would be {uniform:.3f} a "
        "position. The lower panel tells how much attention there is to divide."
    )


def attention_shares(table: pd.DataFrame, dark: bool = False) -> Figure:
    """How text's attention to the image side is divided, by layer; beneath, how much attention that is at
    all.

    Args:
        table: ``layer, kind, share, image_side_mass`` as a study's ``attention`` table.
        dark: draw on dark ground.
    """
    by_kind = table.pivot_table(index="layer", columns="kind", values="share", aggfunc="sum").fillna(0)
    mass = table.groupby("layer").image_side_mass.first()
    layers = [int(x) for x in by_kind.index]
    n_image = int((table.kind == "image").sum() / max(1, len(layers)))
    with styled(dark) as p:
        figure = Figure(figsize=(9, 4.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        floor = pd.Series(0.0, index=by_kind.index)
        bands = [
            ("gate", "the gate", p.gate),
            ("image", f"{n_image} image tokens", p.image),
            ("row_break", "row breaks", p.neutral),
            ("boi", "start of image", p.faint),
        ]
        for kind, label, color in bands:
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
        integer_layers(lower, layers)
    return figure
