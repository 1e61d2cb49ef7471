"""The report page: one self-contained, escaped HTML file with every kind of block."""

from __future__ import annotations

import re

import pytest
from markupsafe import Markup

from figure_tables import bar_table, curve_table
from gatelens.plots.bars import bars
from gatelens.plots.card import (
    Answer,
    Block,
    Card,
    Chart,
    Checks,
    Example,
    Examples,
    Html,
    Pictures,
    Table,
    Text,
)
from gatelens.plots.curve import curves
from gatelens.plots.page import Evidence, Page, Verdict, draw_charts, facts, render
from gatelens.plots.style import NotebookFigure, SeriesStyle

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
TONES = {"narrow": "gate", "distributed": "image", "inconclusive": "none"}
SAID = {
    "verdict": "narrow",
    "headline": "narrow gate at <eoss>",
    "sentence": "The image reaches the text through <eoss>.",
    "evidence": [
        {"kind": "knockout, class accuracy", "says": "narrow", "text": "0.9 to 0.1"},
        {"kind": "attention share", "says": "distributed", "text": "the image takes most"},
        {"kind": "patching", "says": "both", "text": "half"},
    ],
    "disagree": ["attention share"],
}
BLOCKS: list[Block] = [
    Text("A <plain> text."),
    Table(
        ["cut", "class accuracy\nn = 20"],
        [["none", ("0.90", "0.80 – 1.00")], ["floor", "0.10"]],
        controls=("floor",),
    ),
    Table(["row"], [[f"row {i}"] for i in range(15)]),
    Table(list("abcdefg"), [list("1234567")], fold="Every point", code=("b",), title="Wide"),
    Pictures(
        ["cut", "first"], [("none", [(PIXEL, "a <fox>")]), ("gate", [("", "text alone")])], "Not chosen."
    ),
    Checks([(True, "carried goes"), (False, "other stays")]),
]
EXAMPLE = Example(PIXEL, "7", "class", "<image>a", ["fox", "dog"], [Answer("none", "", "wrong", "wrong")])


def bar_chart(dark: bool) -> NotebookFigure:
    return bars(bar_table(), groups="row", panels="metric", dark=dark)


def curve_chart(dark: bool) -> NotebookFigure:
    return curves(curve_table(), [SeriesStyle("gate"), SeriesStyle("image")], by="keys", dark=dark)


@pytest.fixture(scope="module")
def page() -> Page:
    widget = Html(Markup("<p class='looking'>hi</p>"), styles=("look.css",), scripts=("look.js",))
    cards = [
        Card(
            "What is left",
            [Chart("knockout", bar_chart, "Bars & more"), *BLOCKS],
            {"floor": "All paths cut."},
        ),
        Card("Layers", [Chart("progressive", curve_chart)], {"window": "Some layers."}),
        Card("Where words looked", [widget, widget], framed=False),
        Card("Examples", [Examples([EXAMPLE])], framed=False),
    ]
    verdict = Verdict.from_json(SAID, TONES)
    lead = ["narrow-gate study", ("model", "organism:<gated>")]
    return Page(
        "The title", lead, [verdict], cards, {"interval": "95 %."}, [("seed", "0")], ["steering: no classes"]
    )


@pytest.fixture(scope="module")
def html(page: Page) -> str:
    return render(page)


def test_the_page_needs_no_network_and_is_escaped(html: str) -> None:
    assert not re.search(r"https?://", html)
    assert not re.search(r"(src|href|srcset)=\"(?!data:|#)", html)
    for text in ("<eoss>", "<plain>", "<fox>", "organism:<gated>"):
        assert text not in html
    assert "Narrow gate at &lt;eoss&gt;" in html
    assert "Bars &amp; more" in html


def test_the_verdict_with_its_evidence(html: str) -> None:
    assert 'class="card verdict tone-gate"' in html
    assert re.findall(r'class="tag tone-(\w+)"', html) == ["gate", "image", "mixed"]
    assert "<strong>Attention share</strong> <em>(disagrees)</em>: the image takes most." in html
    assert html.count("(disagrees)") == 1


def test_every_kind_of_block_is_there(html: str) -> None:
    assert '<tr class="control"><th scope="row">floor</th>' in html
    assert "class accuracy<br>n = 20" in html
    assert "All numbers (15 rows)" in html and "<summary>Every point</summary>" in html
    assert html.count("<details>") == 2
    assert '<td class="mono">2</td>' in html
    assert "✓ holds" in html and "✗ fails" in html
    assert "fox · dog" in html and "(nothing)" in html and 'class="number wrong"' in html
    assert "text alone" in html and "Not chosen." in html
    assert html.count("<p class='looking'>hi</p>") == 2


def test_sections_words_and_facts(page: Page, html: str) -> None:
    for i, card in enumerate(page.cards, 1):
        assert f'<a href="#{i}">{card.title}</a>' in html
        assert f'<h2 id="{i}">{card.title}</h2>' in html
    assert list(page.words()) == ["floor", "window", "interval"]
    assert "<dt>window</dt><dd>Some layers.</dd>" in html
    assert '<dt>seed</dt><dd class="mono">0</dd>' in html
    assert "lack what it takes: steering: no classes." in html


def test_widgets_bring_their_files_once(html: str) -> None:
    assert html.count("button.word:hover") == 1
    assert html.count("<script>") == 1


def test_figures_for_light_and_dark_ground_drawn_once(page: Page) -> None:
    light = draw_charts(page)
    assert list(light) == ["knockout", "progressive"]
    html = render(page, light)
    assert html.count('prefers-color-scheme: dark)" srcset="data:image/png') == 2
    widths = re.findall(r'<img alt="figure: \w+" width="(\d+)"', html)
    assert widths == [str(round(7.3 * 98)), str(9 * 98)]


def test_two_figures_of_one_name(page: Page) -> None:
    twice = Page("t", [], [], [Card("a", [Chart("x", bar_chart)]), Card("b", [Chart("x", bar_chart)])])
    with pytest.raises(ValueError, match="'x'"):
        twice.charts()


def test_two_verdicts_stand_side_by_side_and_empty_parts_are_left_out() -> None:
    verdicts = [
        Verdict("mixed", "A.", about="A · first"),
        Verdict("narrow", "B.", [Evidence("narrow", "before", "C.", "gate", link="before/report.html")]),
    ]
    html = render(Page("two", ["two runs compared"], verdicts, [Card("One", [Text("x")])]))
    assert '<div class="sides">' in html
    assert "A · first" in html
    assert '<a href="before/report.html">its report</a>' in html
    for absent in ("How it was measured", "Not measured", "<nav", "<script>"):
        assert absent not in html


def test_facts_of_a_run() -> None:
    manifest = {
        "settings": {"model": "organism:gated", "max_new_tokens": {"vqa": 20, "caption": 60}},
        "info": {"device": "cpu"},
        "versions": {"torch": "2.6"},
    }
    assert facts(manifest, 3.6) == [
        ("model", "organism:gated"),
        ("max new tokens", "vqa 20, caption 60"),
        ("device", "cpu"),
        ("compute", "4 s"),
        ("versions", "torch 2.6"),
    ]
