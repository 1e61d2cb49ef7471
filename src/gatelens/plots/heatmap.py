"""Heat maps of a tidy table, values written into the cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgba

from gatelens.errors import DataError
from gatelens.plots.numbers import number
from gatelens.plots.style import NotebookFigure, Palette, see_through, styled

MOST_WRITTEN = 400  # cells; with more, the colours alone are legible


def ramp(palette: Palette, *colors: str) -> Colormap:
    """A scale from the ground through colours of the palette; missing values get the colour of grid lines."""
    stops = [palette.ground, *map(palette.color, colors)]
    return LinearSegmentedColormap.from_list("ramp", stops).with_extremes(bad=palette.grid)


def heat_map(
    table: pd.DataFrame,
    *,
    rows: str,
    columns: str,
    count: str | None = None,
    color: str = "gate",
    limits: tuple[float, float] = (0.0, 1.0),
    row_label: str = "",
    column_label: str = "",
    title: str = "",
    dark: bool = False,
) -> NotebookFigure:
    """A cell for every pair of a row and a column, both sorted; pairs that the table lacks stay empty.

    Args:
        table: columns ``rows``, ``columns``, ``mean`` and ``count``, one row per cell.
        rows, columns: columns whose values are the map's rows and columns.
        count: column of the number of examples, written under the mean; None writes none.
        color: of the largest value, in :class:`~gatelens.plots.style.Palette`.
        limits: the values at the two ends of the scale.
        row_label, column_label: at the axes.
        title: over the map.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no rows.
    """
    if table.empty:
        raise DataError("heat_map: the table has no rows to draw")
    means = table.pivot(index=rows, columns=columns, values="mean").sort_index().sort_index(axis=1)
    down, across = means.shape
    with styled(dark) as p:
        size = (max(5.0, 2.6 + 0.62 * across), 1.9 + (0.58 if count else 0.46) * down)
        figure = NotebookFigure(figsize=size, layout="constrained")
        axes = figure.subplots()
        colors, scale = see_through(p.color(color)), Normalize(*limits)
        values = np.ma.masked_invalid(means.to_numpy(dtype=float))
        drawn = axes.imshow(values, cmap=colors, norm=scale, aspect="auto")
        if means.size <= MOST_WRITTEN:
            counts = None if count is None else table.set_index([rows, columns])[count]
            _write(axes, means, counts, lambda value: colors(float(scale(value))), p)
        names = [str(name) for name in means.columns]
        turn, side = (35, "right") if any(len(name) > 4 for name in names) else (0, "center")
        axes.set_xticks(range(across), names, rotation=turn, ha=side)
        axes.set_yticks(range(down), [str(name) for name in means.index])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel=column_label, ylabel=row_label, title=title)
        figure.colorbar(drawn, ax=axes, shrink=0.8).outline.set_visible(False)
    return figure


def _write(
    axes: Axes,
    means: pd.DataFrame,
    counts: pd.Series | None,
    color_of: Callable[[float], Sequence[float]],
    palette: Palette,
) -> None:
    """The numbers, in the one of two colours that stands out more from the cell's own."""
    for i, row in enumerate(means.index):
        for j, column in enumerate(means.columns):
            value = means.iloc[i, j]
            if not np.isfinite(value):
                continue
            cell = lightness(_over(color_of(value), palette.ground))
            distance = {ink: abs(lightness(to_rgba(ink)) - cell) for ink in (palette.ink, palette.ground)}
            ink = max(distance, key=distance.__getitem__)
            text = number(value) if counts is None else f"{number(value)}\nn = {int(counts[row, column])}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=ink)


def _over(color: Sequence[float], ground: str) -> list[float]:
    """What a colour with opacity looks like on a ground."""
    red, green, blue, opacity = color
    parts = zip((red, green, blue), to_rgba(ground)[:3], strict=True)
    return [opacity * part + (1 - opacity) * under for part, under in parts]


def lightness(color: Sequence[float]) -> float:
    """How light an RGBA colour looks, from 0 to 1."""
    red, green, blue = color[:3]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
