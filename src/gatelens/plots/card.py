"""What a section puts on the page: figures, tables and pictures under a title, rendered the same way for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Figure:
    """A figure of the page; its file is ``figures/NAME.png``. ``draw`` is told whether the ground is dark."""

    name: str
    draw: Callable[[bool], Drawing]
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of texts: the first cell of a row is its name. A cell may be ``(value, small print)``.

    Rows whose name is in ``controls`` are set back.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    caption: str = ""
    title: str = ""
    controls: Sequence[str] = ()


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures under column heads; a cell is a data URI and what stands below it."""

    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    caption: str = ""


Block = Figure | Table | Pictures


@dataclass(frozen=True)
class Card:
    """One section of the page.

    Attributes:
        title: its headline.
        blocks: figures, tables and pictures, in order.
        words: what each term it uses means, for “How it was measured”.
    """

    title: str
    blocks: Sequence[Block]
    words: Mapping[str, str] = field(default_factory=dict)
