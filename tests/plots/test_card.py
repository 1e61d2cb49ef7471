"""What a section puts on a page: tables from frames, as text and as HTML."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

from figure_tables import bar_table
from gatelens.plots.card import Html, Table, Text, mean_cell, token_card
from gatelens.plots.numbers import percent


def test_a_table_from_a_frame() -> None:
    frame = pd.DataFrame(
        {"context": ["full", "K = 5 %"], "accuracy": [0.5, np.nan], "n": [3, 4], "share": [0.5, 1]}
    )
    columns = {"context": "context", "share": "kept", "accuracy": "accuracy", "n": "n"}
    table = Table.from_frame(frame, columns, {"share": percent}, caption="Under it.", controls=("full",))
    assert table.header == ["context", "kept", "accuracy", "n"]
    assert table.rows == [["full", "50\u00a0%", "0.50", "3"], ["K = 5 %", "100\u00a0%", "–", "4"]]
    assert (table.caption, table.controls) == ("Under it.", ("full",))


def test_a_table_from_means() -> None:
    names = {"gate → text": ("gate → text", "mean of 10 draws")}
    table = Table.from_means(
        bar_table(), corner="attention cut", headings={"caption CIDEr-D": "captions"}, names=names
    )
    assert table.header == ["attention cut", "class accuracy\nn = 20", "captions\nn = 12"]
    assert list(table.rows[0]) == ["none", ("0.90", "0.80 – 1.00"), ("2.00", "1.50 – 2.50")]
    assert list(table.rows[1])[2] == ("−0.10", "−0.20 – 0.00")
    assert list(table.rows[2]) == ["image → text", ("0.80", "0.70 – 0.90"), "–"]


def test_other_columns_and_no_counts() -> None:
    frame = bar_table().rename(columns={"row": "stage", "metric": "measure"})
    table = Table.from_means(frame, rows="stage", columns="measure", count=False, digits=1)
    assert table.header == ["", "class accuracy", "caption CIDEr-D"]
    assert list(table.rows[0])[1] == ("0.9", "0.8 – 1.0")


def test_a_table_for_a_terminal() -> None:
    table = Table(
        ["cut", "acc\nn = 3"], [[("gate", "10 draws"), ("0.50", "0.40, 0.60")], ["none", "–"]], title="Left"
    )
    assert str(table).splitlines() == [
        "Left",
        "cut              acc n = 3",
        "gate (10 draws)  0.50 [0.40, 0.60]",
        "none             –",
    ]


def test_a_table_in_a_notebook_is_escaped() -> None:
    shown = Table(["a", "<b>"], [["<script>", ("1", "2")]], controls=("<script>",))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;b&gt;" in shown
    assert '1<span class="interval">2</span>' in shown


def test_a_mean_as_a_cell() -> None:
    assert mean_cell({"mean": 0.5, "low": 0.4, "high": 0.6}) == ("0.50", "0.40 – 0.60")
    assert mean_cell(pd.Series({"mean": 0.5, "low": 0.4, "high": 0.6}), 1) == ("0.5", "0.4 – 0.6")


@pytest.mark.parametrize(
    ("literal", "said"), [(True, "own end-of-image token"), (False, "has no end-of-image token")]
)
def test_who_is_where(literal: bool, said: str) -> None:
    tokens = {
        "prompt": "<image>this is a",
        "header": ["positions", "role", "n", "tokens"],
        "rows": [["0", "system", 1, "<s>"]],
        "gate": {"position": 7, "string": "<eoss>", "literal": literal},
    }
    card = token_card(tokens, "The first example’s prompt")
    text, table = card.blocks
    assert isinstance(text, Text) and isinstance(text.text, Markup)
    assert "<code>&lt;eoss&gt;</code>" in text.text
    assert "<code>&lt;image&gt;this is a</code>" in text.text
    assert said in text.text
    assert isinstance(table, Table)
    assert table.code == ["tokens"]
    assert list(table.rows[0]) == ["0", "system", "1", "<s>"]
    plain = token_card({k: v for k, v in tokens.items() if k != "gate"}, "The first picture’s prompt").blocks[
        0
    ]
    assert isinstance(plain, Text) and "gate" not in plain.text


def test_a_widget_escapes_what_is_put_into_it() -> None:
    example = {
        "id": "<7>", "picture": "data:,", "width": 4, "height": 4, "bands": ["all layers"], "band": 0,
        "prompt": "<image>describe", "truth": ["a <fox>"], "words": [], "after": "", "thumbs": [], "rows": [],
        "is_live": False,
    }  # fmt: skip
    widget = Html.from_template(
        "look.html.j2", styles=("look.css",), scripts=("look.js",), examples=[example]
    )
    assert "(nothing was written)" in widget.markup
    assert "<fox>" not in widget.markup and "<7>" not in widget.markup
    assert widget.styles == ("look.css",)


def test_numbers_of_a_figure_in_words() -> None:
    numbers = pd.DataFrame({"stands_out": [True, False], "n": [250_000, -3], "share": [0.5, float("nan")]})
    table = Table.from_numbers(numbers)
    assert table.header == ["stands out", "n", "share"]
    assert table.rows == [["yes", "250,000", "0.50"], ["no", "−3", "–"]]
