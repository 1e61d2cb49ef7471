"""Heat maps of a tidy table, values written into the cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap

from gatelens.errors import DataError
from gatelens.plots.numbers import number
from gatelens.plots.style import NotebookFigure, Palette, styled

MOST_WRITTEN = 400  # cells; with more, the colours alone are legible


def ramp(palette: Palette, color: str) -> Colormap:
    """Colours from the ground to a colour of the palette; missing values get the colour of grid lines."""
    ends = [palette.ground, palette.color(color)]
    return LinearSegmentedColormap.from_list(color, ends).with_extremes(bad=palette.grid)


def heat_map(
    table: pd.DataFrame,
    *,
    rows: str,
    columns: str,
    value: str = "mean",
    count: str | None = None,
    row_order: Sequence[str] | None = None,
    column_order: Sequence[str] | None = None,
    color: str = "gate",
    limits: tuple[float, float] = (0.0, 1.0),
    row_label: str = "",
    column_label: str = "",
    bar_label: str = "",
    title: str = "",
    digits: int = 2,
    dark: bool = False,
) -> NotebookFigure:
    """A cell for every pair of a row and a column; pairs that the table lacks stay empty.

    Args:
        table: columns ``rows``, ``columns``, ``value`` and ``count``, one row a cell.
        rows, columns: columns whose values are the map's rows and columns.
        value: column that gives the colour and the number in the cell.
        count: column of the number of examples, written under the value; None writes none.
        row_order, column_order: what is shown and in which order; None is all, sorted.
        color: of the largest value, in :class:`~gatelens.plots.style.Palette`.
        limits: the values at the two ends of the scale.
        row_label, column_label: beside the axes.
        bar_label: beside the scale.
        title: over the map.
        digits: of the values.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no rows.
    """
    if table.empty:
        raise DataError("heat_map: the table has no rows to draw")
    down = list(row_order) if row_order is not None else sorted(table[rows].unique())
    across = list(column_order) if column_order is not None else sorted(table[columns].unique())
    cells = table.pivot(index=rows, columns=columns).reindex(index=down)
    shown = cells[value].reindex(columns=across).to_numpy(dtype=float)
    counts = None if count is None else cells[count].reindex(columns=across).to_numpy(dtype=float)
    with styled(dark) as p:
        each = 0.46 if counts is None else 0.58
        size = (max(5.0, 2.6 + 0.62 * len(across)), 1.9 + each * len(down))
        figure = NotebookFigure(figsize=size, layout="constrained")
        axes = figure.subplots()
        masked = np.ma.masked_invalid(shown)
        drawn = axes.imshow(masked, cmap=ramp(p, color), vmin=limits[0], vmax=limits[1], aspect="auto")
        if shown.size <= MOST_WRITTEN:
            _write(axes, shown, counts, limits, digits, p)
        long = any(len(str(name)) > 4 for name in across)
        axes.set_xticks(
            range(len(across)),
            [str(x) for x in across],
            rotation=35 if long else 0,
            ha="right" if long else "center",
        )
        axes.set_yticks(range(len(down)), [str(x) for x in down])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(column_label)
        axes.set_ylabel(row_label)
        axes.set_title(title)
        scale = figure.colorbar(drawn, ax=axes, shrink=0.8, label=bar_label)
        scale.outline.set_visible(False)
    return figure


def _write(
    axes: Axes,
    values: np.ndarray,
    counts: np.ndarray | None,
    limits: tuple[float, float],
    digits: int,
    p: Palette,
) -> None:
    """The numbers, in a colour that is legible on the cell's own."""
    low, high = limits
    for i, j in np.argwhere(np.isfinite(values)):
        value = float(values[i, j])
        strong = (value - low) / (high - low) > 0.55
        text = number(value, digits)
        if counts is not None and np.isfinite(counts[i, j]):
            text += f"\nn = {int(counts[i, j])}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color=p.ground if strong else p.ink)
