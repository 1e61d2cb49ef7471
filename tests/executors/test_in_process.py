"""Units measured in this process, and what a run keeps of them whoever measures them."""

from __future__ import annotations

from pathlib import Path

import pytest
from executor_helpers import attempts_of, units_of

from gatelens.errors import InterventionError
from gatelens.executors import InProcess, Unit
from gatelens.runs import Run
from gatelens.units import measure_missing, measured


def test_units_are_measured_lazily_and_in_order(tmp_path: Path) -> None:
    results = InProcess().run(units_of(tmp_path), lambda steps: None)
    assert attempts_of(tmp_path) == {}
    assert next(results).unit.name == "00" and attempts_of(tmp_path) == {0: 1}
    assert [one.unit.name for one in results] == ["01", "02", "03", "04", "05"]


def test_errors_are_raised_as_they_are(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", study="toy", settings={})
    with pytest.raises(RuntimeError, match="no square of 2"):
        measured(run, "s", units_of(tmp_path / "log", {2: "failing"}), False)
    with pytest.raises(InterventionError, match="a row left with nothing"):
        measured(run, "s", units_of(tmp_path / "log", {2: "refused"}), False)
    assert attempts_of(tmp_path / "log") == {0: 1, 1: 1, 2: 2}


def test_what_another_finishes_meanwhile_is_left_out(tmp_path: Path) -> None:
    """Two in one folder: each takes what is missing when it would begin it, and steps are counted once."""
    mine, other = (Run.open(tmp_path / "run", study="toy", settings={}) for _ in range(2))
    units, steps = units_of(tmp_path / "log", n=3), []

    def measure(done):  # type: ignore[no-untyped-def]
        other.save_batch("s", "01", units[1].measure(lambda n: None))
        return units[0].measure(done)

    measure_missing(mine, "s", [Unit("00", 1, measure), *units[1:]], InProcess(), steps.append)
    assert attempts_of(tmp_path / "log") == {0: 1, 1: 1, 2: 1} and steps == [1, 1, 1]
    assert [mine.batch("s", unit.name)["squares"].square.item() for unit in units] == [0, 1, 4]
