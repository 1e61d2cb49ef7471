"""Heat maps write their values into legible cells."""

from __future__ import annotations

import pandas as pd
import pytest

from gatelens.errors import DataError
from gatelens.plots.heatmap import heat_map
from gatelens.plots.style import DARK, LIGHT, png

TABLE = pd.DataFrame(
    [("fox", "dog", 0.95, 8), ("dog", "fox", 0.05, 3), ("dog", "cat", -0.001, 1)],
    columns=["base", "target", "mean", "n"],
)


@pytest.mark.parametrize("dark", [False, True])
def test_values_and_counts_in_the_cells(dark: bool) -> None:
    figure = heat_map(
        TABLE, rows="base", columns="target", count="n", row_label="base", title="Map", dark=dark
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.00\nn = 1", "0.05\nn = 3", "0.95\nn = 8"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cat", "dog", "fox"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["dog", "fox"]
    assert axes.get_title("left") == "Map"
    assert axes.texts[0].get_color() == (DARK if dark else LIGHT).ink
    assert png(figure).startswith(b"\x89PNG")


def test_without_counts() -> None:
    axes = heat_map(TABLE, rows="base", columns="target", color="image").axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.00", "0.05", "0.95"]


def test_large_maps_have_colours_alone() -> None:
    table = pd.DataFrame({"a": range(21), "mean": 0.5}).merge(pd.DataFrame({"b": range(21)}), how="cross")
    assert not heat_map(table, rows="a", columns="b").axes[0].texts


def test_an_empty_table_says_so() -> None:
    with pytest.raises(DataError, match="no rows to draw"):
        heat_map(TABLE.iloc[:0], rows="base", columns="target")
