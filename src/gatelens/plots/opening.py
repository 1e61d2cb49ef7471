"""What a report opens with: by which path the picture reaches the text, and what is left when a path is cut.

Both are drawn by a template, as SVG and HTML of the page itself: the words stay legible on a narrow screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from gatelens.plots.numbers import number, percent, span

THINNEST, WIDEST = 1.5, 26.0  # of a path, in units of the drawing


@dataclass(frozen=True)
class Path:
    """One way from the picture to the text.

    Attributes:
        name: what is cut, such as ``image → text``.
        shares: of what the picture is worth, what is lost when it is cut; one per task.
        tone: ``gate`` or ``image``.
    """

    name: str
    shares: Sequence[float]
    tone: str

    @property
    def share(self) -> float:
        """The mean share, none below nothing and none above all."""
        within = [min(1.0, max(0.0, share)) for share in self.shares]
        return sum(within) / len(within) if within else float("nan")

    @property
    def said(self) -> str:
        """``0 to 1 %``: the shares of all tasks; ``100 %`` of those that are more than all."""
        if not self.shares:
            return "n/a"
        low, high = (percent(min(1.0, max(0.0, edge(self.shares)))) for edge in (min, max))
        return high if low == high else f"{low.split(chr(0xA0))[0]} to {high}"

    @property
    def width(self) -> float:
        """Of the band."""
        return THINNEST + (WIDEST - THINNEST) * (self.share if self.shares else 0.0)

    @property
    def is_thin(self) -> bool:
        """Whether next to nothing passes, or nothing is known."""
        return not self.share >= 0.05


@dataclass(frozen=True)
class Diagram:
    """Picture, way station and text, with a path through the station and one past it.

    Attributes:
        through, direct: the two paths.
        start, station, end: what stands under the picture, in the station and in the text's box; each ``(name, small
            print)``.
        picture: data URI; empty draws a grid.
        link: where its numbers stand.
        title: over it, where there are several.
    """

    through: Path
    direct: Path
    start: tuple[str, str]
    station: tuple[str, str]
    end: tuple[str, str]
    picture: str = ""
    link: str = ""
    title: str = ""

    @property
    def description(self) -> str:
        """The same in words, for readers who do not see it."""
        return "; ".join(
            f"{path.name}: {path.said} is lost when it is cut" for path in (self.through, self.direct)
        )


@dataclass(frozen=True)
class Bar:
    """One bar: its value, its interval, and where they lie between 0 and 100."""

    value: float
    text: str
    interval: str
    length: float
    low: float
    high: float


@dataclass(frozen=True)
class BarTable:
    """A table whose cells are bars with their intervals; a line marks the level of chance.

    Attributes:
        columns: headings.
        rows: a name, its colour of :class:`~gatelens.plots.style.Palette`, and a bar a column or None.
        chances: of each column where chance lies, between 0 and 100; None where there is none.
        caption: under it.
        link: where its numbers stand.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Bar | None]]]
    chances: Sequence[float | None]
    caption: str = ""
    link: str = ""

    @classmethod
    def from_means(
        cls,
        table: pd.DataFrame,
        colors: Mapping[str, str],
        *,
        tops: Mapping[str, float] | None = None,
        chances: Mapping[str, float] | None = None,
        names: Mapping[str, str] | None = None,
        caption: str = "",
        link: str = "",
    ) -> BarTable:
        """Bars of a tidy table ``row, metric, mean, low, high, n``.

        Args:
            table: the bars; a metric is a column.
            colors: of the rows that are shown, in order.
            tops: where a column ends; without, at its largest value or interval.
            chances: what is scored by chance, by metric.
            names: what a row is called.
            caption, link: see the class.
        """
        metrics, limits = list(table.metric.unique()), dict(tops or {})
        for metric, part in table.groupby("metric"):
            limits.setdefault(str(metric), max(float(part.high.max()), float(part["mean"].max()), 1e-9))
        rows = []
        for row, color in colors.items():
            part = table[table.row == row].set_index("metric")
            if len(part):
                bars = [_bar(part.loc[m], limits[m]) if m in part.index else None for m in metrics]
                rows.append(((names or {}).get(row, row), color, bars))
        headings = [f"{m}\nn = {int(table[table.metric == m].n.max())}" for m in metrics]
        levels = [(chances or {}).get(m, 0.0) for m in metrics]
        marks = [100 * x / limits[m] if x > 0 else None for x, m in zip(levels, metrics, strict=True)]
        return cls(headings, rows, marks, caption, link)


def _bar(row: pd.Series, top: float) -> Bar:
    def at(value: float) -> float:
        return round(min(100.0, max(0.0, 100 * value / top)), 2)

    mean = float(row["mean"])
    return Bar(mean, number(mean), span(row.low, row.high), at(mean), at(row.low), at(row.high))


@dataclass(frozen=True)
class Planted:
    """What is known of a model that was made.

    Attributes:
        truth: what was planted, in a sentence.
        found: whether the run comes out so; None where it cannot tell.
    """

    truth: str
    found: bool | None


@dataclass(frozen=True)
class Opening:
    """The first screen under the sentence.

    Attributes:
        diagrams: paths from the picture to the text.
        bars: what is left when a path is cut.
        planted: what is known of the model.
        words: terms of this screen.
    """

    diagrams: Sequence[Diagram] = ()
    bars: BarTable | None = None
    planted: Planted | None = None
    words: Mapping[str, str] = field(default_factory=dict)
