"""The views of the public face: functions, and figures and reports of a run whatever its study."""

from __future__ import annotations

from pathlib import Path

import pytest

import gatelens.views as views
from gatelens.errors import OutputError
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.patching.page import patching_curve
from study_helpers import synthetic_run


def test_views_are_functions_whatever_was_imported() -> None:
    import gatelens.plots.overlay
    import gatelens.views.heads_view  # noqa: F401

    assert callable(views.heads)
    assert callable(views.overlay)


def test_figures_and_reports_of_a_run(tmp_path: Path) -> None:
    run = synthetic_run(None, "narrow", 60)
    assert png(views.figure(run, "patching")) == png(patching_curve(run.table("patching")))
    assert "Narrow gate at the end-of-image token &lt;eoss&gt;" in views.render_report(run)
    views.write_report(run)
    assert run.has("report")
    other = Run.open(tmp_path / "b", study="other", settings={})
    with pytest.raises(OutputError, match="'other'"):
        views.write_report(other)
