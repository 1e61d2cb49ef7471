"""Two runs side by side: cells, settings and verdicts, for a terminal and as a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatelens.errors import OutputError
from gatelens.runs import Run
from gatelens.studies.compare import compare, compare_html, compare_text
from study_helpers import synthetic_run


def test_comparison(tmp_path: Path) -> None:
    run = synthetic_run(None, "narrow", 60)
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
