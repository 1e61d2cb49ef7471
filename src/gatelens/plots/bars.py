"""Bars with interval whiskers: how every one of them looks, and panels of them from a tidy table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gatelens.errors import DataError
from gatelens.plots.curve import reference
from gatelens.plots.numbers import number
from gatelens.plots.style import NotebookFigure, Palette, ReferenceLine, SeriesStyle, legend_below, styled

ROOM = 0.8  # of the distance between two groups, what a group's bars fill


def interval_bars(
    axes: Axes,
    places: Sequence[float] | np.ndarray | pd.Series,
    mean: Sequence[float] | pd.Series,
    low: Sequence[float] | pd.Series | None = None,
    high: Sequence[float] | pd.Series | None = None,
    *,
    color: str | Sequence[str],
    ink: str,
    label: str = "",
    width: float = 0.66,
    horizontal: bool = False,
) -> None:
    """Draw bars, with their intervals as whiskers where ``low`` and ``high`` are given.

    Args:
        axes: where to draw.
        places: the middle of every bar.
        mean, low, high: one value a bar.
        color: one for all, or one a bar; any Matplotlib colours.
        ink: of the whiskers.
        label: name in the legend; empty leaves it out.
        width: of a bar, in the units of ``places``.
        horizontal: the values run along x.
    """
    values = np.asarray(mean, dtype=float)
    draw = axes.barh if horizontal else axes.bar
    draw(places, values, width, color=color, label=label)
    if low is None or high is None:
        return
    whiskers = np.stack([values - np.asarray(low, dtype=float), np.asarray(high, dtype=float) - values])
    style: dict[str, Any] = {"fmt": "none", "ecolor": ink, "elinewidth": 1, "capsize": 2}
    whiskers = whiskers.clip(min=0)  # a mean that was rounded may lie a little outside its interval
    if horizontal:
        axes.errorbar(values, places, xerr=whiskers, **style)
    else:
        axes.errorbar(places, values, yerr=whiskers, **style)


def stacked_bars(
    axes: Axes,
    places: Sequence[float] | pd.Series,
    parts: Sequence[tuple[Sequence[float] | pd.Series, str, str]],
    width: float = 0.8,
) -> None:
    """Draw bars made of parts on top of each other.

    Args:
        axes: where to draw.
        places: the middle of every bar.
        parts: from the bottom up, the heights of a part with its label and colour; parts of no height are left out.
        width: of a bar, in the units of ``places``.
    """
    floor = np.zeros(len(places))
    for heights, label, color in parts:
        values = np.asarray(heights, dtype=float)
        if values.sum() > 0:
            axes.bar(places, values, width, bottom=floor, color=color, label=label)
            floor = floor + values


def bars(
    table: pd.DataFrame,
    *,
    groups: str,
    colors: Mapping[str, str] | None = None,
    by: str | None = None,
    series: Sequence[SeriesStyle] = (),
    panels: str | None = None,
    references: Sequence[ReferenceLine] = (),
    labels: Mapping[str, str] | None = None,
    titles: Mapping[str, str] | None = None,
    title: str = "",
    label: str = "",
    top: float | Mapping[str, float] | None = None,
    values: bool = False,
    horizontal: bool = True,
    legend_columns: int = 4,
    size: tuple[float, float] | None = None,
    dark: bool = False,
) -> NotebookFigure:
    """Panels of bars from a tidy table: one bar a group, or several side by side.

    Args:
        table: columns ``groups``, ``mean`` and, where known, ``low``, ``high`` and ``n``.
        groups: column whose values stand along the axis, in their order in the table.
        colors: for one bar a group, its colour in :class:`~gatelens.plots.style.Palette` by group; others are faint.
        by: for several bars a group, the column whose values are the keys of ``series``.
        series: the bars of a group, in order.
        panels: column whose values make panels side by side, in their order in the table.
        references: levels drawn across a panel, or across a group where its keys are groups.
        labels: what a group is called on the axis.
        titles: what a panel is called; without, its value and the number of examples.
        title: over a single panel.
        label: beside the axis of values.
        top: where the axis of values ends, for all panels or by panel; without, at the largest value.
        values: write the mean beside each bar.
        horizontal: the values run along x.
        legend_columns: entries side by side in the legend.
        size: width and height in inches; None fits them to the number of bars.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no rows.
    """
    if table.empty:
        raise DataError("bars: the table has no rows to draw")
    names = list(table[groups].unique())
    each = list(table[panels].unique()) if panels else [""]
    ticks = [(labels or {}).get(name, str(name)) for name in names]
    with styled(dark) as p:
        shape = size or _size(len(names), len(each), max(1, len(series)), horizontal)
        figure = NotebookFigure(figsize=shape, layout="constrained")
        grid = figure.subplots(1, len(each), sharey=horizontal, squeeze=False)[0]
        for axes, panel in zip(grid, each, strict=True):
            part = table if panels is None else table[table[panels] == panel]
            _draw_groups(axes, part, names, groups, colors or {}, by, series, p, horizontal, values)
            for line in references:
                _draw_reference(axes, line, panel, names, p, horizontal)
            end = top.get(panel) if isinstance(top, Mapping) else top
            _value_axis(axes, part, end, horizontal, values)
            if panels:
                axes.set_title((titles or {}).get(panel) or _counted(panel, part))
            _group_axis(axes, ticks, horizontal)
            if horizontal:
                axes.set_xlabel(label)
        if not horizontal:
            grid[0].set_ylabel(label)
        if title:
            grid[0].set_title(title)
        legend_below(figure, legend_columns)
    return figure


def _size(n_groups: int, n_panels: int, n_series: int, horizontal: bool) -> tuple[float, float]:
    """Inches for so many bars."""
    if not horizontal:
        return max(5.5, 1.45 * n_groups + 0.8), 3.9
    height = 0.42 * n_groups if n_series == 1 else (0.24 * n_series) * n_groups + 0.3
    return 2.9 * n_panels + 1.5, height + 1.0


def _draw_groups(
    axes: Axes,
    table: pd.DataFrame,
    names: Sequence[str],
    groups: str,
    colors: Mapping[str, str],
    by: str | None,
    series: Sequence[SeriesStyle],
    p: Palette,
    horizontal: bool,
    values: bool,
) -> None:
    """The bars of one panel."""
    alone = SeriesStyle("")
    width = ROOM / max(1, len(series))
    for i, style in enumerate(series or [alone]):
        one = table if style is alone else table[table[by] == style.key]
        one = one.set_index(groups).reindex(names)
        places = np.arange(len(names)) + (i - (max(1, len(series)) - 1) / 2) * width
        color: str | list[str] = (
            [p.color(colors.get(name, "faint")) for name in names] if style is alone else p.color(style.color)
        )
        low, high = (one.low, one.high) if "low" in one.columns else (None, None)
        interval_bars(
            axes,
            places,
            one["mean"],
            low,
            high,
            color=color,
            ink=p.ink,
            label="" if style is alone else style.name,
            width=0.9 * width,
            horizontal=horizontal,
        )
        if values:
            _write_values(axes, places, one["mean"], one["mean"] if high is None else high, p, horizontal)


def _write_values(
    axes: Axes, places: np.ndarray, mean: pd.Series, ends: pd.Series, p: Palette, horizontal: bool
) -> None:
    """The means, beyond the ends of the whiskers."""
    for place, value, end in zip(places, mean, ends, strict=True):
        if not np.isfinite(value):
            continue
        at, offset = ((end, place), (4, 0)) if horizontal else ((place, end), (0, 3))
        axes.annotate(
            number(value),
            at,
            xytext=offset,
            textcoords="offset points",
            ha="left" if horizontal else "center",
            va="center" if horizontal else "bottom",
            fontsize=8.5 if horizontal else 7.5,
            color=p.soft,
        )


def _draw_reference(
    axes: Axes, line: ReferenceLine, panel: str, names: Sequence[str], p: Palette, horizontal: bool
) -> None:
    """A level across the panel, or across the groups that have one of their own."""
    level = line.at(panel)
    if level is not None:
        reference(axes, level, line.label, color=p.soft, line=line.line, upright=horizontal)
        return
    places = [(i, line.at(name)) for i, name in enumerate(names)]
    known = [(i, level) for i, level in places if level is not None and np.isfinite(level)]
    if not known:
        return
    draw = axes.vlines if horizontal else axes.hlines
    draw(
        [level for _, level in known],
        [i - 0.46 for i, _ in known],
        [i + 0.46 for i, _ in known],
        color=p.ink,
        linewidth=1.3,
        linestyle=line.line,
        label=line.label,
    )


def _value_axis(axes: Axes, table: pd.DataFrame, top: float | None, horizontal: bool, values: bool) -> None:
    """From 0 (or below, where values are negative) to the top, with room for what is written there."""
    ends = table["mean"] if "high" not in table.columns else table.high.fillna(table["mean"])
    starts = table["mean"] if "low" not in table.columns else table.low.fillna(table["mean"])
    end = max(float(ends.max()), 0.05) if top is None else top
    start = min(0.0, float(starts.min()))
    limits = (1.05 * start, (1.22 if values and horizontal else 1.05) * end)
    (axes.set_xlim if horizontal else axes.set_ylim)(*limits)
    axes.grid(axis="x" if horizontal else "y")


def _group_axis(axes: Axes, ticks: Sequence[str], horizontal: bool) -> None:
    if horizontal:
        axes.set_yticks(range(len(ticks)), ticks)
        axes.set_ylim(len(ticks) - 0.5, -0.5)
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
    else:
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.6, len(ticks) - 0.4)
        axes.tick_params(bottom=False, labelcolor=axes.yaxis.label.get_color())


def _counted(name: str, table: pd.DataFrame) -> str:
    return f"{name}  (n = {int(table.n.max())})" if "n" in table.columns else str(name)
