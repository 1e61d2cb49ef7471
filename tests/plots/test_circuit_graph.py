"""Graphs of circuits: every node has its box, apart from all others, and edges go upwards."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from gatelens.plots.circuit_graph import circuit_graph

COLUMNS = [
    "sender",
    "sender_layer",
    "sender_head",
    "receiver",
    "receiver_layer",
    "receiver_head",
    "reads",
    "value",
]
LONG = "a title that goes on for so long that it has to be broken somewhere"


def edges(every: int) -> pd.DataFrame:
    """Some of the edges of four layers of sixteen heads."""
    names = [f"L{layer}H{head}" for layer in range(4) for head in range(16)]
    rows = []
    for i, sender in enumerate(["embed", *names, *(f"L{layer} mlp" for layer in range(4))]):
        layer = pd.NA if sender == "embed" else int(sender[1])
        head = int(sender[3:]) if "H" in sender else pd.NA
        for j, reads in enumerate(("q", "k", "v", "mlp", "logits")):
            to = 4 if reads == "logits" else 3
            if (layer is not pd.NA and int(layer) >= to) or (i + j) % every:
                continue
            receiver = {"mlp": "L3 mlp", "logits": "logits"}.get(reads, f"L3H{i % 16} {reads}")
            into = i % 16 if reads in "qkv" else pd.NA
            rows.append((sender, layer, head, receiver, to, into, reads, (-1) ** i / (1 + i)))
    return pd.DataFrame(rows, columns=COLUMNS)


def nodes() -> pd.DataFrame:
    rows = [
        {"node": f"L{layer}H{head}@{role}", "kind": "head", "layer": layer, "head": head, "value": 0.1 * head}
        for layer in range(4)
        for head in range(16)
        for role in ("image", "query")
    ]
    return pd.DataFrame(
        [*rows, {"node": "L2 mlp@query", "kind": "mlp", "layer": 2, "head": pd.NA, "value": 1.0}]
    )


@pytest.mark.parametrize("kind, table", [("edge", edges(1)), ("edge", edges(7)), ("node", nodes())])
@pytest.mark.parametrize("dark", [False, True])
def test_no_two_boxes_overlap_and_no_word_leaves_its_own(kind: str, table: pd.DataFrame, dark: bool) -> None:
    figure = circuit_graph(table, kind, LONG, dark=dark)
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [one.get_window_extent() for one in axes.patches if isinstance(one, FancyBboxPatch)]
    words = [one.get_window_extent() for one in axes.texts]
    assert len(words) == len(boxes) > 10
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x0 <= words[i].x0 and words[i].x1 <= box.x1
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    title = axes.title.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.width and not any(title.overlaps(box) for box in boxes)


def test_edges_go_up_and_are_as_wide_as_their_scores() -> None:
    table = edges(1)
    figure = circuit_graph(table, "edge")
    arrows = [one for one in figure.axes[0].patches if isinstance(one, FancyArrowPatch)]
    assert len(arrows) == len(table)
    assert all(one._posA_posB[0][1] < one._posA_posB[1][1] for one in arrows)
    widths = sorted((one.get_linewidth() for one in arrows), reverse=True)
    assert widths[0] == pytest.approx(3) and widths[-1] < 0.7


def test_a_key_that_several_heads_share_goes_to_each_that_is_there() -> None:
    table = pd.DataFrame(
        [
            ("embed", pd.NA, pd.NA, "L0H1 k", 0, 1, "k", 1.0),
            ("L0H2", 0, 2, "logits", 1, pd.NA, "logits", 1.0),
            ("L0H3", 0, 3, "logits", 1, pd.NA, "logits", 1.0),
        ],
        columns=[
            "sender",
            "sender_layer",
            "sender_head",
            "receiver",
            "receiver_layer",
            "receiver_head",
            "reads",
            "value",
        ],
    )
    axes: Any = circuit_graph(table, "edge", group=2).axes[0]
    assert {one.get_text() for one in axes.texts} == {"embed", "L0H2", "L0H3", "logits"}
    assert sum(isinstance(one, FancyArrowPatch) for one in axes.patches) == 4
