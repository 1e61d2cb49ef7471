"""Numbers with names as colours: in a grid of cells, and over the picture whose tokens they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import SubFigure
from matplotlib.textpath import TextPath
from PIL.Image import Image

from gatelens.plots.heatmap import MOST_WRITTEN, lightness
from gatelens.plots.numbers import number
from gatelens.plots.overlay import (
    HEAT,
    draw_outline,
    fill_boxes,
    heat_colors,
    opacity,
    outlined,
    show_picture,
    write_on,
)
from gatelens.plots.style import NotebookFigure, Palette, styled, wrapped

MOST_TICKS = 32
CELL = 0.5  # inches of a cell with a number; a word needs more
WIDEST, HIGHEST = 13.0, 9.0
EDGE = 0.0417  # inches around a figure, where constrained layout begins
PANEL = 2.5  # inches of a picture; less where a row of them would be too wide
IN_A_ROW = 9  # pictures
PANEL_OF_WORDS, WORDS_IN_A_ROW = 3.3, 4  # a word stands in every token
SMALLEST = 4.0  # points of a word; a longer one is cut
EM = 0.62  # width of most characters in their size
FILLED = 0.84  # of a token by its word: small letters on a screen are up to a seventh wider than in print
FEWEST = 4  # characters of a token's box: words of less are unreadable
FAR_OUT = 3.0  # interquartile ranges below the lower quartile, Tukey's outer fence


@dataclass(frozen=True, eq=False)
class Grid:
    """Values of named rows and columns.

    Attributes:
        text: what is written in each cell; None writes the numbers where there is room.
    """

    values: Float[np.ndarray, "row column"]
    rows: Sequence[str]
    columns: Sequence[str]
    row_label: str = ""
    column_label: str = ""
    text: Sequence[Sequence[str]] | None = None
    title: str = ""

    @property
    def inches(self) -> tuple[float, float]:
        longest = max((len(word) for row in self.text or () for word in row), default=0)
        names = max(
            1.9, 1.2 + 0.085 * max(map(len, self.rows), default=0)
        )  # beside the cells: rows and scale
        across = min(WIDEST, names + len(self.columns) * max(CELL, 0.085 * longest + 0.15))
        return max(3.2, across), min(HIGHEST, 1.5 + 0.34 * len(self.rows))


@dataclass(frozen=True, eq=False)
class ScaledGrid:
    """A grid with its scale of colours: ``unit`` is written next to it; ``signed`` scales are symmetric about 0.

    ``limits`` are the ends of the scale, for comparable grids; None takes them from the grid.
    """

    grid: Grid
    unit: str
    signed: bool
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class PicturePanels:
    """Values of a picture's tokens, a panel each.

    Attributes:
        boxes: of the tokens, in pixels of the picture (x0, y0, x1, y1).
        panels: by title, one value per token.
        texts: by the same titles, a word for each token, written as large as its box allows. None is written where
            the median box has no room for ``FEWEST`` characters, and the figure says so.
    """

    picture: Image
    boxes: Float[np.ndarray, "token 4"]
    panels: Mapping[str, Float[np.ndarray, " token"]]
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def worded(self) -> bool:
        """Whether words are written: there are some, and boxes have room for them."""
        wide = float(np.median(self.boxes[:, 2] - self.boxes[:, 0])) / self.picture.width
        return bool(self.texts) and PANEL_OF_WORDS * 72 * wide >= FEWEST * EM * SMALLEST


@dataclass(frozen=True, eq=False)
class Bars:
    """A value of each name, with the ends of its interval where it has one; ``label`` says what the names are."""

    names: Sequence[str]
    values: Float[np.ndarray, " name"]
    title: str = ""
    low: Float[np.ndarray, " name"] | None = None
    high: Float[np.ndarray, " name"] | None = None
    label: str = ""


def value_figure(
    *,
    unit: str,
    signed: bool,
    title: str = "",
    panels: PicturePanels | None = None,
    grid: Grid | None = None,
    bars: Bars | None = None,
    dark: bool = False,
) -> NotebookFigure:
    """What of panels over a picture, bars and a grid of cells is given; cells and pictures on one scale of colours.

    Args:
        unit: what a value is, next to the scale, which is shown once.
        signed: the scale is symmetric about 0: blue below, orange above.
        panels, bars: side by side.
        grid: below them.
        title: over all.
        dark: draw on dark ground.
    """
    with styled(dark) as p:
        sizes = [(_panels_width(panels, bars), _panels_height(panels, bars))] if panels or bars else []
        sizes += [] if grid is None else [grid.inches]
        across = max(width for width, _ in sizes)
        if panels and panels.texts and not panels.worded:
            title = f"{title} (tokens are too small for their words)".strip()
        heading = wrapped(title, across) if title else ""
        gap = 0.2 if heading and (panels or bars) else 0.0
        down = sum(height for _, height in sizes) + 0.22 * (heading.count("\n") + 1 if heading else 0) + gap
        figure = NotebookFigure(figsize=(across, down), layout="constrained")
        if heading:
            figure.set_layout_engine(
                "constrained", rect=(0, 0, 1, 1 - gap / down)
            )  # titles of panels stand apart
            figure.suptitle(
                heading, x=EDGE / across, ha="left", fontsize=10.5, fontweight="bold", color=p.ink
            )
        scale = _Scale(_all_values(panels, grid), signed, p)
        ratios = [high for _, high in sizes]
        stripes = list(figure.subfigures(len(sizes), 1, squeeze=False, height_ratios=ratios)[:, 0])
        # what is narrower than the figure keeps its own width
        stripes = [
            one if wide > 0.95 * across else one.subfigures(1, 2, width_ratios=[wide, across - wide])[0]
            for one, (wide, _) in zip(stripes, sizes, strict=True)
        ]
        if panels or bars:
            _upper(stripes.pop(0), panels, bars, scale, unit, p)
        if grid is not None:
            _draw_grid(stripes[0], grid, scale, "" if panels else unit, p)
    return figure


def scaled_grids(
    grids: Sequence[ScaledGrid], title: str = "", dark: bool = False, in_a_row: int = 3
) -> NotebookFigure:
    """Grids side by side."""
    with styled(dark) as p:
        across = min(in_a_row, len(grids))
        down = -(-len(grids) // across)
        wide, high = (max(sizes) for sizes in zip(*(one.grid.inches for one in grids), strict=True))
        wide = min(wide, (WIDEST + 3) / across)
        heading = wrapped(title, wide * across) if title else ""
        above = 0.22 * (heading.count("\n") + 1 if heading else 0)
        figure = NotebookFigure(figsize=(wide * across, high * down + above), layout="constrained")
        if heading:
            title_at = EDGE / (wide * across)
            figure.suptitle(heading, x=title_at, ha="left", fontsize=10.5, fontweight="bold", color=p.ink)
        places = figure.subfigures(down, across, squeeze=False).flat
        for place, one in zip(places, grids, strict=False):
            values = np.asarray(one.limits or one.grid.values, dtype=float).ravel()
            _draw_grid(place, one.grid, _Scale(values[np.isfinite(values)], one.signed, p), one.unit, p)
    return figure


def _all_values(panels: PicturePanels | None, grid: Grid | None) -> np.ndarray:
    every = [np.asarray(values, dtype=float).ravel() for values in (panels.panels.values() if panels else ())]
    if grid is not None:
        every.append(np.asarray(grid.values, dtype=float).ravel())
    joined = np.concatenate(every) if every else np.zeros(1)
    joined = joined[np.isfinite(joined)]
    return joined if len(joined) else np.zeros(1)


class _Scale:
    """From values to colours, the same everywhere in a figure."""

    def __init__(self, values: np.ndarray, signed: bool, p: Palette) -> None:
        low, high = float(values.min()), float(values.max())
        self.lowest = low
        colors: Colormap
        if signed:
            high = max(abs(low), abs(high)) or 1.0
            low, self.clipped = -high, False
            colors = LinearSegmentedColormap.from_list("signed", [p.image, p.ground, p.gate])
        else:
            fence = lower_fence(values)
            self.clipped = low < fence
            low = float(values[values >= fence].min())
            high = high if high > low else low + 1
            colors = heat_colors(p)
        self.colors = colors.with_extremes(bad=p.grid)
        self.norm, self.high, self.signed, self.p = Normalize(low, high), high, signed, p

    def of(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n rgba"]:
        return np.asarray(self.colors(np.asarray(self.norm(values))))

    def over_picture(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n rgba"]:
        """One colour, or two where values are signed, that hide the picture the less the nearer a value is to the
        middle of a signed scale or the lower end of another; none where there is no number."""
        place = np.nan_to_num(np.asarray(self.norm(values), dtype=float), nan=0.5 if self.signed else 0.0)
        if not self.signed:
            return np.column_stack([np.tile(np.array(HEAT) / 255, (len(place), 1)), opacity(place, 1.0)])
        ends = np.array([to_rgba(self.p.image)[:3], to_rgba(self.p.gate)[:3]])
        return np.column_stack([ends[(place > 0.5).astype(int)], opacity(np.abs(2 * place - 1), 1.0)])

    def bar(self, figure: SubFigure, axes: Sequence[Axes], unit: str, p: Palette) -> None:
        bar = figure.colorbar(
            ScalarMappable(self.norm, self.colors),
            ax=list(axes),
            shrink=0.85,
            pad=0.02,
            aspect=25,
            extend="min" if self.clipped else "neither",
        )
        bar.set_label(f"{unit}, down to {number(self.lowest)}" if self.clipped else unit, color=p.soft)
        bar.outline.set_visible(self.clipped)  # else its arrow, as pale as the ground, would not be seen
        bar.outline.set(edgecolor=p.faint, linewidth=0.8)


def lower_fence(values: Float[np.ndarray, " n"]) -> float:
    """Where values are so far below the rest that the rest would all look the same: the scale begins above them.

    Only at this end: what stands out at the upper one is what a map is drawn to show.
    """
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low - FAR_OUT * (high - low)) if high > low else -np.inf


def _layout(panels: PicturePanels) -> tuple[int, int, float]:
    """Rows and columns of pictures, the one without values among them, and the inches of each."""
    n = 1 + len(panels.panels)
    most, inches = (WORDS_IN_A_ROW, PANEL_OF_WORDS) if panels.worded else (IN_A_ROW, PANEL)
    columns = min(n, most)
    return -(-n // columns), columns, min(inches, (WIDEST + 1) / columns)


def _panels_width(panels: PicturePanels | None, bars: Bars | None) -> float:
    across = 0.0
    if panels is not None:
        _, columns, inches = _layout(panels)
        across = inches * columns + 0.9
    return across + ((3.6 if panels else 4.6) if bars else 0.0)


def _panels_height(panels: PicturePanels | None, bars: Bars | None) -> float:
    high = 0.0 if bars is None else 0.9 + 0.26 * len(bars.names)
    if panels is None:
        return high
    rows, _, inches = _layout(panels)
    return max(high, rows * (inches * panels.picture.height / panels.picture.width + 0.3) + 0.3)


def _upper(
    figure: SubFigure,
    panels: PicturePanels | None,
    bars: Bars | None,
    scale: _Scale,
    unit: str,
    p: Palette,
) -> None:
    rows, columns, inches = (1, 0, 0.0) if panels is None else _layout(panels)
    apart = [0.12] if panels and bars else []  # keeps the label of the scale off the names of the bars
    ratios = [1.0] * columns + apart + ([1.3] if bars else [])
    places = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
    if panels is not None:
        n = 1 + len(panels.panels)
        axes = [figure.add_subplot(places[i // columns, i % columns]) for i in range(n)]
        _draw_panels(axes, panels, scale, inches)
        scale.bar(figure, axes, wrapped(unit, _panels_height(panels, None)), p)
    if bars is not None:
        _draw_bars(figure.add_subplot(places[:, -1]), bars, unit, p)


def _draw_panels(axes: Sequence[Axes], panels: PicturePanels, scale: _Scale, inches: float) -> None:
    show_picture(axes[0], panels.picture)
    axes[0].set_title("picture")
    for one, (name, values) in zip(axes[1:], panels.panels.items(), strict=True):
        show_picture(one, panels.picture, grey=True)
        one.set_title(name)
        values = np.asarray(values, dtype=float)
        fill_boxes(one, panels.boxes, scale.over_picture(values))
        if scale.signed:
            draw_outline(one, panels.boxes[outlined(np.abs(np.nan_to_num(values)), scale.high)])
        words = panels.texts[name] if panels.worded and name in panels.texts else [""] * len(values)
        for (x0, y0, x1, y1), word in zip(panels.boxes, words, strict=True):
            shown, size = fitted(word, inches * 72 * (x1 - x0) / panels.picture.width)
            write_on(one, (x0 + x1) / 2, (y0 + y1) / 2, shown, size)


def fitted(word: str, room: float) -> tuple[str, float]:
    """A word and its size in points, so that it fits into ``room`` points: smaller, then cut with an ellipsis."""
    room *= FILLED
    size = min(9.0, room / max(EM, _ems(word)))
    if size >= SMALLEST:
        return word, size
    kept = next((n for n in range(len(word) - 1, 1, -1) if _ems(f"{word[:n]}…") * SMALLEST <= room), 1)
    return f"{word[:kept]}…", SMALLEST


@lru_cache(maxsize=4096)
def _ems(word: str) -> float:
    """How wide a word is drawn, in multiples of its size."""
    return float(TextPath((0, 0), word, size=100).get_extents().width) / 100 if word.strip() else 0.0


def _draw_bars(axes: Axes, bars: Bars, unit: str, p: Palette) -> None:
    places = np.arange(len(bars.names))
    values = np.asarray(bars.values, dtype=float)
    axes.barh(places, values, 0.7, color=[p.gate if value >= 0 else p.image for value in values])
    axes.axvline(0, color=p.faint, linewidth=0.8)
    axes.set_yticks(places, list(bars.names))
    axes.set_ylim(len(bars.names) - 0.4, -0.6)
    lows, highs = (values if end is None else np.asarray(end, dtype=float) for end in (bars.low, bars.high))
    if bars.low is not None:
        axes.hlines(places, lows, highs, color=p.ink, linewidth=1.2)
    low, high = min(0.0, float(np.nanmin(lows))), max(0.0, float(np.nanmax(highs)))
    room = 0.22 * ((high - low) or 1)
    # the number stands beyond the bar and its interval; what is too short to be seen counts as positive
    below = values < -0.02 * (high - low)
    ends = np.where(below, np.fmin(values, lows), np.fmax(values, highs))
    axes.set_xlim(low - room * below.any(), high + room * (high > 0))
    for place, value, end, is_below in zip(places, values, ends, below, strict=True):
        side = ("right", -3) if is_below else ("left", 3)
        axes.annotate(
            number(value),
            (end, place),
            xytext=(side[1], 0),
            textcoords="offset points",
            ha=side[0],
            va="center",
            fontsize=8,
            color=p.soft,
        )
    axes.tick_params(left=False, bottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set(xlabel=unit, ylabel=bars.label, title=bars.title)
    axes.grid(axis="x")


def _draw_grid(figure: SubFigure, grid: Grid, scale: _Scale, unit: str, p: Palette) -> None:
    axes = figure.subplots()
    values = np.ma.masked_invalid(np.asarray(grid.values, dtype=float))
    axes.imshow(values, cmap=scale.colors, norm=scale.norm, aspect="auto", interpolation="nearest")
    for names, place, turned in ((grid.columns, axes.set_xticks, True), (grid.rows, axes.set_yticks, False)):
        step = -(-len(names) // MOST_TICKS)
        style: dict[str, Any] = {"rotation": 40, "ha": "right"} if turned and max(map(len, names)) > 4 else {}
        place(range(0, len(names), step), list(names)[::step], **style)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=grid.column_label, ylabel=grid.row_label, title=grid.title)
    if grid.text is not None or values.size <= MOST_WRITTEN:
        room = grid.inches[0] * 60 / max(1, len(grid.columns))  # points of a cell
        colors = scale.of(values.filled(np.nan).ravel()).reshape(*values.shape, 4)
        for i, j in np.ndindex(values.shape):
            value = float(values.filled(np.nan)[i, j])
            word = grid.text[i][j] if grid.text is not None else number(value) if np.isfinite(value) else ""
            size = min(8, 1.6 * room / max(4, len(word)))
            axes.text(j, i, word, ha="center", va="center", fontsize=size, color=_ink(colors[i, j], p))
    if unit:
        scale.bar(figure, [axes], wrapped(unit, grid.inches[1]), p)


def _ink(color: Sequence[float] | np.ndarray, p: Palette) -> str:
    """The one of the palette's two inks that stands out more from a colour."""
    return max((p.ink, p.ground), key=lambda ink: abs(lightness(to_rgba(ink)) - lightness(tuple(color))))
