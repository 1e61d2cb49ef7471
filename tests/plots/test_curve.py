"""Curves show the numbers of their table, one look for all."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from figure_tables import curve_table
from gatelens.errors import DataError
from gatelens.plots.curve import curve, curves, label_points, layer_axis
from gatelens.plots.style import DARK, LIGHT, ReferenceLine, SeriesStyle, png

SERIES = [
    SeriesStyle("gate", "gate → text", "gate"),
    SeriesStyle("image", color="image", line="--", marker="s"),
]


def line(axes: Any, label: str) -> Any:
    return next(one for one in axes.lines if one.get_label() == label)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_curve_has_a_band_where_its_interval_is_known() -> None:
    axes = Figure().subplots()
    curve(axes, [0, 1], [0.2, 0.4], color="red")
    assert len(axes.collections) == 0
    curve(axes, [0, 1], [0.2, 0.4], [0.1, 0.3], [0.3, 0.5], color="red", label="with")
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.1, 0.5)
    np.testing.assert_allclose(line(axes, "with").get_ydata(), [0.2, 0.4])


def test_panels_in_the_order_of_the_table() -> None:
    table = curve_table(("class accuracy", "VQA accuracy"))
    figure = curves(table, SERIES, by="keys", rows="metric", xlabel="layer l")
    upper, lower = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "class accuracy\n(n = 10)",
        "VQA accuracy\n(n = 11)",
    ]
    assert (upper.get_xlabel(), lower.get_xlabel()) == ("", "layer l")
    np.testing.assert_allclose(line(upper, "gate → text").get_xdata(), [0, 1, 2, 3])
    np.testing.assert_allclose(line(upper, "gate → text").get_ydata(), [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(line(lower, "image").get_ydata(), [0.5, 0.375, 0.25, 0.125])
    assert line(upper, "gate → text").get_color() == LIGHT.gate
    assert legend(figure) == ["gate → text", "image"]


def test_columns_titles_and_references() -> None:
    table = curve_table(("a", "b"))
    references = [ReferenceLine({"a": 0.9}, "unmodified"), ReferenceLine(0.1, "chance", "--")]
    figure = curves(
        table, SERIES, by="keys", columns="metric", references=references, titles={"a": "First"}, ylabel="y"
    )
    left, right = figure.axes
    assert [left.get_title("left"), right.get_title("left")] == ["First", "b"]
    assert left.get_ylabel() == "y"
    assert set(line(left, "unmodified").get_ydata()) == {0.9}
    assert "unmodified" not in [one.get_label() for one in right.lines]
    assert line(right, "chance").get_linestyle() == "--"
    assert legend(figure) == ["gate → text", "image", "unmodified", "chance"]


def test_texts_on_the_axis_keep_the_order_of_the_table() -> None:
    table = pd.DataFrame({"of": "hit", "layers": ["0–3", "4–7", "12–15"], "mean": [0.1, 0.2, 0.3]})
    figure = curves(table, [SeriesStyle("hit")], by="of", x="layers")
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0–3", "4–7", "12–15"]
    np.testing.assert_allclose(line(axes, "hit").get_ydata(), [0.1, 0.2, 0.3])


def test_dark_figures_and_nothing_left_behind() -> None:
    before = dict(mpl.rcParams)
    figure = curves(curve_table(), SERIES, by="keys", dark=True)
    assert figure.get_facecolor() == to_rgba(DARK.ground)
    assert line(figure.axes[0], "image").get_color() == DARK.image
    assert png(figure).startswith(b"\x89PNG")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before


def test_an_empty_table_says_so() -> None:
    with pytest.raises(DataError, match="no rows to draw"):
        curves(curve_table().iloc[:0], SERIES, by="keys")


def test_an_unknown_colour_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no colour 'purple'; the palette has ground, ink"):
        curves(curve_table(), [SeriesStyle("gate", color="purple")], by="keys")


def test_at_most_a_dozen_layers_have_a_tick() -> None:
    axes = Figure().subplots()
    layer_axis(axes, range(40))
    assert list(axes.get_xticks()) == list(range(0, 40, 4))
    assert axes.get_xlabel() == "layer"
    layer_axis(axes, pd.Series([2.0, 1.0]), "layer l")
    assert list(axes.get_xticks()) == [1, 2]


def test_texts_at_points() -> None:
    axes = Figure().subplots()
    label_points(axes, [0, 1], [0.5, 0.6], ["a", "b"], color="red", below=[True, False])
    assert [(text.get_text(), text.get_va()) for text in axes.texts] == [("a", "top"), ("b", "bottom")]
