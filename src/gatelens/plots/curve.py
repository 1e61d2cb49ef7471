"""Curves with interval bands: how every one of them looks, and panels of them from a tidy table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from gatelens.errors import DataError
from gatelens.plots.style import (
    NotebookFigure,
    Palette,
    ReferenceLine,
    SeriesStyle,
    legend_below,
    styled,
    wrapped,
)

LINE_WIDTH, DOTTED_LINE_WIDTH = 1.5, 1.2  # points
MARKER_SIZE = 4
BAND_OPACITY = 0.15
SHARE = (-0.03, 1.05)  # limits of an axis of shares, so that 0 and 1 stay visible
MOST_TICKS = 12


def curve(
    axes: Axes,
    x: Sequence[float] | pd.Series,
    mean: Sequence[float] | pd.Series,
    low: Sequence[float] | pd.Series | None = None,
    high: Sequence[float] | pd.Series | None = None,
    *,
    color: str,
    label: str = "",
    line: str = "-",
    marker: str = "",
) -> None:
    """Draw one curve, with its interval as a band where ``low`` and ``high`` are given.

    Args:
        axes: where to draw.
        x, mean, low, high: one value per point.
        color: any Matplotlib colour.
        label: name in the legend; empty leaves it out.
        line: Matplotlib line style.
        marker: Matplotlib marker; empty draws none.
    """
    width = DOTTED_LINE_WIDTH if line == ":" and not marker else LINE_WIDTH
    axes.plot(x, mean, line, color=color, linewidth=width, marker=marker, markersize=MARKER_SIZE, label=label)
    if low is not None and high is not None:
        axes.fill_between(x, low, high, color=color, alpha=BAND_OPACITY, linewidth=0)


def reference(
    axes: Axes,
    level: float,
    label: str = "",
    *,
    color: str,
    line: str | tuple[int, tuple[float, ...]] = ":",
    upright: bool = False,
) -> None:
    """Draw a thin line at a level: across the panel, or upright for horizontal bars.

    Args:
        axes: where to draw.
        level: the height of the line; nothing is drawn at NaN.
        label: name in the legend; empty leaves it out.
        color: any Matplotlib colour.
        line: Matplotlib line style.
        upright: the values run along x.
    """
    if np.isfinite(level):
        draw = axes.axvline if upright else axes.axhline
        draw(level, color=color, linewidth=1, linestyle=line, label=label)


def layer_axis(axes: Axes, layers: Sequence[int] | pd.Series, label: str = "layer") -> None:
    """Put ticks at whole layers, at most about a dozen."""
    each = sorted({int(layer) for layer in layers})
    step = max(1, -(-len(each) // MOST_TICKS))
    axes.set_xticks(each[::step])
    axes.set_xlabel(label)


def label_points(
    axes: Axes,
    x: Sequence[float] | pd.Series,
    y: Sequence[float] | pd.Series,
    texts: Sequence[str],
    *,
    color: str,
    below: Sequence[bool] | bool = False,
) -> None:
    """Write a text above (or below) each point of a curve."""
    sides = [below] * len(texts) if isinstance(below, bool) else below
    for at, height, text, under in zip(x, y, texts, sides, strict=True):
        axes.annotate(
            text,
            (at, height),
            xytext=(0, -8 if under else 6),
            textcoords="offset points",
            ha="center",
            va="top" if under else "bottom",
            fontsize=8,
            color=color,
        )


def draw_series(
    axes: Axes, table: pd.DataFrame, series: Sequence[SeriesStyle], palette: Palette, *, by: str, x: str
) -> None:
    """Draw the curves of one panel.

    Args:
        axes: where to draw.
        table: columns ``by``, ``x``, ``mean`` and, for bands, ``low`` and ``high``.
        series: the curves, in the order of the legend; those without rows are left out.
        palette: the colours in use.
        by: column whose values are the keys of ``series``.
        x: column of the horizontal axis.
    """
    for style in series:
        part = table[table[by] == style.key].sort_values(x)
        if part.empty:
            continue
        band = style.band and {"low", "high"} <= set(part.columns)
        low, high = (part.low, part.high) if band else (None, None)
        color = palette.color(style.color)
        curve(
            axes,
            part[x],
            part["mean"],
            low,
            high,
            color=color,
            label=style.name,
            line=style.line,
            marker=style.marker,
        )


def draw_references(axes: Axes, references: Sequence[ReferenceLine], palette: Palette, *panel: str) -> None:
    """Draw the levels of one panel, which is known by the values of its row and column."""
    for line in references:
        level = line.at(*panel)
        if level is not None:
            reference(axes, level, line.label, color=palette.soft, line=line.line)


def curves(
    table: pd.DataFrame,
    series: Sequence[SeriesStyle],
    *,
    by: str,
    x: str = "layer",
    rows: str | None = None,
    columns: str | None = None,
    references: Sequence[ReferenceLine] = (),
    titles: Mapping[str, str] | None = None,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    ylim: tuple[float, float] | None = SHARE,
    dark: bool = False,
) -> NotebookFigure:
    """Panels of curves from a tidy table.

    Args:
        table: columns ``by``, ``x``, ``mean`` and, where known, ``low``, ``high`` and ``n``.
        series: the curves of every panel.
        by: column whose values are the keys of ``series``.
        x: column of the horizontal axis; whole numbers get ticks like layers, texts stand side by side in their
            order in the table.
        rows, columns: columns whose values make a row or a column of panels, in their order in the table.
        references: levels drawn in the panels.
        titles: what a column of panels is called, by its value; without, the value itself.
        title: over the first panel.
        xlabel: under the lowest panels; empty means the name of ``x``.
        ylabel: next to the first panels; empty means the value of ``rows`` and the number of examples.
        ylim: limits of the vertical axis; None fits them to the data.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no rows.
    """
    if table.empty:
        raise DataError("curves: the table has no rows to draw")
    down = list(table[rows].unique()) if rows else [""]
    across = list(table[columns].unique()) if columns else [""]
    ticks = [] if is_numeric_dtype(table[x]) else list(table[x].unique())
    table = table.assign(**{x: table[x].map(ticks.index)}) if ticks else table
    with styled(dark) as p:
        height = 3.9 if len(down) == 1 else 2.6 * len(down) + 0.7
        figure = NotebookFigure(figsize=(9.0, height), layout="constrained")
        grid = figure.subplots(len(down), len(across), sharey=True, squeeze=False)
        for (i, row), (j, column) in product(enumerate(down), enumerate(across)):
            axes = grid[i, j]
            part = _panel(table, (rows, row), (columns, column))
            draw_series(axes, part, series, p, by=by, x=x)
            draw_references(axes, references, p, row, column)
            _x_axis(axes, part[x], ticks)
        if ylim is not None:
            grid[0, 0].set_ylim(*ylim)
        names = [title] if title else [(titles or {}).get(column, str(column)) for column in across]
        beside = [ylabel or _counted(row, _panel(table, (rows, row))) for row in down]
        _name_panels(grid, names, beside, xlabel or x)
        legend_below(figure, [style.name for style in series])
    return figure


def _panel(table: pd.DataFrame, *chosen: tuple[str | None, str]) -> pd.DataFrame:
    """The rows that have the chosen values; a column that is None chooses nothing."""
    for column, value in chosen:
        if column is not None:
            table = table[table[column] == value]
    return table


def _x_axis(axes: Axes, values: pd.Series, ticks: Sequence[str]) -> None:
    """Ticks at the named places, or at whole numbers where the values are whole; lines across."""
    axes.grid(axis="y")
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks)
    elif is_integer_dtype(values):
        layer_axis(axes, values, "")


def _name_panels(grid: np.ndarray, above: Sequence[str], beside: Sequence[str], below: str) -> None:
    """Texts at the edges of a grid of panels."""
    for axes, text in zip(grid[0], above, strict=False):
        axes.set_title(wrapped(text, 8.0 / len(grid[0])))
    for axes, text in zip(grid[:, 0], beside, strict=True):
        axes.set_ylabel(text)
    for axes in grid[-1]:
        axes.set_xlabel(below)


def _counted(name: str, table: pd.DataFrame) -> str:
    return f"{name}\n(n = {int(table.n.max())})" if name and "n" in table.columns else str(name)
