"""The common style: colours, fonts and axes that all figures and pages share, on light and dark backgrounds.

A page holds each figure once, as SVG whose colours are CSS variables (:func:`inline_svg`, :func:`theme_css`): it
follows the reader's light or dark ground. The three colours that carry meaning are told apart by colour-blind readers.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

DPI = 160  # of saved figures
PAGE_DPI = 98  # CSS pixels of an inch of a figure
FONTS = "'DejaVu Sans', Verdana, sans-serif"  # of one width, so that text keeps the room it was given


class NotebookFigure(Figure):
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

    def color(self, name: str) -> str:
        """A colour by its name.

        Raises:
            ValueError: no colour of that name.
        """
        if name not in self.__dataclass_fields__:
            raise ValueError(f"no colour {name!r}; the palette has {', '.join(self.__dataclass_fields__)}")
        return str(getattr(self, name))


# gate, image and third are vermilion, blue and bluish green after Okabe and Ito (2008), the green darker so that
# lightness differs too. No two colours of LIGHT are the same: a page finds them in a figure by their values.
LIGHT = Palette(
    "#ffffff", "#1d2430", "#5b6675", "#e3e7ed", "#d15a00", "#0072b2", "#6b7686", "#c3cad4", "#006b4e"
)
DARK = Palette(
    "#171b22", "#e8ebf0", "#9aa5b4", "#2b323d", "#f5862e", "#56b4e9", "#98a3b3", "#465061", "#1f9d70"
)


@dataclass(frozen=True)
class SeriesStyle:
    """Which rows of a table are one curve, or one colour of bars, and how they look.

    Attributes:
        key: the value these rows have in the column that tells the series apart.
        label: name in the legend; empty means ``key``.
        color: a colour of :class:`Palette`, by name.
        line: Matplotlib line style.
        marker: Matplotlib marker; empty draws none.
        band: whether a curve shows its interval.
    """

    key: str
    label: str = ""
    color: str = "ink"
    line: str = "-"
    marker: str = "o"
    band: bool = True

    @property
    def name(self) -> str:
        """What the legend says."""
        return self.label or self.key


@dataclass(frozen=True)
class ReferenceLine:
    """A level to compare with, such as chance or the unmodified model.

    Attributes:
        level: one level for all panels, or a level for each panel, by the value of its row or column.
            In :func:`gatelens.plots.bars.bars` the keys can also be groups of bars.
        label: name in the legend; empty leaves it out.
        line: Matplotlib line style.
    """

    level: float | Mapping[str, float]
    label: str = ""
    line: str | tuple[int, tuple[float, ...]] = ":"

    def at(self, *panel: str) -> float | None:
        """The level in a panel that has these row and column values; None where there is none."""
        if not isinstance(self.level, Mapping):
            return float(self.level)
        levels = [float(self.level[value]) for value in panel if value in self.level]
        return levels[0] if levels else None


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
        "legend.fontsize": 8.5,
        "legend.labelcolor": p.ink,
    }
    with mpl.rc_context(settings):
        yield p


def wrapped(title: str, inches: float) -> str:
    """A title broken into lines that fit over a panel this wide."""
    characters = max(10, int(inches / 0.095))
    return "\n".join(textwrap.fill(line, characters) for line in title.split("\n"))


def legend_below(figure: Figure, first: Sequence[str] = ()) -> None:
    """One legend under all panels, each label once, as many side by side as fit.

    Args:
        figure: has its panels and all they show.
        first: labels that lead, in order; the others follow as they were drawn.
    """
    drawn: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            drawn.setdefault(label, handle)
    if not drawn:
        return
    leading = [label for label in first if label in drawn]
    handles = {label: drawn[label] for label in [*leading, *drawn]}
    entry = 0.6 + 0.075 * max(map(len, handles))  # inches of the longest label with its handle
    columns = max(1, int(figure.get_figwidth() / entry))
    lines = -(-len(handles) // columns)
    columns = -(-len(handles) // lines)  # lines of even length
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def see_through(color: str) -> Colormap:
    """A scale from nothing to a colour: the ground shows through small values; missing ones stay empty."""
    red, green, blue, _ = to_rgba(color)
    colors = LinearSegmentedColormap.from_list(
        "see-through", [(red, green, blue, 0.0), (red, green, blue, 1.0)]
    )
    return colors.with_extremes(bad=(0, 0, 0, 0))


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as PNG bytes (no window, no global state)."""
    return saved(figure, "png", dpi)


def saved(figure: Figure, kind: str, dpi: int = DPI) -> bytes:
    """The figure as a file: ``png``, or ``svg`` or ``pdf`` with text that stays text.

    The same figure gives the same bytes.
    """
    buffer = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gatelens", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=kind, dpi=dpi, facecolor=figure.get_facecolor(), metadata=undated)
    return buffer.getvalue()


def inline_svg(svg: bytes, name: str) -> Markup:
    """A figure on light ground, saved as SVG, as part of a page.

    Its colours become the variables of :func:`theme_css`; its ids begin with ``name``, so that figures of one page
    do not share any.
    """
    text = svg.decode()
    head = re.search(r'<svg [^>]*width="([\d.]+)pt"[^>]*viewBox="([^"]+)"[^>]*>', text)
    if head is None:
        raise ValueError(f"figure {name!r} is not an SVG of Matplotlib")
    body = text[text.index("<g id=") : text.rindex("</svg>")]
    for role, value in asdict(LIGHT).items():
        body = body.replace(value, f"var(--{role})")
    body = body.replace("font-family: 'DejaVu Sans'", f"font-family: {FONTS}").replace("xlink:href", "href")
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    width, label = round(float(head[1]) / 72 * PAGE_DPI), name.replace("_", " ")
    return Markup(
        f'<svg role="img" aria-label="figure: {label}" viewBox="{head[2]}" style="width:{width}px">{body}</svg>'
    )


def theme_css() -> str:
    """Every colour of the palette as a CSS variable, for light and for dark ground; print is light."""

    def rules(colors: Palette) -> str:
        return ":root{" + ";".join(f"--{role}:{value}" for role, value in asdict(colors).items()) + "}"

    return f"{rules(LIGHT)}\n@media screen and (prefers-color-scheme:dark){{{rules(DARK)}}}\n"
