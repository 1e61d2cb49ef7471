"""Colours and axes all figures share, on light and on dark ground."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as PlainFigure


class Figure(PlainFigure):
    """A figure that shows itself in a notebook, with or without inline plotting switched on."""

    def _repr_png_(self) -> bytes:
        return png(self)


@dataclass(frozen=True)
class Palette:
    """``gate`` and ``image`` mean the same thing in every figure; the two differ in lightness too."""

    ground: str
    ink: str
    soft: str
    grid: str
    gate: str
    image: str
    neutral: str
    faint: str
    third: str


LIGHT = Palette(
    "#ffffff", "#1d2430", "#5b6675", "#e3e7ed", "#d1620f", "#2f6fb5", "#6b7686", "#c3cad4", "#3c8d5a"
)
DARK = Palette(
    "#171b22", "#e8ebf0", "#9aa5b4", "#2b323d", "#f08a3c", "#6aa6e8", "#98a3b3", "#465061", "#6cc08b"
)


def palette(dark: bool) -> Palette:
    """The colours for a ground."""
    return DARK if dark else LIGHT


@contextmanager
def styled(dark: bool) -> Iterator[Palette]:
    """Matplotlib settings for the time of drawing only; the caller's own stay as they were."""
    p = palette(dark)
    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "figure.facecolor": p.ground,
        "axes.facecolor": p.ground,
        "savefig.facecolor": p.ground,
        "axes.edgecolor": p.faint,
        "axes.labelcolor": p.soft,
        "axes.titlecolor": p.ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "axes.axisbelow": True,
        "grid.color": p.grid,
        "text.color": p.ink,
        "xtick.color": p.soft,
        "ytick.color": p.soft,
        "xtick.labelcolor": p.soft,
        "ytick.labelcolor": p.ink,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield p


def integer_layers(axes: Axes, layers: list[int]) -> None:
    """Ticks at whole layers, at most about a dozen."""
    step = max(1, -(-len(layers) // 12))
    axes.set_xticks(layers[::step])
    axes.set_xlabel("layer")


def png(figure: PlainFigure, dpi: int = 160) -> bytes:
    """The figure as PNG bytes (no window, no global state)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return buffer.getvalue()
