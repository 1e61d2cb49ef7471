"""Whatever is done to the files of a run: it is as good as it was, or one line says what is damaged and what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import gatelens as gl
from gatelens.errors import OutputError
from gatelens.runs import Run
from gatelens.studies.compare import compare_text
from study_helpers import synthetic_run
from toy_study import run_toy, tables_of

OTHER = pd.DataFrame({"nothing": [1, 2]})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def garbage_within(file: Path) -> None:
    """The ends of a Parquet file are whole, what is between them is not."""
    data = file.read_bytes()
    file.write_bytes(data[:4] + b"\xff" * (len(data) - 8) + data[-4:])


def other_table(file: Path) -> None:
    OTHER.to_parquet(file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "thing").write_text("x")


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(data)


ANY: dict[str, Callable[[Path], Any]] = {
    "gone": os.unlink,
    "cut": cut,
    "empty": content(b""),
    "garbage": content(b"\x00\xffgarbage" * 9),
    "a folder": a_folder,
}
PARQUET = {**ANY, "garbage within": garbage_within, "another table": other_table}
JSON = {**ANY, **{text: content(text.encode()) for text in ("null", "[]", "{}", "7", '"x"', "[" * 100_000)}}
LAST = [f"{name}.json" for name in ("verdict", "tokens")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "r"
    synthetic_run(folder, "narrow", n=20)
    return folder


def in_one_line(call: Callable[[], Any]) -> str:
    """The error's text; empty where there is none. Nothing but an OutputError may come."""
    try:
        call()
    except OutputError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 600, said
        assert any(
            word in said for word in ("delete", "run the study again", "run the same command again")
        ), said
        return said
    return ""


@pytest.mark.parametrize("how", PARQUET)
def test_damaged_tables(whole: Path, tmp_path: Path, how: str) -> None:
    for name in ("knockout", "attention"):
        check(whole, tmp_path / name, f"{name}.parquet", PARQUET[how], must=True)


@pytest.mark.parametrize("how", JSON)
def test_damaged_values(whole: Path, tmp_path: Path, how: str) -> None:
    for file in LAST:
        check(whole, tmp_path / file, file, JSON[how], must=file == "verdict.json")


def check(whole: Path, folder: Path, file: str, damage: Callable[[Path], Any], must: bool) -> None:
    """A run with one damaged file, as the command line and Python read it."""
    shutil.copytree(whole, folder)
    damage(folder / file)
    run = Run.load(folder)
    calls = (
        lambda: gl.views.render_report(run),
        lambda: gl.views.compare(run, Run.load(whole)),
        lambda: compare_text(Run.load(whole), run),
        lambda: gl.views.compare_html(run, run) if file == "verdict.json" else None,
    )
    said = [in_one_line(call) for call in calls]
    assert any(said) or not must
    if file == "verdict.json":
        assert "verdict" in said[0] and "verdict" in said[2]


@pytest.fixture(scope="module")
def undisturbed() -> Run:
    return run_toy()


def damaged_shards(how: str, folder: Path) -> str:
    """Damage a batch of the toy study; what the error must name, empty where the study mends it by itself."""
    shards = folder / "shards"
    batch = shards / "squares" / "squares-01"
    table = batch / "sums.parquet"
    if how in PARQUET and how != "another table":
        PARQUET[how](table)
        return "shards/squares/squares-01" if how in ("garbage within", "a folder") else ""
    if how == "empty folder":
        shutil.rmtree(batch)
        batch.mkdir()
    elif how == "other things in it":
        shutil.rmtree(batch)
        batch.mkdir()
        (batch / "notes.txt").write_text("x")
    else:
        place = {"batch is a file": batch, "section is a file": batch.parent, "shards is a file": shards}[how]
        shutil.rmtree(place)
        place.write_text("x")
        return str(place)
    return ""


SHARDS = [h for h in PARQUET if h != "another table"]
SHARDS += ["empty folder", "other things in it", "batch is a file", "section is a file", "shards is a file"]


@pytest.mark.parametrize("how", SHARDS)
def test_a_damaged_batch_is_measured_again_or_named(tmp_path: Path, undisturbed: Run, how: str) -> None:
    """A table that is gone must not be a silent gap in the numbers."""
    folder = tmp_path / "r"
    run_toy(folder)
    named = damaged_shards(how, folder)
    said = in_one_line(lambda: run_toy(folder))
    assert bool(said) == bool(named) and named in said, said
    if named:  # what the line says is enough
        place = Path(named) if Path(named).is_absolute() else folder / "shards" / "squares" / "squares-01"
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        assert in_one_line(lambda: run_toy(folder)) == ""
    assert dict(tables_of(Run.load(folder))) == dict(tables_of(undisturbed))


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_toy(tmp_path / "r")

    def refused(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    run = Run.load(tmp_path / "r")
    monkeypatch.setattr(Path, "iterdir", refused)
    monkeypatch.setattr(Path, "read_bytes", refused)
    calls = (
        lambda: Run.load(tmp_path / "r"),
        run.tables,
        lambda: run.json("verdict"),
        lambda: run_toy(tmp_path / "r"),
    )
    for call in calls:
        assert "Permission denied; make it readable, or delete it" in in_one_line(call)


@pytest.mark.parametrize("path", [5, None, b"x", "a\0b"])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(OutputError, match="is not a folder"):
        Run.load(path)


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="holds no run"):
        Run.load(tmp_path / "file")


@pytest.mark.parametrize("changed", [{"stages": []}, {"stages": None}, {"settings": None}, {"format": "x"}])
def test_a_damaged_manifest_is_one_line(whole: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    shutil.copytree(whole, tmp_path / "r")
    file = tmp_path / "r" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    said = in_one_line(lambda: gl.views.render_report(Run.load(tmp_path / "r")))
    assert ("manifest.json' is damaged" in said) == ("stages" not in changed)
