"""A gate search to look at: what is drawn and written is what was found, on light and dark, and escaped."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from gatelens.errors import DataError
from gatelens.studies.gate_finder.finder import GateSearch
from gatelens.studies.gate_finder.places import Place
from gatelens.studies.gate_finder.verdict import gate_verdict
from gatelens.views.gate import as_html, gate_figure, gate_table
from gatelens.views.style import png

HOWS = ("zero", "mask")
FACTS: dict[str, Any] = {
    "how": list(HOWS), "narrow": 4, "chance": 0.1, "accuracy": 0.9, "probability": 0.88, "floor": 0.1, "worth": 0.78,
    "worth_low": 0.7, "worth_high": 0.85, "information": 5.0, "information_low": 4.0, "information_high": 6.0,
    "naming_p": 0.001, "joint_mean": 0.95, "joint_low": 0.9, "joint_high": 1.0, "around": 0.0, "around_low": -0.01,
    "around_high": 0.02, "overlap_by_chance": 0.07, "part": 0.9,
}  # fmt: skip


def made_up(
    n_picture: int = 64, gate: int = 0, words: tuple[str, ...] = ("<eoss>", "this", "is"), **facts: Any
) -> Any:
    """A search with numbers put in: the place ``gate`` behind the picture carries everything."""
    places = [Place(i, "image", i, "<image>", 2 + i, True) for i in range(n_picture)]
    places += [Place(n_picture + i, "query", i, w, 2 + n_picture + i, False) for i, w in enumerate(words)]
    chosen = n_picture + gate
    rows = []
    for place in places:
        strong = place.number == chosen
        for measure in (
            "attention",
            "overlap",
            "zero accuracy",
            "zero log_prob",
            "mask accuracy",
            "mask log_prob",
        ):
            mean = 0.8 if strong else 0.05 + 0.001 * (place.number % 7)
            rows.append((place.number, measure, mean, mean - 0.02, mean + 0.02, 96, 1))
        rows.append(
            (
                place.number,
                "flipped",
                0.95 if strong else 0.0,
                0.9 if strong else 0,
                1.0 if strong else 0,
                48,
                -1,
            )
        )
    measures = pd.DataFrame(rows, columns=["place", "measure", "mean", "low", "high", "n", "layer"])
    blocks = measures[
        measures.place.isin(range(0, n_picture, 8)) & (measures.measure == "zero accuracy")
    ].copy()
    blocks["last"] = (blocks.place + 7).clip(upper=n_picture - 1)
    one = {
        "size": 1, "low": 1, "high": 1, "share": 0.99, "share_low": 0.95, "share_high": 1.02, "places": [chosen],
        "damage": [n_picture + 1],
    }  # fmt: skip
    sets = {how: dict(one) for how in HOWS}
    settings = FACTS | {"n_picture": n_picture, "n_behind": len(words), "patched": [chosen]} | facts
    sizes = [1, 2, 4, n_picture]
    curves = pd.concat(
        [
            pd.DataFrame({"how": h, "size": sizes, "share": 0.99, "low": 0.9, "high": 1.0, "added": 0})
            for h in HOWS
        ]
    )
    said = gate_verdict(places, measures, sets, settings)
    return GateSearch(
        "made-up", "<image>this is", tuple(places), measures, blocks, curves, pd.DataFrame(), settings, said
    )


def test_table_and_text_say_what_was_found() -> None:
    found = made_up()
    table = gate_table(found)
    assert len(table) == 8
    assert table.token.iloc[0] == "<eoss>" and table[""].tolist() == ["◆", *[""] * 7]
    assert table["zero: nats lost"].iloc[0] == "0.80 [0.78, 0.82]"
    text = str(found)
    assert text.startswith("made-up: narrow gate at <eoss> (position 66)")
    assert "Every measure agrees." in text
    assert "cutting this (position 67) also hurts" in text
    assert [p.token for p in found.gate] == ["<eoss>"]
    assert found.ranking("flipped").name.iloc[0] == "<eoss>"
    with pytest.raises(DataError, match="no measure 'beauty'; there are attention"):
        found.ranking("beauty")


def test_html_is_escaped_and_whole() -> None:
    page = made_up(words=("<script>alert(1)</script>", "this", "is"))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<tr>") == 9
    assert "data:image/png;base64," in page and "http" not in page
    assert as_html(made_up()).count("<li>") == 5


@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_shows_every_bar(dark: bool) -> None:
    figure = gate_figure(made_up(), dark)
    panels = figure.axes
    assert len(panels) == 6
    heights = [bar.get_height() for bar in panels[0].patches]
    assert len(heights) == 67 and max(heights) == pytest.approx(0.8)
    assert heights.index(max(heights)) == 64
    strip = [label.get_text() for label in panels[4].get_xticklabels()]
    assert strip == ["the picture, 64 positions", "<eoss>", "this", "is"]
    assert png(figure)[:4] == b"\x89PNG"


def test_a_long_picture_and_a_long_prompt_still_fit() -> None:
    found = made_up(1024, gate=3, words=tuple(f"word{i}" for i in range(30)))
    panels = gate_figure(found).axes
    assert len(panels[0].patches) <= 160 + 30
    assert max(bar.get_height() for bar in panels[0].patches) == pytest.approx(0.8)
    assert [t.get_text() for t in panels[4].get_xticklabels()] == ["the picture, 1024 positions"]


def test_verdicts_in_words() -> None:
    nothing = made_up(worth=0.0, worth_low=-0.05, naming_p=0.6)
    assert nothing.verdict["verdict"] == "no communication found"
    assert nothing.verdict["evidence"] == [] and nothing.gate == ()
    assert "no gate to look for" in str(nothing)
    some = made_up(worth=0.02, worth_low=-0.05, naming_p=0.001)
    assert some.verdict["verdict"] == "inconclusive" and "class name follows" in str(some)
    weak = made_up(joint_mean=0.02, joint_low=0.0, joint_high=0.05)
    assert weak.verdict["disagree"] == ["patching"]
    assert "Evidence that does not agree: patching." in str(weak)
    one = {
        "size": 3,
        "low": 1,
        "high": 30,
        "share": 0.91,
        "share_low": 0.8,
        "share_high": 1,
        "places": [1, 2, 3],
        "damage": [],
    }
    base = made_up()
    between = gate_verdict(base.places, base.measures, {"zero": one}, base.settings)
    assert between["verdict"] == "inconclusive" and "give more examples" in between["sentence"]
    many = gate_verdict(base.places, base.measures, {"zero": {**one, "size": 40, "low": 30}}, base.settings)
    assert many["verdict"] == "distributed"
    assert {"patching", "attention", "overlap"} == set(many["disagree"])
    texts = {e["kind"]: e["text"] for e in many["evidence"]}
    assert "looked at, but cut alone it costs 80\u00a0% of accuracy" in texts["attention"]
    elsewhere = gate_verdict(
        base.places, base.measures, {"zero": {**one, "size": 1, "high": 1, "places": [5]}}, base.settings
    )
    assert next(e for e in elsewhere["evidence"] if e["kind"] == "attention")["says"] == "another gate"
