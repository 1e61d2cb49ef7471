"""What a section puts on a page: charts, tables, pictures, examples and widgets under a title."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from gatelens.plots.numbers import MISSING, number, span
from gatelens.plots.templating import fragment, macro

Cell = str | tuple[str, str]  # a text, or a text with small print under it


@dataclass(frozen=True)
class Chart:
    """A figure of the page, also saved as ``figures/NAME.png``, ``.svg`` and ``.pdf``.

    Attributes:
        name: unique on its page.
        draw: makes the figure; it is told whether the ground is dark.
        caption: what one sees.
        numbers: the table it is drawn from, folded under it.
        fold: what opens the figure when it is folded, as where a table or the first screen says the same.
    """

    kind: ClassVar[str] = "chart"
    name: str
    draw: Callable[[bool], Figure]
    caption: str = ""
    numbers: pd.DataFrame | None = None
    fold: str = ""

    @property
    def table(self) -> Table | None:
        """Every number of the figure: the columns of ``numbers``, intervals in small print."""
        return None if self.numbers is None else Table.from_numbers(self.numbers)


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        header: a line break in a heading starts a new line.
        rows: the first cell names the row; a cell may be ``(text, small print)``.
        caption: under the table.
        title: over the table.
        controls: names of rows that are set back in grey.
        code: headings of columns in a monospaced font.
        fold: what opens the table when it is folded; without, tables of more than 14 rows are folded.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    title: str = ""
    controls: Sequence[str] = ()
    code: Sequence[str] = ()
    fold: str = ""

    @classmethod
    def from_frame(
        cls,
        table: pd.DataFrame,
        columns: Mapping[str, str],
        formats: Mapping[str, Callable[[Any], Cell]] | None = None,
        **options: Any,
    ) -> Table:
        """A row of the page for every row of a DataFrame.

        Args:
            table: what is shown.
            columns: heading by column, in order.
            formats: how a column's values are written; without, numbers get two digits and missing values a dash.
            options: further attributes of the table.
        """
        write = formats or {}
        rows = [
            [write.get(column, _written)(value) for column, value in zip(columns, row, strict=True)]
            for row in table[list(columns)].itertuples(index=False)
        ]
        return cls(list(columns.values()), rows, **options)

    @classmethod
    def from_means(
        cls,
        table: pd.DataFrame,
        *,
        rows: str = "row",
        columns: str = "metric",
        corner: str = "",
        headings: Mapping[str, str] | None = None,
        names: Mapping[str, Cell] | None = None,
        count: bool = True,
        digits: int = 2,
        **options: Any,
    ) -> Table:
        """A tidy table of means as a grid: the mean in each cell, its interval in small print.

        Args:
            table: columns ``rows``, ``columns``, ``mean``, ``low``, ``high`` and, where known, ``n``.
            rows, columns: columns whose values name the rows and the columns, in their order in the table.
            corner: heading of the first column.
            headings: what a column is called.
            names: what a row is called.
            count: write the largest ``n`` of a column into its heading.
            digits: of the numbers.
            options: further attributes of the table.
        """
        across = list(table[columns].unique())
        header = [corner]
        for column in across:
            heading = (headings or {}).get(column, str(column))
            if count and "n" in table.columns:
                heading += f"\nn = {int(table[table[columns] == column].n.max())}"
            header.append(heading)
        lines: list[list[Cell]] = []
        for name in table[rows].unique():
            part = table[table[rows] == name].set_index(columns)
            cells = [mean_cell(part.loc[c], digits) if c in part.index else MISSING for c in across]
            lines.append([(names or {}).get(name, str(name)), *cells])
        return cls(header, lines, **options)

    @classmethod
    def from_numbers(cls, table: pd.DataFrame) -> Table:
        """A table as it is; a column ``x`` that has ``x_low, x_high`` (``mean``: ``low, high``) with its interval."""
        bounds = {c: (f"{c}_low", f"{c}_high") for c in table.columns} | {"mean": ("low", "high")}
        paired = {c: b for c, b in bounds.items() if c in table.columns and set(b) <= set(table.columns)}
        hidden = {name for pair in paired.values() for name in pair}
        columns = [c for c in table.columns if c not in hidden]

        def cell(row: Mapping[str, Any], column: str) -> Cell:
            value = _written(row[column])
            if column not in paired or not isinstance(value, str):
                return value
            low, high = (row[name] for name in paired[column])
            return (value, span(low, high)) if pd.notna(low) and pd.notna(high) else value

        # a table needs names of rows: texts and whole numbers lead
        names = [c for c in columns if not pd.api.types.is_float_dtype(table[c])]
        columns = [*names, *(c for c in columns if c not in names)]
        rows = [[cell(row, column) for column in columns] for row in table.to_dict("records")]
        return cls([str(c).replace("_", " ") for c in columns], rows)

    def __str__(self) -> str:
        """The table for a terminal, columns side by side."""
        lines = [[heading.replace("\n", " ") for heading in self.header]]
        for name, *cells in self.rows:
            lines.append([_flat(name, "()"), *(_flat(cell, "[]") for cell in cells)])
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        shown = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines
        ]
        return "\n".join(line.rstrip() for line in [*filter(None, [self.title]), *shown])

    def _repr_html_(self) -> str:
        return str(macro("blocks.html.j2", "table")(self))


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures under column headings.

    Attributes:
        header: of the columns, the row names' first.
        rows: a name, and for each column a data URI with what stands below it; an empty URI leaves the text alone.
        caption: under the pictures.
    """

    kind: ClassVar[str] = "pictures"
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    caption: str = ""


@dataclass(frozen=True)
class Answer:
    """What came out under one condition.

    Attributes:
        name: of the condition.
        text: what the model said; empty is shown as “(nothing)”.
        mark: its score, or right or wrong.
        tone: ``right``, ``wrong`` or ``soft``, the colour of the mark.
    """

    name: str
    text: str
    mark: str = ""
    tone: str = "soft"


@dataclass(frozen=True)
class Example:
    """One prompt with its picture and what the model answered under several conditions.

    Attributes:
        picture: data URI; empty shows none.
        name: of the example, read out in place of the picture.
        task: what is asked, in a word.
        prompt: as the model got it.
        expected: accepted answers.
        answers: one a condition.
    """

    picture: str
    name: str
    task: str
    prompt: str
    expected: Sequence[str]
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Examples:
    """Examples side by side; a card that holds them has no frame of its own (``Card(…, framed=False)``)."""

    kind: ClassVar[str] = "examples"
    examples: Sequence[Example]


@dataclass(frozen=True)
class Text:
    """A paragraph; a ``Markup`` may hold tags, any other text is escaped."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Checks:
    """Statements that hold or fail: ``(whether it holds, the statement)``."""

    kind: ClassVar[str] = "checks"
    items: Sequence[tuple[bool, str]]


@dataclass(frozen=True)
class Html:
    """A widget.

    Attributes:
        markup: as it is on the page.
        styles, scripts: files of ``plots/templates`` that it needs; a page takes in each once.
    """

    kind: ClassVar[str] = "html"
    markup: Markup
    styles: Sequence[str] = ()
    scripts: Sequence[str] = ()

    @classmethod
    def from_template(
        cls, name: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), **values: Any
    ) -> Html:
        """A template of ``plots/templates`` filled in; all values are escaped."""
        return cls(fragment(name, **values), styles, scripts)


Block = Chart | Table | Pictures | Examples | Text | Checks | Html


@dataclass(frozen=True)
class Card:
    """One section of the page, folded until it is opened.

    Attributes:
        title: its headline.
        blocks: in order.
        words: what each term it uses means; shown at its end where no card before it has explained the term.
        framed: False where the blocks bring their own frames.
        name: what links to it, ``#name``; without, made of the title.
        short: its name in the contents bar; without, the title.
        finding: the result, in a few words next to the title.
    """

    title: str
    blocks: Sequence[Block]
    words: Mapping[str, str] = field(default_factory=dict)
    framed: bool = True
    name: str = ""
    short: str = ""
    finding: str = ""

    @property
    def anchor(self) -> str:
        """The id on the page."""
        return self.name or re.sub(r"\W+", "-", self.title.lower()).strip("-")


def mean_cell(row: Mapping[str, Any] | pd.Series, digits: int = 2) -> Cell:
    """A mean with its interval in small print, from a row with ``mean``, ``low`` and ``high``."""
    return number(row["mean"], digits), span(row["low"], row["high"], digits)


def token_card(tokens: Mapping[str, Any], opening: str) -> Card:
    """Who is where in a prompt.

    Args:
        tokens: ``prompt``, ``header`` and ``rows`` of the table, and ``gate`` (``position``, ``string``, ``literal``)
            where the page is about it.
        opening: whose prompt it is, such as “The first example’s prompt”.
    """
    text = Markup("{}, <code>{}</code>.").format(opening, tokens["prompt"])
    gate = tokens.get("gate")
    if gate:
        own = "this model’s own end-of-image token"
        other = "the first token after the image, as this model has no end-of-image token"
        text += Markup(" The gate is position {}, <code>{}</code>: {}.").format(
            gate["position"], gate["string"], own if gate["literal"] else other
        )
    header = tokens["header"]
    rows = [[str(cell) for cell in row] for row in tokens["rows"]]
    # the fourth column holds the tokens themselves
    table = Table(
        header, rows, code=header[3:4], fold="Every stretch of the prompt" if len(rows) > 14 else ""
    )
    finding = f"the gate is position {gate['position']}" if gate else ""
    return Card("Who is where in the prompt", [Text(text), table], short="Prompt", finding=finding)


def _written(value: Any) -> Cell:
    if isinstance(value, tuple):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return MISSING if pd.isna(value) else number(value)
    return MISSING if value is None else str(value)


def _flat(cell: Cell, brackets: str) -> str:
    """A cell on one line, its small print in brackets."""
    if isinstance(cell, str):
        return cell
    text, small = cell
    return f"{text} {brackets[0]}{small}{brackets[1]}" if small else text
