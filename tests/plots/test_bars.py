"""Bars show the numbers of their table, with whiskers, levels and values."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from figure_tables import bar_table
from gatelens.errors import DataError
from gatelens.plots.bars import bars, interval_bars, stacked_bars
from gatelens.plots.style import LIGHT, ReferenceLine, SeriesStyle, png

CUTS = [SeriesStyle("none", "unmodified", "neutral"), SeriesStyle("gate → text", color="gate")]


def test_one_bar_a_group() -> None:
    figure = bars(
        bar_table(),
        groups="row",
        panels="metric",
        colors={"gate → text": "gate"},
        values=True,
        top={"class accuracy": 1.0},
        references=[ReferenceLine({"class accuracy": 0.25}, "chance")],
        titles={"caption CIDEr-D": "captions"},
    )
    left, right = figure.axes
    assert [patch.get_width() for patch in left.patches] == [0.9, 0.2, 0.8]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["none", "gate → text", "image → text"]
    assert left.get_title("left") == "class accuracy  (n = 20)"
    assert right.get_title("left") == "captions"
    assert [text.get_text() for text in right.texts] == ["2.00", "−0.10"]  # the missing row has no number
    assert right.get_xlim()[0] < -0.2
    assert left.get_xlim()[1] == pytest.approx(1.22)
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first row stands on top
    assert set(left.lines[-1].get_xdata()) == {0.25}
    colors = [patch.get_facecolor()[:3] for patch in left.patches]
    assert colors[1] == pytest.approx([int(LIGHT.gate[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert colors[0] == colors[2] != colors[1]
    assert png(figure).startswith(b"\x89PNG")


def test_several_bars_a_group_with_a_level_each() -> None:
    table = bar_table()
    levels = ReferenceLine({"class accuracy": 0.25, "caption CIDEr-D": np.nan}, "blind guess")
    figure = bars(
        table,
        groups="metric",
        by="row",
        series=CUTS,
        horizontal=False,
        references=[levels],
        labels={"class accuracy": "class"},
        title="Answers",
        value_label="score",
        dark=True,
    )
    (axes,) = figure.axes
    assert [patch.get_height() for patch in axes.patches] == [0.9, 2.0, 0.2, -0.1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["class", "caption CIDEr-D"]
    assert axes.get_title("left") == "Answers"
    assert axes.get_ylabel() == "score"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "unmodified",
        "gate → text",
        "blind guess",
    ]
    level = next(one for one in axes.collections if one.get_label() == "blind guess")
    assert len(level.get_segments()) == 1


def test_long_titles_stay_over_their_panel() -> None:
    table = pd.concat([bar_table().assign(metric=f"a metric with a rather long name, {i}") for i in range(4)])
    figure = bars(table.drop_duplicates(["row", "metric"]), groups="row", panels="metric")
    figure.canvas.draw()
    extents = [axes._left_title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(extents))


def test_whiskers_reach_from_low_to_high_and_never_backwards() -> None:
    axes = Figure().subplots()
    interval_bars(axes, [0, 1], [0.5, 0.5], [0.4, 0.52], [0.7, 0.6], color="red", ink="black")
    spans = [segment[:, 1].tolist() for segment in axes.containers[-1].lines[2][0].get_segments()]
    assert spans == [pytest.approx([0.4, 0.7]), pytest.approx([0.5, 0.6])]


def test_stacked_bars_stand_on_each_other() -> None:
    axes = Figure().subplots()
    stacked_bars(
        axes, [0, 1], [([0.2, 0.3], "gate", "red"), ([0, 0], "none", "grey"), ([0.5, 0.1], "image", "blue")]
    )
    assert [patch.get_y() for patch in axes.patches] == [0, 0, 0.2, 0.3]
    assert axes.get_legend_handles_labels()[1] == ["gate", "image"]


def test_an_empty_table_says_so() -> None:
    with pytest.raises(DataError, match="no rows to draw"):
        bars(pd.DataFrame(columns=["row", "mean"]), groups="row")
