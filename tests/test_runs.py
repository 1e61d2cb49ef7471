"""Runs on disk: atomic, resumable, and refusing to mix settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from gatelens.errors import OutputError
from gatelens.runs import Run, check_writable, fingerprint, write_atomic

TABLE = pd.DataFrame({"row": ["none", "gate"], "value": [0.5, 0.1]})


def start(path: Path | None, **settings: object) -> Run:
    return Run.open(path, study="test", settings={"seed": 0, **settings}, info={"model": "tiny"})


def test_a_finished_stage_is_not_computed_again(tmp_path: Path) -> None:
    calls = []

    def compute() -> pd.DataFrame:
        calls.append(1)
        return TABLE

    for _ in range(3):
        pd.testing.assert_frame_equal(start(tmp_path / "r").stage("shards/a", compute), TABLE)
    assert len(calls) == 1
    run = Run.load(tmp_path / "r")
    assert run.tables() == []
    assert run.manifest["versions"]["python"]
    assert run.manifest["info"] == {"model": "tiny"}


def test_a_missing_or_cut_file_is_computed_again(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.save_table("a", TABLE)
    file = tmp_path / "a.parquet"
    file.write_bytes(file.read_bytes()[:-5])
    assert not start(tmp_path).done("a")
    pd.testing.assert_frame_equal(start(tmp_path).stage("a", lambda: TABLE), TABLE)
    file.unlink()
    assert not start(tmp_path).done("a")


def test_other_settings_or_study_are_refused(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(OutputError, match="seed: there 0, now 1"):
        start(tmp_path, seed=1)
    with pytest.raises(OutputError, match="holds a run of 'test'"):
        Run.open(tmp_path, study="other", settings={"seed": 0})


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        start(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot write"):
            check_writable(path)
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(OutputError, match="cannot write"):
            check_writable(tmp_path / "locked")


def test_a_failed_write_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    write_atomic(file, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "content", [b"{", b"[]", json.dumps({"format": 99, "study": "", "settings": {}, "stages": {}}).encode()]
)
def test_damaged_or_newer_manifests(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"damaged|update gatelens"):
        Run.load(tmp_path)
    with pytest.raises(OutputError, match="holds no run"):
        Run.load(tmp_path / "nowhere")


def test_asking_for_what_is_not_there_lists_what_is(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.save_json("verdict", {"a": "é"})
    assert run.json("verdict") == {"a": "é"}
    with pytest.raises(OutputError, match="no finished 'knockout'"):
        run.table("knockout")


def test_in_memory() -> None:
    run = start(None)
    run.save_file("figure", ".png", b"123")
    assert run.file("figure") == b"123"
    assert run.stage("t", lambda: TABLE).equals(TABLE)
    assert run.tables() == ["t"]


def test_fingerprint_sees_every_change() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_other_settings_are_named_by_their_path(tmp_path: Path) -> None:
    deep = {"sections": {"a": {"n": 1, "k": 2}, "b": {"n": 3}}, "seed": 0}
    Run.open(tmp_path, study="s", settings=deep)
    other = {"sections": {"a": {"n": 5, "k": 2}, "c": {"words": "x" * 99}}, "seed": 1}
    with pytest.raises(OutputError) as caught:
        Run.open(tmp_path, study="s", settings=other)
    said = str(caught.value)
    assert (
        "sections.a.n: there 1, now 5; sections.b: there {'n': 3}, now none; sections.c: there none, now"
        in said
    )
    assert "and 1 more" in said and "x" * 60 not in said


def test_a_run_without_a_stage_can_be_withdrawn(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    Run.open(folder, study="s", settings={}).withdraw()
    assert not folder.exists()
    run = Run.open(folder, study="s", settings={})
    run.save_json("a", 1)
    run.withdraw()
    assert Run.load(folder).json("a") == 1
    Run.open(None, study="s", settings={}).withdraw()  # nothing on disk to take back
