"""A circuit as a graph: a line of boxes for the heads and one for the MLP of each layer, from the embedding upwards."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from gatelens.plots.style import NotebookFigure, Palette, legend_below, styled, wrapped

READS = {"q": "image", "k": "gate", "v": "third", "mlp": "neutral", "logits": "neutral"}
IN_WORDS = {"q": "into queries", "k": "into keys", "v": "into values", "neutral": "into MLPs and logits"}
MOST_IN_LINE = 12  # boxes; more go on in another line
LETTER, HEIGHT = 0.078, 0.26  # inches, of a letter and a box
GAP, BETWEEN = {"edge": 0.5, "node": 0.2}, {"edge": 0.75, "node": 0.42}  # inches between boxes, and lines
LEAST = 5.6  # inches, so that title and legend have room
WIDTHS = (0.5, 3.0)  # points, of edges

Name = str
Place = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A node to draw. Boxes of one ``line`` stand side by side, and lines upwards in order."""

    name: Name
    kind: str
    line: tuple[int, int]
    order: tuple[int, int] = (0, 0)


def circuit_graph(table: pd.DataFrame, kind: str, title: str = "", *, dark: bool = False) -> NotebookFigure:
    """Draw a circuit.

    Args:
        table: of edges ``sender, sender_layer, sender_head, receiver, receiver_layer, receiver_head, reads, value``; of
            nodes ``node, kind, layer, value``.
        kind: ``edge`` or ``node``.
        title: over the graph.
        dark: draw on dark ground.
    """
    links: list[tuple[Name, Name, str, float]] = []
    if kind == "edge":
        boxes, links = _of_edges(table)
    else:
        boxes = _of_nodes(table)
    with styled(dark) as p:
        places, width, height = _layout(boxes, GAP[kind], BETWEEN[kind])
        width = max(LEAST, width)
        figure = NotebookFigure(figsize=(width + 0.6, height + 1.3), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set_xlim(-width / 2 - 0.2, width / 2 + 0.2)
        axes.set_ylim(-HEIGHT, height + HEIGHT)
        axes.set_title(wrapped(title, width))
        _draw_links(axes, links, places, p)
        for box in boxes:
            _draw_box(axes, box, places[box.name], p)
        legend_below(figure)
    return figure


def _of_nodes(table: pd.DataFrame) -> list[Box]:
    """The boxes of nodes, by layer, head and place."""
    boxes = []
    for row in table.to_dict("records"):
        parts = (row.get("head"), row.get("position"))
        head, position = (-1 if one is None or pd.isna(one) else int(one) for one in parts)
        boxes.append(
            Box(row["node"], row["kind"], (int(row["layer"]), int(row["kind"] == "mlp")), (head, position))
        )
    return boxes


def _of_edges(table: pd.DataFrame) -> tuple[list[Box], list[tuple[Name, Name, str, float]]]:
    """The boxes and arrows of edges. A key or value of several query heads is an arrow to each that is there."""
    boxes: dict[Name, Box] = {}

    def add(name: Name, kind: str, layer: Hashable, head: Hashable) -> Name:
        line = (-1 if pd.isna(layer) else int(str(layer)), int(kind in ("mlp", "logits")))
        boxes.setdefault(name, Box(name, kind, line, (0 if pd.isna(head) else int(str(head)), 0)))
        return name

    links = []
    for row in table.itertuples():
        head = not pd.isna(row.sender_head)
        kind = "head" if head else "embed" if row.sender == "embed" else "mlp"
        start = add(row.sender, kind, row.sender_layer, row.sender_head)
        to_head = row.reads in ("q", "k", "v")
        name = row.receiver.split()[0] if to_head else row.receiver
        end = add(name, "head" if to_head else row.reads, row.receiver_layer, row.receiver_head)
        links.append((start, end, str(row.reads), abs(float(row.value))))
    return list(boxes.values()), links


def _width(box: Box) -> float:
    return 0.2 + LETTER * len(box.name)


def _layout(boxes: Iterable[Box], gap: float, between: float) -> tuple[dict[Name, Place], float, float]:
    """The middle of every box in inches, each line centred; the width and height of all."""
    lines: dict[tuple[int, int], list[Box]] = {}
    for box in sorted(boxes, key=lambda one: (one.line, one.order)):
        lines.setdefault(box.line, []).append(box)
    places: dict[Name, Place] = {}
    height, widest, number = 0.0, 0.0, 0
    for some in lines.values():
        n_parts = math.ceil(len(some) / MOST_IN_LINE)
        size = math.ceil(len(some) / n_parts)
        for first in range(0, len(some), size):
            part = some[first : first + size]
            total = sum(map(_width, part)) + gap * (len(part) - 1)
            x = -total / 2
            for box in part:
                places[box.name] = (x + _width(box) / 2, number * between)
                x += _width(box) + gap
            widest, height, number = max(widest, total), number * between, number + 1
    return places, widest, height


def _draw_box(axes: Axes, box: Box, place: Place, p: Palette) -> None:
    color = {"head": p.image, "attention": p.image, "mlp": p.third}.get(box.kind, p.neutral)
    width = _width(box)
    patch = FancyBboxPatch(
        (place[0] - width / 2 + 0.05, place[1] - HEIGHT / 2 + 0.05),
        width - 0.1,
        HEIGHT - 0.1,
        boxstyle="round,pad=0.05",
        facecolor=p.ground,
        edgecolor=color,
        linewidth=1.2,
        zorder=3,
    )
    axes.add_patch(patch)
    axes.text(*place, box.name, ha="center", va="center", fontsize=8, color=p.ink, zorder=4)


def _draw_links(
    axes: Axes, links: list[tuple[Name, Name, str, float]], places: dict[Name, Place], p: Palette
) -> None:
    largest = max((size for *_, size in links), default=1.0) or 1.0
    labelled: set[str] = set()
    for start, end, reads, size in sorted(links, key=lambda link: -link[3]):
        (x0, y0), (x1, y1) = places[start], places[end]
        far = abs(y1 - y0) > 1.5 * BETWEEN["edge"]  # bend round the boxes between
        side = 1 if x0 + x1 >= 0 else -1
        turn = {"q": -0.06, "k": 0.06}.get(reads, 0.0) + (0.14 * side if far else 0.0)
        share = size / largest
        axes.add_patch(
            FancyArrowPatch(
                (x0, y0 + HEIGHT / 2),
                (x1, y1 - HEIGHT / 2),
                connectionstyle=f"arc3,rad={turn}",
                arrowstyle="-|>",
                mutation_scale=6,
                linewidth=WIDTHS[0] + (WIDTHS[1] - WIDTHS[0]) * share,
                color=p.color(READS[reads]),
                alpha=0.35 + 0.6 * share,
                shrinkA=0,
                shrinkB=0,
                zorder=2,
            )
        )
        labelled.add(reads if reads in IN_WORDS else "neutral")
    for key, text in IN_WORDS.items():
        if key in labelled:
            axes.add_line(Line2D([], [], color=p.color(READS.get(key, "neutral")), label=text))
