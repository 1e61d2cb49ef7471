"""The report of a run: self-contained, escaped, and drawn from tables alone."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

from gatelens.errors import DataError, OutputError
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.catalogue import study_of
from gatelens.studies.narrow_gate.attention.figures import attention_shares
from gatelens.studies.narrow_gate.knockouts import knockout_bars
from gatelens.studies.narrow_gate.patching.page import patching_curve
from gatelens.studies.narrow_gate.study import STUDY
from gatelens.studies.report import figure, render_report, write_report
from study_helpers import synthetic_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return synthetic_run(tmp_path_factory.mktemp("run"), "narrow", 60)


def test_report_needs_no_network_and_is_escaped(run: Run) -> None:
    page = render_report(STUDY, run)
    assert not re.search(r"https?://", page)
    assert not re.search(r"(src|href|srcset)=\"(?!data:|#)", page)
    assert "<eoss>" not in page
    assert "Narrow gate at the end-of-image token &lt;eoss&gt;" in page
    assert page.count('<svg role="img" aria-label="figure: ') == 5  # each figure once, for light and dark
    assert "prefers-color-scheme:dark" in page and "var(--gate)" in page
    for row in ("none", "gate → text", "image → text", "random-10 → text", "last image → text"):
        assert row in page


def test_report_of_an_unfinished_or_other_run(tmp_path: Path) -> None:
    started = Run.open(tmp_path / "a", study="narrow-gate", settings={})
    with pytest.raises(OutputError, match="no finished 'verdict'"):
        write_report(STUDY, started)
    other = Run.open(tmp_path / "b", study="other", settings={})
    with pytest.raises(
        OutputError, match="is of study 'other', whose report is not known; known: 'narrow-gate'"
    ):
        study_of(other)


@pytest.mark.parametrize("dark", [False, True])
def test_figures_leave_matplotlib_as_it_was(run: Run, dark: bool) -> None:
    before = dict(mpl.rcParams)
    for drawn in (
        knockout_bars(
            run.table("knockout"), dark=dark, chances={"class accuracy": 0.05, "VQA accuracy": 0.44}
        ),
        attention_shares(run.table("attention"), dark=dark),
        patching_curve(run.table("patching"), dark=dark),
    ):
        assert png(drawn).startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    with pytest.raises(DataError, match="how='mask'"):
        knockout_bars(run.table("knockout"), how="mask")


def test_the_level_without_the_picture_is_drawn_across_the_bars(run: Run) -> None:
    chances = {"class accuracy": 0.05, "VQA accuracy": 0.44, "CIDEr-D": 0.0}
    drawn = knockout_bars(run.table("knockout"), chances=chances)
    levels = {
        axes.get_title(loc="left").split("  ")[0]: [
            line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1
        ]
        for axes in drawn.axes
    }
    assert 0.05 in levels["class accuracy"] and 0.44 in levels["VQA accuracy"]
    assert not levels["CIDEr-D"]  # a caption is not guessed
    tasks = run.table("tasks").set_index("metric").chance
    assert tasks["class accuracy"] == 0.05


def test_one_figure_by_its_name(run: Run) -> None:
    assert png(figure(STUDY, run, "patching")) == png(patching_curve(run.table("patching")))
    names = "knockout, attention, attention_positions, patching, patching_attention"
    with pytest.raises(DataError, match=f"no figure 'knockouts'; it has {names}$"):
        figure(STUDY, run, "knockouts")


def test_sections_that_are_absent_are_named_and_not_drawn(tmp_path: Path) -> None:
    run = synthetic_run(None, "narrow", 60)
    run.save("absent", ["patching (it needs pictures of two classes)"])
    page = render_report(STUDY, run)
    assert "patching (it needs pictures of two classes)" in page and "Another picture’s gate" not in page
    assert "Where the text looks" in page


def test_numbers_name_the_run_that_changes_no_layer(stored_runs: dict[str, Path]) -> None:
    run = Run.load(stored_runs["narrow-gate"])
    for section, name, word in (
        ("patching", "patching", "unpatched"),
        ("progressive", "progressive", "uncut"),
    ):
        blocks = [block for card in study_of(run).section(section).page(run) for block in card.blocks]
        numbers = next(block.numbers for block in blocks if getattr(block, "name", "") == name)
        assert word in set(numbers.layer)
        assert "-1" not in set(numbers.layer)
