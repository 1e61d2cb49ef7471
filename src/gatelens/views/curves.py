"""The figures of a study: knockout bars, attention by layer, the patching curve."""

from __future__ import annotations

import pandas as pd

from gatelens.errors import DataError
from gatelens.views.style import Figure, Palette, integer_layers, styled

_ASIDE = "among the class names"  # stands in the table; a panel of its own would only crowd the figure


def knockout_bars(table: pd.DataFrame, how: str | None = None, dark: bool = False) -> Figure:
    """One panel a metric, one bar a row of the knockout table, whiskers the 95 % bootstrap interval.

    Args:
        table: ``how, row, metric, mean, low, high, n`` as a study's ``knockout`` table.
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
            f"the knockout table has no rows with how={how!r} (it has: {', '.join(kinds) or 'none'})"
        )
    metrics = [m for m in dict.fromkeys(part.metric) if not m.endswith(_ASIDE)]
    names = list(dict.fromkeys(part.row))
    with styled(dark) as p:
        figure = Figure(figsize=(2.9 * len(metrics) + 1.5, 0.42 * len(names) + 1.0), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            one = part[part.metric == metric].set_index("row").reindex(names)
            y = range(len(names))
            colors = [_row_color(name, p) for name in names]
            axes.barh(y, one["mean"], color=colors, height=0.66)
            whiskers = [(one["mean"] - one.low).clip(lower=0), (one.high - one["mean"]).clip(lower=0)]
            axes.errorbar(one["mean"], y, xerr=whiskers, fmt="none", ecolor=p.ink, elinewidth=1, capsize=2.5)
            top = 1.0 if "accuracy" in metric else max(float(one.high.max()), 0.05)
            for i, row in enumerate(one.itertuples()):
                axes.text(
                    row.high + 0.03 * top, i, f"{row.mean:.2f}", va="center", fontsize=8.5, color=p.soft
                )
            axes.set_xlim(0, 1.22 * top)
            axes.set_title(f"{metric}  (n = {int(one.n.max())})")
            axes.tick_params(left=False)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
    return figure


def _row_color(name: str, p: Palette) -> str:
    if name == "none":
        return p.neutral
    return {"gate → text": p.gate, "image → text": p.image}.get(name, p.faint)


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
