"""The report page: one self-contained, escaped HTML file with every kind of block."""

from __future__ import annotations

import dataclasses
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
from gatelens.plots.opening import Opening
from gatelens.plots.page import Evidence, Page, Verdict, draw_charts, facts, render
from gatelens.plots.style import NotebookFigure, SeriesStyle

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
TONES = {"narrow": "gate", "distributed": "image", "inconclusive": "none"}
SAID = {
    "verdict": "narrow",
    "headline": "narrow gate at <eoss>",
    "sentence": "The image reaches the text through <eoss>, and much more is said of it.",
    "answer": "The image reaches the text through <eoss>: 98\u00a0% of it.",
    "evidence": [
        {"kind": "knockout, class accuracy", "says": "narrow", "text": "0.9 to 0.1"},
        {
            "kind": "attention share",
            "says": "distributed",
            "text": "the image takes most",
            "line": "most to the image",
            "link": "#attention",
        },
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
        Card(
            "Layers",
            [Chart("progressive", curve_chart, numbers=curve_table())],
            {"window": "Some layers.", "floor": "All paths cut."},
            finding="layer 3",
        ),
        Card("Where words looked", [widget, widget], framed=False),
        Card("Examples", [Examples([EXAMPLE])], framed=False),
    ]
    verdict = Verdict.from_json(SAID, TONES, link="#knockouts")
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
    assert 'class="verdict tone-gate"' in html
    assert re.findall(r'class="mark mark-(\w+)"', html) == ["for", "against", "open"]
    assert re.findall(r"</span> ([a-z]+)</span>", html) == ["for", "against", "both"]
    # a line is one link; the line is shown, not the text
    assert '<a href="#attention"><strong>Attention share</strong>: most to the image</a>' in html
    assert "the image takes most" not in html
    # numbers of the sentence lead to their table
    assert 'through &lt;eoss&gt;: <a href="#knockouts">98\u00a0%</a> of it.' in html


def test_nothing_speaks_for_a_verdict_that_cannot_be_told() -> None:
    unsure = {
        **SAID,
        "verdict": "inconclusive",
        "evidence": [{"kind": "a", "says": "inconclusive", "text": "few"}],
    }
    (one,) = Verdict.from_json(unsure, TONES).evidence
    assert (one.mark, one.label) == ("open", "undecided")


def test_every_kind_of_block_is_there(html: str) -> None:
    assert '<tr class="control"><th scope="row">floor</th>' in html
    assert "class accuracy<br>n = 20" in html
    assert "All numbers (15 rows)" in html and "<summary>Every point</summary>" in html
    assert '<td class="mono">2</td>' in html
    assert "✓ holds" in html and "✗ fails" in html
    assert "fox · dog" in html and "(nothing)" in html and 'class="number wrong"' in html
    assert "text alone" in html and "Not chosen." in html
    assert html.count("<p class='looking'>hi</p>") == 2


def test_sections_are_folded_and_in_the_contents(page: Page, html: str) -> None:
    for card in page.cards:
        assert f'<li><a href="#{card.anchor}">{card.short or card.title}</a></li>' in html
        assert re.search(rf'<section class="part" id="{card.anchor}">\s*<details>', html)
    assert "<details open" not in html
    assert '<h2>Layers</h2> <span class="finding">layer 3</span>' in html
    assert page.cards[2].anchor == "where-words-looked"
    assert "<dt>window</dt><dd>Some layers.</dd>" in html
    assert '<dt>seed</dt><dd class="mono">0</dd>' in html
    assert "</strong> with this model and data: steering: no classes." in html


def test_a_term_is_explained_where_it_comes_first(page: Page, html: str) -> None:
    assert [list(page.words_of(card)) for card in page.cards] == [["floor"], ["window"], [], []]
    assert html.count("<dt>floor</dt>") == 1 and html.index("<dt>floor</dt>") < html.index("<h2>Layers</h2>")
    known = dataclasses.replace(page, opening=Opening(words={"floor": "All paths cut."}))
    assert page.cards[0].words and not known.words_of(known.cards[0])


def test_every_number_of_a_figure_is_under_it(html: str) -> None:
    folded = re.search(r'<details class="numbers" id="progressive-numbers">.*?</details>', html, re.DOTALL)
    assert folded is not None
    table = curve_table()
    assert folded[0].count("<tr>") == len(table) + 1
    first = table.iloc[0]
    assert f'{first["mean"]:.2f}<span class="interval">{first.low:.2f} – {first.high:.2f}</span>' in folded[0]


def test_widgets_bring_their_files_once(html: str) -> None:
    assert html.count("button.word:hover") == 1
    assert html.count("<script>") == 2  # the page's own and the widget's


def test_a_figure_stands_once_and_takes_the_readers_colours(page: Page, html: str) -> None:
    figures = draw_charts(page)
    assert list(figures) == ["knockout", "progressive"]
    assert render(page, figures) == html
    assert re.findall(
        r'<svg role="img" aria-label="figure: (\w+)" viewBox="[^"]+" style="width:(\d+)px">', html
    ) == [
        ("knockout", str(round(7.3 * 98))),
        ("progressive", str(9 * 98)),
    ]
    drawn = "".join(re.findall(r"<svg role.*?</svg>", html, re.DOTALL))
    assert "var(--ink)" in drawn and not re.search(r"#[0-9a-f]{6}\b", drawn)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= {*ids, "attention", "knockouts"}


def test_two_figures_of_one_name(page: Page) -> None:
    twice = Page("t", [], [], [Card("a", [Chart("x", bar_chart)]), Card("b", [Chart("x", bar_chart)])])
    with pytest.raises(ValueError, match="'x'"):
        twice.charts()


def test_two_verdicts_stand_side_by_side_and_empty_parts_are_left_out() -> None:
    verdicts = [
        Verdict("mixed", "A.", about="A · first"),
        Verdict("narrow", "B.", [Evidence("for", "before", "C.", link="before/report.html")]),
    ]
    html = render(Page("two", ["two runs compared"], verdicts, [Card("One", [Text("x")])]))
    assert '<div class="sides">' in html
    assert "A · first" in html
    assert '<a href="before/report.html"><strong>Before</strong>: C.</a>' in html
    for absent in ("How it was measured", "Not measured", "<nav"):
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
    nested = {
        "sections": {"knockouts": {}, "steering": {"n": 8, "doses": [0.5, 1.0]}},
        "chat": [],
        "heads": [1, 2],
    }
    assert dict(facts({"settings": nested}, 0)) == {
        "sections": "knockouts; steering n 8, doses [0.5, 1.0]",
        "chat": "none",
        "heads": "1, 2",
        "compute": "0 s",
        "versions": "",
    }
