"""A gate search to look at: what is drawn and written is what was found, on light and dark, and escaped."""

from __future__ import annotations

from pathlib import Path

import pytest

from gate_search_helpers import made_up
from gatelens.errors import DataError, OutputError
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.gate_finder.figures import gate_figure, gate_layers
from gatelens.studies.gate_finder.study import STUDY, GateSearch
from gatelens.studies.gate_finder.tables import as_html, comparable, gate_table
from gatelens.studies.gate_finder.verdict import gate_verdict
from gatelens.studies.report import write_report


def test_table_and_text_say_what_was_found() -> None:
    found = made_up()
    table = gate_table(found)
    assert len(table) == 8
    assert table.token.iloc[0] == "<eoss>" and table[""].tolist() == ["◆", *[""] * 7]
    assert table["zero: nats lost"].iloc[0] == "0.80 [0.78, 0.82]"
    text = str(found)
    assert text.startswith("made-up: narrow gate at <eoss> (position 66)")
    assert "All conclusive measures agree." in text
    assert "cutting this (position 67) also hurts" in text
    assert [p.token for p in found.gate] == ["<eoss>"]
    assert found.ranking("flipped").name.iloc[0] == "<eoss>"
    with pytest.raises(DataError, match="no measure 'beauty'; there are attention"):
        found.ranking("beauty")


def test_html_is_escaped_and_whole() -> None:
    page = made_up(words=("<script>alert(1)</script>", "this", "is"))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<tr") == 9
    assert "data:image/png;base64," in page and "http" not in page
    assert as_html(made_up()).count("<li>") == 6


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
    assert "Evidence that disagrees: patching." in str(weak)
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


@pytest.mark.parametrize("dark", [False, True])
def test_the_layers_are_drawn_as_measured(dark: bool) -> None:
    found = made_up()
    axes = gate_layers(found, dark).axes[0]
    flips, gain = axes.get_lines()[:2]
    assert list(flips.get_xdata()) == [0, 1, 2] and list(flips.get_ydata()) == [0.1, 0.9, 0.2]
    assert list(gain.get_ydata()) == [0.1, 0.9, 0.2]
    assert axes.get_title(loc="left") == "Patching <eoss> (position 66), one layer at a time"
    assert axes.get_lines()[2].get_ydata()[0] == found.settings["joint_mean"]
    found.layers = found.layers.iloc[:0]
    with pytest.raises(DataError, match="nothing was patched"):
        gate_layers(found)


def test_a_saved_search_is_read_back_and_reported(tmp_path: Path) -> None:
    found = made_up(words=("<eoss>", "<b>this</b>", "is"))
    found.save(tmp_path / "a")
    again = GateSearch.load(tmp_path / "a")
    assert (again.model, again.prompt, again.places) == (found.model, found.prompt, found.places)
    assert (again.settings, again.verdict) == (found.settings, found.verdict)
    for name in ("measures", "blocks", "curves", "layers"):
        table = getattr(found, name).reset_index(drop=True)
        assert getattr(again, name).equals(table), name
    assert str(again) == str(found)
    before = (tmp_path / "a" / "report.html").read_text()
    (tmp_path / "a" / "report.html").unlink()
    write_report(STUDY, Run.load(tmp_path / "a"))
    page = (tmp_path / "a" / "report.html").read_text()
    assert page == before
    assert "Narrow gate at &lt;eoss&gt; (position 66)" in page and "◆ &lt;eoss&gt;" in page
    assert "<b>this" not in page and "&lt;b&gt;this&lt;/b&gt;" in page
    assert page.count("<figure>") == 2 and 'src="http' not in page
    assert (tmp_path / "a" / "figures" / "gate_layers.png").is_file()
    Run.open(tmp_path / "other", study="narrow-gate", settings={})
    with pytest.raises(OutputError, match="is of study 'narrow-gate', not of 'find-gate'"):
        GateSearch.load(tmp_path / "other")


def test_two_searches_can_be_compared() -> None:
    first, second = made_up(), made_up()
    second.verdict["sets"]["mask"] |= {"size": 7, "low": 5, "high": 9}
    second.curves.loc[second.curves["size"] == 2, ["share", "low", "high"]] = [0.4, 0.3, 0.5]
    second.verdict["sets"]["zero"]["size"] = None
    a, b = (comparable(one).set_index(["how", "metric", "row"]) for one in (first, second))
    size = ("mask", "positions of the smallest set found, an upper bound", "that carries 90\u00a0%")
    assert (a.loc[size, "mean"], b.loc[size, "mean"], b.loc[size, "high"]) == (1, 7, 9)
    assert ("zero", *size[1:]) in a.index and ("zero", *size[1:]) not in b.index  # one has no such set
    share = b.loc["zero", "share carried by a set", "2 positions"]
    assert (share["mean"], share.low, share.high, share.n) == (0.4, 0.3, 0.5, 48)
    assert a.loc["zero", "accuracy lost", "<eoss>"]["mean"] == 0.8
    assert {name for _, metric, name in a.index if metric == "accuracy lost"} == {"<eoss>", "this", "is"}
