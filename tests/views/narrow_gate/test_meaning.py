"""The card of where the class can be read draws the table's own numbers."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.meaning import PLACES, measure
from gatelens.views.narrow_gate import meaning


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    stream = {
        place: torch.randn(60, 3, 6, generator=generator)
        for place in [*PLACES, "image token 7", "row break 2"]
    }
    stream["gate"][:, 1:, :3] += 9 * torch.eye(3)[labels][:, None]
    return measure(stream, labels, k=30, folds=3, probed=[0, 2], n_boot=20, seed=0)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_are_the_table(table: pd.DataFrame, dark: bool) -> None:
    figure = meaning.class_by_layer(table, dark)
    for axes, name in zip(figure.axes, meaning.PANELS, strict=True):
        mine = table[table.measure == name]
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert set(lines) == set(mine.place)
        for place, line in lines.items():
            part = mine[mine.place == place]
            assert list(line.get_xdata()) == part.layer.tolist()
            assert list(line.get_ydata()) == part["mean"].tolist()
    assert png(figure).startswith(b"\x89PNG")
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted(set(table.place))
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines.values()}
    assert len(looks) == len(lines)  # no two places look alike


def test_the_card_says_where_it_is_highest(table: pd.DataFrame) -> None:
    run = Run.open(None, study="narrow-gate", settings={"sections": {"meaning": {"folds": 3}}})
    assert meaning.cards(run) == []
    run.save_table("meaning", table)
    (found,) = meaning.cards(run)
    (figure,) = found.blocks
    gate = table[(table.place == "gate") & (table.measure == "overlap")].set_index("layer")["mean"]
    assert gate.idxmax() in (1, 2)
    assert f"At the gate it is highest in layer {gate.idxmax()} ({gate.max():.2f}" in figure.caption  # type: ignore[union-attr]
    assert "6 nearest neighbours" in found.words["neighbourhood overlap"]  # a tenth of 60
    assert "3-fold" in found.words["linear probe"]


def test_without_a_probe_there_is_one_panel_less(table: pd.DataFrame) -> None:
    figure = meaning.class_by_layer(table[table.measure != "probe"])
    assert [a.get_title(loc="left") for a in figure.axes] == [
        "Neighbours of the same class",
        "Neighbours shared with the gate",
    ]
