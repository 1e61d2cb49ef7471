"""Work over data in units: what is there is not measured again, by whoever measures it and whatever ended it."""

from __future__ import annotations

import errno
import multiprocessing
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from executor_helpers import attempts_of, square, units_of

from gatelens import atomic_files
from gatelens.errors import OutputError
from gatelens.executors import InProcess, Unit
from gatelens.runs import Run
from gatelens.runs.manifest import CODE, code_of, versions
from gatelens.units import measure_missing, measured

SQUARES = [0, 1, 4, 9, 16, 25]


def toy(folder: Path | None) -> Run:
    return Run.open(folder, study="toy", settings={})


def squares(tables: list[dict[str, pd.DataFrame]]) -> list[int]:
    return [one["squares"].square.item() for one in tables]


def call(folder: Path) -> None:
    units = units_of(folder / "log", dict.fromkeys(range(6), "short"))
    assert squares(measured(toy(folder / "run"), "s", units, False)) == SQUARES


@pytest.mark.parametrize("kind", [threading.Thread, multiprocessing.get_context("fork").Process])
def test_the_same_call_several_times_at_once_measures_each_unit_once(tmp_path: Path, kind: Any) -> None:
    callers = [kind(target=call, args=(tmp_path,)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
        assert getattr(caller, "exitcode", 0) == 0
    call(tmp_path)
    assert attempts_of(tmp_path / "log") == dict.fromkeys(range(6), 1)
    assert not list((tmp_path / "run").rglob(".*"))


def test_what_another_call_gives_up_is_measured(tmp_path: Path) -> None:
    """One call waits for a unit of another, which fails; then it measures that unit itself."""
    begun, tables = threading.Event(), []

    def failing(done: Any) -> Any:
        begun.set()
        waiting.start()
        waiting.join(0.1)
        raise RuntimeError("no")

    def second() -> None:
        begun.wait()
        tables.extend(measured(toy(tmp_path / "run"), "s", units_of(tmp_path / "log", n=2), False))

    waiting = threading.Thread(target=second)
    with pytest.raises(RuntimeError, match="no") as failed:
        measured(toy(tmp_path / "run"), "s", [Unit("00", 1, failing)], False)
    assert failed.value.__notes__ == ["while unit '00' was measured"]
    waiting.join()
    assert squares(tables) == SQUARES[:2] and attempts_of(tmp_path / "log") == {0: 1, 1: 1}


def test_a_full_disk_loses_the_unit_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, log = atomic_files._write, tmp_path / "log"

    def full(file: Path, data: bytes) -> None:
        if file.suffix == ".parquet" and len(list((tmp_path / "run").glob("shards/s/0*"))) == 3:
            write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files, "_write", full)
        with pytest.raises(OutputError, match=r"cannot write '.*s/03': No space left on device"):
            measured(toy(tmp_path / "run"), "s", units_of(log), False)
    assert not list((tmp_path / "run").rglob(".*"))
    assert squares(measured(toy(tmp_path / "run"), "s", units_of(log), False)) == SQUARES
    assert attempts_of(log) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


def test_more_is_measured_by_the_same_code_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, units = tmp_path / "log", units_of(tmp_path / "log")
    measured(toy(tmp_path / "run"), "s", units[:2], False)
    other = {**versions(), CODE: "0123456789ab"}
    monkeypatch.setattr("gatelens.runs.run.versions", lambda: other)
    again = toy(tmp_path / "run")
    assert squares(measured(again, "s", units[:2], False)) == SQUARES[:2]  # nothing is missing
    with pytest.raises(
        OutputError, match=r"begun with other code \(gatelens' code: there '.*', now '0123"
    ) as one:
        measured(again, "s", units, False)
    assert "GATELENS_MIXED_CODE=1" in str(one.value) and attempts_of(log) == {0: 1, 1: 1}
    monkeypatch.setenv("GATELENS_MIXED_CODE", "1")
    for _ in range(2):
        assert squares(measured(again, "s", units, False)) == SQUARES
    assert Run.load(tmp_path / "run").manifest["info"]["also_measured_with"] == [other]


def test_the_code_that_measures_is_known_from_its_files(tmp_path: Path) -> None:
    files = [
        "measures/mean.py",
        "plots/bars.py",
        "studies/report.py",
        "plots/templates/report.css",
        "units.py",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1")
    codes = [code_of(tmp_path)]
    for name in files:
        (tmp_path / name).write_text("a = 2")
        codes.append(code_of(tmp_path))
    changed = [name for name, before, after in zip(files, codes, codes[1:], strict=False) if before != after]
    assert changed == ["measures/mean.py", "units.py"]


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_missing_is_read_off_one_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    run = toy(tmp_path / "run" if on_disk else None)
    names = [f"org/{i}" for i in range(6)]
    units = [Unit(name, 1, partial(square, tmp_path, i, "")) for i, name in enumerate(names)]
    assert run.missing("s", names) == set(names)
    measure_missing(run, "s", units[:2], InProcess())
    asked: list[str] = []
    has_batch = run.has_batch
    monkeypatch.setattr(
        run, "has_batch", lambda section, name: (asked.append(name), has_batch(section, name))[1]
    )
    assert run.missing("s", names) == set(names[2:]) and sorted(asked) == names[:2]
    assert run.missing("t", names) == set(names)
