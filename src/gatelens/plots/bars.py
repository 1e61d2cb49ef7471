"""Bars with interval whiskers: how every one of them looks, and panels of them from a tidy table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gatelens.errors import DataError
from gatelens.plots.curve import reference
from gatelens.plots.numbers import number
from gatelens.plots.style import (
    NotebookFigure,
    Palette,
    ReferenceLine,
    SeriesStyle,
    legend_below,
    styled,
    wrapped,
)

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
    style: dict[str, Any] = {"fmt": "none", "color": ink, "elinewidth": 1, "capsize": 2}
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
    by: str = "",
    series: Sequence[SeriesStyle] = (),
    panels: str | None = None,
    references: Sequence[ReferenceLine] = (),
    labels: Mapping[str, str] | None = None,
    titles: Mapping[str, str] | None = None,
    title: str = "",
    value_label: str = "",
    top: float | Mapping[str, float] | None = None,
    values: bool = False,
    horizontal: bool = True,
    dark: bool = False,
) -> NotebookFigure:
    """Panels of bars from a tidy table: one bar a group, or several side by side.

    Args:
        table: columns ``groups``, ``mean`` and, where known, ``low``, ``high`` and ``n``.
        groups: column whose values are along the axis, in their order in the table.
        colors: for one bar a group, its colour in :class:`~gatelens.plots.style.Palette` by group; others are faint.
        by: for several bars a group, the column whose values are the keys of ``series``.
        series: the bars of a group, in order.
        panels: column whose values make panels side by side, in their order in the table.
        references: levels drawn across a panel, or across a group where its keys are groups.
        labels: what a group is called on the axis.
        titles: what a panel is called; without, its value and the number of examples.
        title: over a single panel.
        value_label: at the axis of values.
        top: where the axis of values ends, for all panels or by panel; without, at the largest value.
        values: write the mean next to each bar.
        horizontal: the values run along x.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no rows.
    """
    if table.empty:
        raise DataError("bars: the table has no rows to draw")
    names, each = list(table[groups].unique()), list(table[panels].unique()) if panels else [""]
    with styled(dark) as p:
        size = _size(len(names), len(each), len(series), horizontal)
        figure = NotebookFigure(figsize=size, layout="constrained")
        grid = figure.subplots(1, len(each), sharey=horizontal, squeeze=False)[0]
        for axes, name in zip(grid, each, strict=True):
            part = table[table[panels] == name] if panels else table
            panel = _Panel(axes, names, p, horizontal)
            panel.draw(part.set_index(groups), by, series, colors or {}, values)
            for line in references:
                panel.reference(line, name)
            panel.value_axis(part, top.get(name) if isinstance(top, Mapping) else top, value_label, values)
            panel.group_axis(labels or {})
            heading = title or (titles or {}).get(name) or _counted(name, part)
            axes.set_title(wrapped(heading, 0.8 * size[0] / len(each)))
        legend_below(figure, [style.name for style in series])
    return figure


@dataclass(frozen=True)
class _Panel:
    """One panel of bars: where it is drawn, its groups, its colours and the direction of its bars."""

    axes: Axes
    names: Sequence[str]
    palette: Palette
    horizontal: bool

    def draw(
        self,
        table: pd.DataFrame,
        by: str,
        series: Sequence[SeriesStyle],
        colors: Mapping[str, str],
        values: bool,
    ) -> None:
        """The bars of all groups; the table's index tells the group."""
        if not series:
            each = [self.palette.color(colors.get(name, "faint")) for name in self.names]
            self._draw(table, each, "", 0.0, ROOM, values)
        width = ROOM / max(1, len(series))
        for i, style in enumerate(series):
            shift = (i - (len(series) - 1) / 2) * width
            color = self.palette.color(style.color)
            self._draw(table[table[by] == style.key], color, style.name, shift, width, values)

    def _draw(
        self,
        table: pd.DataFrame,
        color: str | Sequence[str],
        label: str,
        shift: float,
        width: float,
        values: bool,
    ) -> None:
        """One bar in every group, next to the middle of its group."""
        one = table.reindex(self.names)
        places = np.arange(len(self.names)) + shift
        low, high = (one.low, one.high) if {"low", "high"} <= set(one.columns) else (None, None)
        interval_bars(
            self.axes,
            places,
            one["mean"],
            low,
            high,
            color=color,
            ink=self.palette.ink,
            label=label,
            width=0.9 * width,
            horizontal=self.horizontal,
        )
        if values:
            self._write(places, one["mean"], one["mean"] if high is None else high)

    def _write(self, places: np.ndarray, mean: pd.Series, ends: pd.Series) -> None:
        """The means, beyond the ends of the whiskers."""
        for place, value, end in zip(places, mean, ends, strict=True):
            if np.isfinite(value):
                self.axes.annotate(
                    number(value),
                    (end, place) if self.horizontal else (place, end),
                    xytext=(4, 0) if self.horizontal else (0, 3),
                    textcoords="offset points",
                    ha="left" if self.horizontal else "center",
                    va="center" if self.horizontal else "bottom",
                    fontsize=8,
                    color=self.palette.soft,
                    # no line runs through the figures
                    bbox={"facecolor": self.palette.ground, "edgecolor": "none", "pad": 0.6},
                )

    def reference(self, line: ReferenceLine, panel: str) -> None:
        """A level across the panel, or across each group that has one of its own."""
        level = line.at(panel)
        if level is not None:
            color = self.palette.soft
            reference(self.axes, level, line.label, color=color, line=line.line, upright=self.horizontal)
            return
        levels = [(i, line.at(name)) for i, name in enumerate(self.names)]
        known = [(i, level) for i, level in levels if level is not None and np.isfinite(level)]
        if known:
            draw = self.axes.vlines if self.horizontal else self.axes.hlines
            draw(
                [level for _, level in known],
                [i - 0.46 for i, _ in known],
                [i + 0.46 for i, _ in known],
                color=self.palette.ink,
                linewidth=1.3,
                linestyle=line.line,
                label=line.label,
            )

    def value_axis(self, table: pd.DataFrame, top: float | None, label: str, values: bool) -> None:
        """From 0, or below where values are negative, to the top, with room for what is written there."""
        columns = table[[name for name in ("mean", "low", "high") if name in table.columns]]
        end = max(float(columns.max().max()), 0.05) if top is None else top
        start = min(0.0, float(columns.min().min()))
        limits = (1.05 * start, (1.22 if values and self.horizontal else 1.05) * end)
        if self.horizontal:
            self.axes.set(xlim=limits, xlabel=label)
        else:
            self.axes.set(ylim=limits, ylabel=label)
        self.axes.grid(axis="x" if self.horizontal else "y")

    def group_axis(self, labels: Mapping[str, str]) -> None:
        """The names of the groups; horizontal bars run from the top down."""
        ticks = [labels.get(name, str(name)) for name in self.names]
        if self.horizontal:
            self.axes.set_yticks(range(len(ticks)), ticks)
            self.axes.set_ylim(len(ticks) - 0.5, -0.5)
            self.axes.spines["left"].set_visible(False)
        else:
            self.axes.set_xticks(range(len(ticks)), ticks)
            self.axes.set_xlim(-0.6, len(ticks) - 0.4)
        self.axes.tick_params(left=not self.horizontal, bottom=self.horizontal)


def _size(n_groups: int, n_panels: int, n_series: int, horizontal: bool) -> tuple[float, float]:
    """Inches for a number of bars; more than ten would make the writing small on a page."""
    if not horizontal:
        return min(10.0, max(5.5, 1.45 * n_groups * n_panels + 0.8)), 3.9
    height = (0.42 if n_series == 0 else 0.1 + 0.22 * n_series) * n_groups + 1.0
    return min(10.0, max(5.5, 2.9 * n_panels + 1.5)), height


def _counted(name: str, table: pd.DataFrame) -> str:
    return f"{name}  (n = {int(table.n.max())})" if name and "n" in table.columns else str(name)
