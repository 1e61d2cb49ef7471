"""The machine that runs studies: rounds of batches, absences, resuming after a kill, and several writers."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers.utils import logging as hf_logging

import gatelens
from gatelens import atomic_files
from gatelens.errors import DataError, OutputError
from gatelens.executors import InProcess
from gatelens.runs import Run
from gatelens.studies.report import render_report
from gatelens.studies.runner import measure_section, run_study
from gatelens.studies.section import Absent, Batch, Measured
from toy_study import MODEL, STUDY, Numbers, measure_apart, run_toy, setup_in, tables_of

ABSENT = ["picky (numbers above 1 are too many)", "idle (there is nothing to do)"]


@pytest.fixture(scope="module")
def whole() -> Run:
    """The study without interruption, in memory."""
    return run_toy()


class Counting(InProcess):
    """In this process, with the names of the batches that were measured."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def run(self, units: Any, done: Any) -> Any:
        for result in super().run(units, done):
            self.names.append(result.unit.name)
            yield result


def test_rounds_are_planned_from_what_earlier_ones_gave(whole: Run) -> None:
    counting = Counting()
    setup = setup_in(None)
    measured = measure_section(STUDY.section("rounds"), replace(setup, executor=counting))
    assert counting.names == ["first", "second-0", "second-1", "second-2", "second-3", "third"]
    assert list(measured.table("squares", "second").square) == [0, 1, 4, 9]
    assert whole.table("rounds").number.tolist() == [2, 3, 0, 1, 2, 3, 0, 1, 4, 9]
    again = Counting()
    measure_section(STUDY.section("rounds"), replace(setup, executor=again))
    assert again.names == []


def test_what_is_absent_is_named_and_the_rest_measured(whole: Run, tmp_path: Path) -> None:
    """In batches and in measure; what was measured of the section before is in no table."""
    for run in (whole, run_toy(tmp_path), run_toy(tmp_path)):
        assert run.json("absent") == ABSENT
        assert run.tables() == ["squares", "sums", "rounds"] or run.path is not None
        assert run.json("verdict")["headline"] == "Squared"
    page = render_report(STUDY, whole)
    assert all(reason in page for reason in ABSENT)


def test_finished_batches_are_not_measured_again(tmp_path: Path, whole: Run) -> None:
    first, second = Counting(), Counting()
    run_toy(tmp_path, executor=first)
    assert len(first.names) == 4 + 6 + 1 and not second.names
    cut = tmp_path / "shards" / "rounds" / "second-2" / "sums.parquet"
    cut.write_bytes(cut.read_bytes()[:-5])
    (tmp_path / "shards" / "squares" / "squares-01" / "sums.parquet").write_bytes(b"")
    (tmp_path / "squares.parquet").write_bytes(b"PAR")
    (tmp_path / "report.html").unlink()
    run = run_toy(tmp_path, executor=second)
    assert second.names == ["squares-01", "second-2"]  # and the one that is absent fails anew
    assert dict(tables_of(run)) == dict(tables_of(whole))
    assert (tmp_path / "report.html").exists()


def test_killed_at_any_batch(tmp_path: Path, processes: Any, whole: Run) -> None:
    """A process is killed a moment after each further batch; the last finishes what all of them began."""
    moments, shards = random.Random(0), tmp_path / "r" / "shards"
    kills = 0
    for target in range(1, 12):
        process = processes.Process(target=run_toy, args=(str(tmp_path / "r"), 0.02))
        process.start()
        while process.is_alive() and len(list(shards.glob("*/[!.]*"))) < target:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        kills += process.exitcode == -9
    assert kills >= 6
    assert Run.load(tmp_path / "r").seconds() >= 0
    run = run_toy(tmp_path / "r", 0.02)
    assert dict(tables_of(run)) == dict(tables_of(whole))
    assert len([p for p in shards.glob("*/*") if not p.name.startswith(".")]) == 11
    assert (tmp_path / "r" / "report.html").exists()


@pytest.mark.parametrize("moment", [1, 4, 9, 14, 20])
def test_interrupted_within_a_write(
    tmp_path: Path, whole: Run, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a notebook: nothing half-written stays, and the same call goes on."""
    write, count = atomic_files._write, 0

    def interrupted(file: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        write(file, data[: len(data) // 2] if count == moment else data)
        if count == moment:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gatelens.atomic_files._write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path / "r")
    assert not list(tmp_path.rglob("*.part"))
    assert dict(tables_of(run_toy(tmp_path / "r"))) == dict(tables_of(whole))


def test_two_processes_at_the_same_batches(tmp_path: Path, processes: Any, whole: Run) -> None:
    for repeat in range(3):
        out = tmp_path / str(repeat) / "r"
        both = [processes.Process(target=run_toy, args=(str(out), 0.01)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0]
        assert dict(tables_of(Run.load(out))) == dict(tables_of(whole))
        assert not list(out.rglob("*.part"))


def test_two_processes_at_different_sections(tmp_path: Path, processes: Any, whole: Run) -> None:
    shares = (["squares"], ["rounds"])
    both = [processes.Process(target=measure_apart, args=(str(tmp_path / "r"), s, 0.02)) for s in shares]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    setup, counting = setup_in(tmp_path / "r"), Counting()
    for name in ("squares", "rounds"):
        section = STUDY.section(name)
        concluded = section.conclude(setup, measure_section(section, replace(setup, executor=counting)))
        pd.testing.assert_frame_equal(concluded[name], whole.table(name))
    assert counting.names == []


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    run_toy(tmp_path)
    for options, named in (
        ({"seed": 3}, "seed: there 0, now 3"),
        ({"batch_size": 3}, "batch_size: there 2, now 3"),
        ({"sections": {"all": {}, "squares": {"n_times": 7}}}, "sections.squares.n_times: there 50, now 7"),
        ({"sections": "squares"}, "sections.rounds: there {}, now none"),
        ({"name": "other"}, "model: there 'toy', now 'other'"),
    ):
        with pytest.raises(OutputError) as caught:
            run_toy(tmp_path, **options)
        assert named in str(caught.value) and "choose another folder or delete it" in str(caught.value)


def test_a_limit_is_in_the_numbers_and_not_in_the_settings(tmp_path: Path) -> None:
    run = run_toy(tmp_path, limit=4)
    assert run.settings["n"] == 4 and len(run.table("squares")) == 4
    assert "limit" not in run.settings
    run_toy(tmp_path, limit=4)


def test_the_manifest_says_what_loads_the_data_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "data_given" not in run_toy().manifest["info"]  # the data were no name
    monkeypatch.setattr("gatelens.identity.resolve_data", lambda *_: Numbers())
    info = run_study(STUDY, MODEL, "emoji-scenes", batch_size=2, progress=False).manifest["info"]
    assert info["data_given"] == "emoji-scenes" and "model_given" not in info


def test_a_model_loads_without_its_bar_where_no_progress_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[bool] = []

    def loaded(*_: Any, **__: Any) -> Any:
        shown.append(hf_logging.is_progress_bar_enabled())
        return MODEL

    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", loaded)
    for progress in (True, False):
        run_study(STUDY, "some-model", Numbers(), batch_size=2, progress=progress)
    assert shown == [True, False] and hf_logging.is_progress_bar_enabled()


def test_bad_folders_cost_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", never)
    run_toy(tmp_path / "other")
    old = tmp_path / "old"
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps({"format": 1, "study": "toy", "settings": {}}))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("null")
    (tmp_path / "file").write_text("")
    for name, words in (
        ("old", "an older gatelens"),
        ("damaged", "is damaged"),
        ("file", "cannot write"),
        ("", "is not a run but holds"),
    ):
        with pytest.raises(OutputError, match=words):
            run_study(STUDY, "some-model", Numbers(), tmp_path / name, progress=False)
    with pytest.raises(OutputError, match="holds a run of 'toy', not of 'narrow-gate'"):
        gatelens.studies.narrow_gate("some-model", out=tmp_path / "other", progress=False)


def test_an_impossible_section_leaves_no_folder(tmp_path: Path) -> None:
    def impossible(*_: Any) -> list[Batch]:
        raise DataError("no such thing")

    sections = (replace(STUDY.section("squares"), batches=impossible),)
    for _ in range(2):
        with pytest.raises(DataError, match="no such thing"):
            run_study(replace(STUDY, sections=sections), MODEL, Numbers(), tmp_path / "r", batch_size=2)
        assert not (tmp_path / "r").exists()


def test_two_batches_of_one_name(tmp_path: Path) -> None:
    twice = lambda setup, measured: [Batch("same"), Batch("same")]  # noqa: E731
    with pytest.raises(ValueError, match="section 'squares' has two batches 'same'"):
        measure_section(replace(STUDY.section("squares"), batches=twice), setup_in(None))


class Forgetful(InProcess):
    """An executor that loses batches."""

    def run(self, units: Any, done: Any) -> Any:
        yield from super().run(list(units)[1:], done)


def test_a_batch_an_executor_loses_is_no_silent_gap() -> None:
    with pytest.raises(OutputError, match="no tables of batch 'squares-00' of section 'squares'"):
        run_toy(executor=Forgetful())


class Backwards(InProcess):
    """An executor whose batches are ready in another order."""

    def run(self, units: Any, done: Any) -> Any:
        yield from super().run(list(units)[::-1], done)


def test_batches_may_be_ready_in_any_order(whole: Run) -> None:
    run = run_toy(executor=Backwards(), sections="squares,rounds")
    for name in ("squares", "rounds", "sums"):
        pd.testing.assert_frame_equal(run.table(name), whole.table(name))


def test_progress_counts_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy(tmp_path, progress=True)
    assert "11/14" in capsys.readouterr().err  # picky has four batches and gives up after the first
    run_toy(tmp_path, progress=True)
    assert "0/3" in capsys.readouterr().err


def test_measured_keeps_the_order_of_the_batches() -> None:
    measured = Measured()
    for name in ("b-0", "b-1", "b-2"):
        measured[name] = {"t": pd.DataFrame({"name": [name]}), "empty": pd.DataFrame({"name": []})}
    assert list(measured.table("t").name) == ["b-0", "b-1", "b-2"]
    assert list(measured.table("t", "b-2").name) == ["b-2"]
    assert measured.table("empty").empty and measured.table("nowhere").empty
    assert "b-1" in measured and "b-3" not in measured


def test_absence_in_measure_is_an_absence_on_resuming_too(tmp_path: Path) -> None:
    setup = setup_in(tmp_path)
    for _ in range(2):
        with pytest.raises(Absent, match="numbers above 1"):
            measure_section(STUDY.section("picky"), setup)
