"""Patching on the page: what the answer becomes, layer by layer, attribute by attribute and class by class."""

from __future__ import annotations

from functools import partial

import pandas as pd

from gatelens.plots.bars import bars
from gatelens.plots.card import Block, Card, Cell, Chart, Table, mean_cell
from gatelens.plots.curve import curves
from gatelens.plots.heatmap import heat_map
from gatelens.plots.numbers import MISSING, percent
from gatelens.plots.style import NotebookFigure, ReferenceLine, SeriesStyle
from gatelens.runs import Run
from gatelens.studies.narrow_gate.patching.attributes import styles

ANY = "any"  # in a table of classes: all of them together
DEPTH_CAPTION = (
    "The same by what is asked, for pairs that differ in it and are answered correctly unpatched. A curve rises where "
    "the gate has read it, and falls where the text no longer reads it there. Bands: 95 % intervals over pairs."
)
FEWEST_A_CELL = 10  # pairs of pictures of two classes, to colour a cell by them
CUMULATIVE = "Patching what the attention reads at the gate, from a layer to the last"
WORDS = {
    "predictions of the target’s class": (
        "The prediction under patching is a label of the target’s class. Counted are pairs whose unpatched predictions "
        "are both right."
    ),
    "predictions flipped": (
        "The prediction under patching is the target picture’s own unpatched prediction, right or wrong. Counted are "
        "pairs whose unpatched predictions differ."
    ),
    "overlap": "Σ min(p, q) of the two next-token distributions.",
}


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A curve's numbers, with a word for the run in which no layer is patched."""
    return table.assign(layer=["unpatched" if n < 0 else str(n) for n in table.layer])


def cards(run: Run) -> list[Card]:
    """The patching curves, and the map of classes where there are several pairs."""
    table, cumulative = run.table("patching"), run.table("patching_attention")
    charts = [
        Chart("patching", lambda dark: patching_curve(table, dark), _caption(table), _numbers(table)),
        Chart(
            "patching_attention",
            lambda dark: patching_curve(cumulative, dark, CUMULATIVE),
            "The same for what the attention reads at the gate, from a layer to the last. From layer 0 on, all that "
            "text reads there is the other picture’s. Where orange falls, later layers no longer bring the class over.",
            _numbers(cumulative),
        ),
    ]
    blocks: list[Block] = [*charts]
    if run.has("patching_depths"):
        curves_, found = run.table("patching_attributes"), run.table("patching_depths")
        blocks.append(
            Chart("patching_attributes", partial(attribute_curves, curves_), DEPTH_CAPTION, curves_)
        )
        blocks.append(_depth_table(found))
    classes = run.table("patching_classes") if run.has("patching_classes") else pd.DataFrame()
    if len(classes) > 3:  # more than one pair of classes, and what pools them
        blocks.append(
            Chart("patching_classes", partial(class_bars, classes), _classes_caption(classes), classes)
        )
        if _by_pair(classes).n.min() >= FEWEST_A_CELL:
            says = "The same by pair of classes: whose gate goes into whose prompt."
            blocks.append(Chart("patching_class_pairs", partial(class_map, classes), says))
    return [Card("Another picture’s gate", blocks, WORDS, short="Patching", finding=_finding(run))]


def _finding(run: Run) -> str:
    """How many answers the gate of another picture changes, or the best layer for each attribute."""
    if run.has("patching_depths"):
        found = run.table("patching_depths").to_dict("records")
        return "best layer: " + ", ".join(
            f"{r['attribute']} {r['layer'] if r['layer'] >= 0 else 'none'}" for r in found
        )
    table = run.table("patching")
    flips = table[(table.measure == "flipped") & (table.layer >= 0)]["mean"]
    return f"changes at most {percent(flips.max())} of predictions" if len(flips) else ""


def _caption(table: pd.DataFrame) -> str:
    flips = table[(table.measure == "flipped") & (table.layer >= 0)]
    text = (
        "In one layer, the gate’s residual stream is that of a picture of another class. If the gate carries the "
        "class, orange rises, blue falls and predictions flip."
    )
    if flips.empty:
        return text + " No pair had two different unpatched predictions, so none could flip."
    return (
        text
        + f" Flips: of {int(flips.n.iloc[0])} pairs with different predictions. Bands: 95 % intervals over pairs."
    )


def _depth_table(table: pd.DataFrame) -> Table:
    rows: list[list[Cell]] = [
        [
            (str(r["attribute"]), f"n = {r['n']}"),
            str(r["layer"]) if r["layer"] >= 0 else "none",
            mean_cell(pd.Series(r)),
            MISSING
            if r["layer"] < 0
            else f"{r['first']}"
            if r["first"] == r["last"]
            else f"{r['first']}–{r['last']}",
        ]
        for r in table.to_dict("records")
    ]
    header = [
        "what is asked",
        "layer that changes\nmost answers",
        "changed there",
        "layers that change\nhalf as many",
    ]
    text = "The layer is the best of these same pairs, so its share is a little too high."
    return Table(header, rows, text)


def _by_pair(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table.base_class != ANY) & (table.target_class != ANY)]


def _classes_caption(table: pd.DataFrame) -> str:
    best = "the best" if table["mean"].max() > 0 else "none in any other layer either"
    low, high = (int(n) for n in (_by_pair(table).n.min(), _by_pair(table).n.max()))
    each = f"{low}" if low == high else f"{low} to {high}"
    few = f" Two given classes have {each} pairs, too few to show." * (low < FEWEST_A_CELL)
    return (
        f"Predictions of the target’s class in layer {int(table.layer.iloc[0])} ({best}). Base: the picture asked "
        f"about. Target: the picture whose gate it gets.{few} Whiskers: 95 % intervals."
    )


def attribute_curves(table: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """Turned answers by layer and attribute, of a study's ``patching_attributes`` table."""
    names = list(table.attribute.unique())
    looks = styles(names)
    return curves(
        table,
        [SeriesStyle(name, name, *looks[name]) for name in names],
        by="attribute",
        title="The gate from another picture, in one layer: answers that become that picture’s",
        ylim=(-0.02, 1.04),
        dark=dark,
    )


def class_bars(table: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """Success by the base's and by the target's class, all pairs of it pooled, of a study's ``patching_classes``."""
    sides = {"base": table[table.target_class == ANY], "target": table[table.base_class == ANY]}
    pooled = pd.concat(
        [part.assign(side=side, name=part[f"{side}_class"]) for side, part in sides.items()],
        ignore_index=True,
    ).sort_values("name", kind="stable")
    counts = {
        name: f"{name}\nn = {', '.join(str(int(n)) for n in part.sort_values('side').n)}"
        for name, part in pooled.groupby("name")
    }
    return bars(
        pooled,
        groups="name",
        by="side",
        series=[
            SeriesStyle("base", "asked about (base)", "image"),
            SeriesStyle("target", "gate taken from it (target)", "gate"),
        ],
        labels=counts,
        title="Predictions of the target’s class",
        value_label="share",
        top=1.05,
        horizontal=False,
        dark=dark,
    )


def patching_curve(
    table: pd.DataFrame,
    dark: bool = False,
    title: str = "Patching the gate’s residual stream, one layer at a time",
) -> NotebookFigure:
    """Overlap of the patched answer with base and target, and the shares of predictions that became the target's, by
    patched layer.

    Args:
        table: ``layer, measure, mean, low, high, n`` as a study's ``patching`` or ``patching_attention`` table;
            layer −1 is unpatched.
        dark: draw on dark ground.
        title: of the figure.
    """
    clean = table[(table.measure == "target") & (table.layer == -1)]
    level = float(clean["mean"].iloc[0]) if len(clean) else float("nan")
    return curves(
        table[table.layer >= 0],
        [
            SeriesStyle("target", "overlap with the patched-in picture’s answer", "gate"),
            SeriesStyle("base", "overlap with the picture’s own answer", "image"),
            SeriesStyle("flipped", "predictions flipped", "third", "--"),
            SeriesStyle("success", "predictions of the target’s class", "ink", ":", "x"),
        ],
        by="measure",
        references=[ReferenceLine(level, "overlap of the two clean answers", "-.")],
        title=title,
        dark=dark,
    )


def class_map(table: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """Success by base (row) and target class (column) with the number of pairs, of ``patching_classes``."""
    return heat_map(
        _by_pair(table),
        rows="base_class",
        columns="target_class",
        count="n",
        row_label="base",
        column_label="target: the picture the gate is taken from",
        title="Predictions of the target’s class",
        dark=dark,
    )
