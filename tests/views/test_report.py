"""The report, figures and comparison: self-contained, escaped, and drawn from tables alone."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from gatelens.views.compare import compare, compare_html, compare_text

import gatelens.views as views
from gatelens.errors import DataError, OutputError
from gatelens.plots.style import png
from gatelens.runs import Run
from study_helpers import synthetic_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return synthetic_run(tmp_path_factory.mktemp("run"), "narrow", 60)


def test_report_needs_no_network_and_is_escaped(run: Run) -> None:
    page = views.render_report(run)
    assert not re.search(r"https?://", page)
    assert not re.search(r"(src|href|srcset)=\"(?!data:|#)", page)
    assert "<eoss>" not in page
    assert "Narrow gate at &lt;eoss&gt;" in page
    assert page.count("data:image/png;base64,") >= 6 + 3  # three figures, light and dark; three examples
    assert "prefers-color-scheme: dark" in page
    for row in ("none", "gate → text", "image → text", "random-10 → text", "last image → text"):
        assert row in page


def test_report_of_an_unfinished_or_other_run(tmp_path: Path) -> None:
    started = Run.open(tmp_path / "a", study="narrow-gate", settings={})
    with pytest.raises(OutputError, match="no finished 'knockout'"):
        views.write_report(started)
    other = Run.open(tmp_path / "b", study="other", settings={})
    with pytest.raises(OutputError, match="'other'"):
        views.write_report(other)


@pytest.mark.parametrize("dark", [False, True])
def test_figures_leave_matplotlib_as_it_was(run: Run, dark: bool) -> None:
    before = dict(mpl.rcParams)
    for figure in (
        views.knockout_bars(run.table("knockout"), dark=dark),
        views.attention_shares(run.table("attention"), dark=dark),
        views.patching_curve(run.table("patching"), dark=dark),
    ):
        assert png(figure).startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    with pytest.raises(DataError, match="how='mask'"):
        views.knockout_bars(run.table("knockout"), how="mask")


def test_comparison(run: Run, tmp_path: Path) -> None:
    other = synthetic_run(tmp_path / "open", "open", 60)
    table = compare(run, other)
    row = table[(table.metric == "class accuracy") & (table.row == "gate → text")].iloc[0]
    assert row.apart
    assert row.difference == pytest.approx(row.mean_b - row.mean_a)
    assert "apart" not in compare_text(run, run)
    assert "same settings" in compare_text(run, run)
    assert "organism:open" in compare_html(run, other)
    with pytest.raises(OutputError, match="cannot compare"):
        compare(run, Run.open(None, study="other", settings={}))


def test_views_are_functions_whatever_was_imported() -> None:
    import gatelens.plots.heads
    import gatelens.plots.overlay  # noqa: F401

    assert callable(views.heads)
    assert callable(views.overlay)


def test_one_figure_by_its_name(run: Run) -> None:
    assert png(views.figure(run, "patching")) == png(views.patching_curve(run.table("patching")))
    with pytest.raises(DataError, match="no figure 'knockouts'; it has knockout, attention"):
        views.figure(run, "knockouts")
