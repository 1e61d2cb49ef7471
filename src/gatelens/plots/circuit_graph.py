"""A circuit as a graph: a line of boxes for the heads and one for the MLP of each layer, from the embedding upwards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from gatelens.plots.style import NotebookFigure, Palette, legend_below, styled, wrapped

READS = {"q": "image", "k": "gate", "v": "third", "mlp": "neutral", "logits": "neutral"}
IN_WORDS = {"q": "into queries", "k": "into keys", "v": "into values", "neutral": "into MLPs and logits"}
MOST_WIDE = 10.0  # inches of a line; more boxes go on in another
LETTER, HEIGHT = 0.078, 0.26  # inches, of a letter and a box
GAP, BETWEEN = {"edge": 0.5, "node": 0.2}, {"edge": 0.75, "node": 0.42}  # inches between boxes, and lines
LEAST = 5.6  # inches, so that title and legend have room
WIDTHS = (0.5, 3.0)  # points, of edges and frames

Name = str
Place = tuple[float, float]
Link = tuple[Name, Name, str, float]  # from, to, what it reads, how large


@dataclass(frozen=True)
class Box:
    """A node to draw. Boxes of one ``line`` are side by side, and lines go upwards in order.

    Attributes:
        frame: its width in points.
    """

    name: Name
    kind: str
    line: tuple[int, int]
    order: tuple[int, int] = (0, 0)
    frame: float = 1.2


def circuit_graph(
    table: pd.DataFrame, kind: str, title: str = "", *, group: int = 1, dark: bool = False
) -> NotebookFigure:
    """Draw a circuit; edges, or the frames of nodes, are as wide as their scores are large.

    Args:
        table: of edges ``sender, sender_layer, sender_head, receiver, receiver_layer, receiver_head, reads, value``; of
            nodes ``node, kind, layer, value`` and perhaps ``head, position``.
        kind: ``edge`` or ``node``.
        title: over the graph.
        group: how many query heads share a key and value; an edge to these goes to each such head that is there.
        dark: draw on dark ground.
    """
    boxes, links = _of_edges(table, group) if kind == "edge" else (_of_nodes(table), [])
    with styled(dark) as p:
        places, width, height = _layout(boxes, GAP[kind], BETWEEN[kind])
        width = max(LEAST, width)
        title = wrapped(title, width)
        above = 0.5 + 0.2 * title.count("\n")
        figure = NotebookFigure(figsize=(width + 0.6, height + above + 0.9), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set_xlim(-width / 2 - 0.2, width / 2 + 0.2)
        axes.set_ylim(-HEIGHT, height + HEIGHT)
        axes.set_title(title)
        _draw_links(axes, links, places, p)
        for box in boxes:
            _draw_box(axes, box, places[box.name], p)
        legend_below(figure)
    return figure


def _of_nodes(table: pd.DataFrame) -> list[Box]:
    """The boxes of nodes, by layer, head and place."""
    boxes, largest = [], float(table["value"].abs().max()) or 1.0
    for row in table.to_dict("records"):
        parts = (row.get("head"), row.get("position"))
        head, position = (-1 if one is None or pd.isna(one) else int(one) for one in parts)
        line, share = (int(row["layer"]), int(row["kind"] == "mlp")), abs(float(row["value"])) / largest
        boxes.append(Box(row["node"], row["kind"], line, (head, position), _points(share)))
    return boxes


def _of_edges(table: pd.DataFrame, group: int) -> tuple[list[Box], list[Link]]:
    """The boxes and arrows of edges."""
    boxes: dict[Name, Box] = {}
    rows = table.to_dict("records")
    there = {row["sender"] for row in rows} | {_node(row["receiver"]) for row in rows if row["reads"] == "q"}

    def add(name: Name, kind: str, layer: Any, head: Any) -> Name:
        line = (-1 if pd.isna(layer) else int(layer), int(kind in ("mlp", "logits")))
        boxes.setdefault(name, Box(name, kind, line, (0 if pd.isna(head) else int(head), 0)))
        return name

    links = []
    for row in rows:
        kind = "embed" if row["sender"] == "embed" else "mlp" if pd.isna(row["sender_head"]) else "head"
        start = add(row["sender"], kind, row["sender_layer"], row["sender_head"])
        layer, head, reads = row["receiver_layer"], row["receiver_head"], str(row["reads"])
        ends = [(row["receiver"], None)] if pd.isna(head) else [(_node(row["receiver"]), int(head))]
        if reads in ("k", "v") and group > 1:
            sharing = [(f"L{layer}H{one}", one) for one in range(int(head) * group, (int(head) + 1) * group)]
            ends = [one for one in sharing if one[0] in there] or sharing[:1]
        for name, number in ends:
            end = add(name, reads if number is None else "head", layer, pd.NA if number is None else number)
            links.append((start, end, reads, abs(float(row["value"]))))
    return list(boxes.values()), links


def _node(receiver: str) -> Name:
    """The head of a query, key or value."""
    return receiver.split()[0]


def _points(share: float) -> float:
    return WIDTHS[0] + (WIDTHS[1] - WIDTHS[0]) * share


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
        n_parts = math.ceil(sum(_width(box) + gap for box in some) / MOST_WIDE)
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
        linewidth=box.frame,
        zorder=3,
    )
    axes.add_patch(patch)
    axes.text(*place, box.name, ha="center", va="center", fontsize=8, color=p.ink, zorder=4)


def _draw_links(axes: Axes, links: list[Link], places: dict[Name, Place], p: Palette) -> None:
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
                linewidth=_points(share),
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
