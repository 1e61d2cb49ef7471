"""Where the class can be read, on the page."""

from __future__ import annotations

import pandas as pd

from gatelens.plots import card
from gatelens.plots.curve import layer_axis
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import Palette, styled
from gatelens.runs import Run

PANELS = {
    "overlap": "Neighbours of the same class",
    "probe": "Linear probe, accuracy",
    "overlap with the gate": "Neighbours shared with the gate",
}
GATE, LAST = "gate", "last prompt position"

WORDS = {
    "neighbourhood overlap": (
        "χ of a place and layer: the mean over prompts of the share of its {k} nearest neighbours (Euclidean, residual "
        "stream) with the same class (the paper's χ^{{l,gt}}, k = 30; here at most a tenth of the prompts). Neighbours "
        "shared with the gate: of two places' nearest neighbours the share they have in common. Layer l is the input "
        "of block l; the last is the output of the last block. Vectors that are equal, as a marker's before it has "
        "read anything, get neighbours at random."
    ),
    "linear probe": (
        "Multinomial logistic regression with a ridge on standardised residual streams, accuracy on prompts it was not "
        "fitted on ({folds}-fold cross-validation), with Wilson's 95 % interval. By chance: the commonest class."
    ),
}


def cards(run: Run) -> list[card.Card]:
    """The curves by layer and place, where they were measured."""
    if not run.done("meaning"):
        return []
    table = run.table("meaning")
    options = run.manifest["settings"].get("sections", {}).get("meaning", {})
    k = int(table.k.max())
    words = {"neighbourhood overlap": WORDS["neighbourhood overlap"].format(k=k)}
    if (table.measure == "probe").any():
        words["linear probe"] = WORDS["linear probe"].format(folds=options.get("folds", 5))
    figure = card.Chart("meaning", lambda dark: class_by_layer(table, dark), _caption(table, k))
    return [card.Card("Where the class can be read", [figure], words)]


def _caption(table: pd.DataFrame, k: int) -> str:
    found = table[table.measure == "overlap"]
    text = (
        f"Left: of a prompt's {k} nearest neighbours at each place, the share with the same class; dotted by chance, "
        "dashed the most there can be with classes of these sizes."
    )
    for place, what in ((GATE, "the gate"), (LAST, "the last prompt position")):
        part = found[found.place == place]
        if len(part):
            top = part.loc[part["mean"].idxmax()]
            text += (
                f" At {what} it is highest in layer {int(top.layer)} ({top['mean']:.2f}, [{top.low:.2f}, "
                f"{top.high:.2f}], n = {int(top.n)})."
            )
    return text + (
        " Where the class can be read is not where the model reads it, so the verdict does not use this; bands are "
        "95 % intervals."
    )


def class_by_layer(table: pd.DataFrame, dark: bool = False) -> Figure:
    """How well the class can be read at each place, by layer, a panel a measure.

    Args:
        table: ``place, layer, measure, mean, low, high, chance, most`` as a study's ``meaning`` table.
        dark: draw on dark ground.
    """
    shown = [name for name in PANELS if (table.measure == name).any()]
    with styled(dark) as p:
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        looks = _looks(list(dict.fromkeys(table.place)), p)
        for axes, name in zip(panels, shown, strict=True):
            mine = table[table.measure == name]
            for place, (color, line, marker) in looks.items():
                part = mine[mine.place == place].sort_values("layer")
                if part.empty:
                    continue
                style = {"color": color, "linestyle": line, "marker": marker, "markersize": 3.5}
                axes.plot(part.layer, part["mean"], **style, label=place)
                axes.fill_between(part.layer, part.low, part.high, color=color, alpha=0.12, linewidth=0)
            axes.axhline(float(mine.chance.iloc[0]), color=p.soft, linewidth=1, linestyle=":")
            if mine.most.iloc[0] < 1:
                axes.axhline(float(mine.most.iloc[0]), color=p.soft, linewidth=1, linestyle="--")
            axes.set_ylim(-0.02, 1.04)
            axes.set_title(PANELS[name], fontsize=9.5)
            axes.grid(axis="y")
            layer_axis(axes, sorted({int(x) for x in table.layer}))
        handles = {label: h for a in panels for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=3,
            fontsize=8.5,
            labelcolor=p.ink,
        )
    return figure


def _looks(places: list[str], p: Palette) -> dict[str, tuple[str, str, str]]:
    """``(colour, line, marker)``: image tokens are blue, and told apart by their lines."""
    fixed = {
        GATE: (p.gate, "-", "o"),
        LAST: (p.third, "-", "o"),
        "internal image tokens, mean": (p.image, "-", "o"),
        "last image token": (p.image, "--", "o"),
        "first image token": (p.image, ":", "o"),
    }
    further = [place for place in places if place not in fixed]
    markers = ("s", "^", "D", "v")
    looks = {place: fixed[place] for place in fixed if place in places}
    return looks | {place: (p.neutral, "--", markers[i % 4]) for i, place in enumerate(further)}
