"""The attention card draws the table's own numbers, and names what stands out."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from gatelens.measures.attention import standing_out
from gatelens.plots import card
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.attention.figures import attention_shares
from gatelens.studies.narrow_gate.attention.section import page

SHARES = {("boi", -1): 0.05, ("gate", -1): 0.3, ("row_break", 0): 0.02, ("row_break", 1): 0.13}


@pytest.fixture(scope="module")
def run() -> Run:
    """Two layers; the second row break takes 0.13 in the first and 0.23 in the second, from the gate."""
    rows, order = [], {}
    for layer in range(2):
        shares = dict(SHARES) | {("image", i): 0.5 / 24 for i in range(24)}
        shares["gate", -1] -= 0.1 * layer
        shares["row_break", 1] += 0.1 * layer
        for key, share in shares.items():
            order.setdefault(key, len(order))
            name = f"{key[0]} $x_{key[1]}"  # not to be read as a formula
            rows.append((layer, *key, share, 0.001, 0.5, 9, 9, "t", order[key], name))
    columns = [
        "layer",
        "kind",
        "index",
        "share",
        "se",
        "image_side_mass",
        "n",
        "held",
        "token",
        "order",
        "name",
    ]
    table = pd.DataFrame(rows, columns=columns)
    found = standing_out(table).merge(table[table.layer == 0][["kind", "index", "name", "token", "order"]])
    groups = [
        (layer, group, share, 0.0, 1.0, positions, 9)
        for layer in range(2)
        for group, share, positions in (
            ("gate", 0.3 - 0.1 * layer, 1),
            ("last_image", 0.5 / 24, 1),
            ("internal_image", 0.5 * 23 / 24, 23),
            ("row_break", 0.15 + 0.1 * layer, 2),
            ("boi", 0.05, 1),
        )
    ]
    settings = {"sections": {"attention": {"n": 9, "least": 0.01, "times": 2.0}}}
    run = Run.open(None, study="narrow-gate", settings=settings)
    run.save("attention", table)
    head = ["layer", "group", "share", "low", "high", "positions", "n"]
    run.save("attention_groups", pd.DataFrame(groups, columns=head))
    run.save("attention_positions", found)
    return run


def blocks(run: Run) -> dict[str, Any]:
    (found,) = page(run)
    return {b.name if isinstance(b, card.Chart) else "table": b for b in found.blocks}


def test_what_stands_out_is_listed(run: Run) -> None:
    table = blocks(run)["table"]
    assert [row[0] for row in table.rows] == ["gate $x_-1", "row_break $x_1"]
    assert [row[3] for row in table.rows] == ["0", "1"]
    even = 1 / 28
    assert [row[4] for row in table.rows] == [f"{0.3 / even:.1f}", f"{0.23 / even:.1f}"]
    assert "28 positions take more than 1 %" in table.caption and "2 of them stand out" in table.caption
    (found,) = page(run)
    assert "2 times an even share" in found.words["stands out"]


@pytest.mark.parametrize("dark", [False, True])
def test_bars_are_the_groups(run: Run, dark: bool) -> None:
    figure = blocks(run)["attention"].draw(dark)
    upper = figure.axes[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in upper.containers}
    assert heights == {
        "the gate": pytest.approx([0.3, 0.2]),
        "last image token": pytest.approx([0.5 / 24] * 2),
        "the 23 internal image tokens": pytest.approx([0.5 * 23 / 24] * 2),
        "row breaks": pytest.approx([0.15, 0.25]),
        "start of image": pytest.approx([0.05] * 2),
    }
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("dark", [False, True])
def test_positions_are_drawn_in_order_and_named_as_written(run: Run, dark: bool) -> None:
    before = dict(mpl.rcParams)
    figure = blocks(run)["attention_positions"].draw(dark)
    axes = figure.axes[0]
    dots = axes.lines[0]
    mean = dict(zip(*dots.get_data(), strict=True))
    assert (
        mean[0] == pytest.approx(0.05) and mean[1] == pytest.approx(0.25) and mean[3] == pytest.approx(0.18)
    )
    assert "gate $x_-1" in [t.get_text() for t in axes.texts]
    lines = {line.get_label(): line.get_ydata()[0] for line in axes.lines[1:]}
    assert lines["even share"] == pytest.approx(1 / 28)
    assert lines["to stand out, above"] == pytest.approx(2 / 28)
    assert png(figure).startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before


def test_without_groups_the_bars_are_the_kinds(run: Run) -> None:
    table = run.table("attention")[["layer", "kind", "index", "share", "se", "image_side_mass", "n"]]
    upper = attention_shares(table).axes[0]
    total = np.sum([[bar.get_height() for bar in bars] for bars in upper.containers], axis=0)
    assert total == pytest.approx(1)
