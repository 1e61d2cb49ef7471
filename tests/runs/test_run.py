"""Runs on disk: atomic, resumable, and refusing to mix settings."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gatelens.errors import OutputError
from gatelens.runs import Run
from gatelens.runs.manifest import fingerprint

TABLE = pd.DataFrame({"row": ["none", "gate"], "value": [0.5, 0.1]})


def start(path: Path | None, **settings: object) -> Run:
    return Run.open(path, study="test", settings={"seed": 0, **settings}, info={"model": "tiny"})


def refused(call: Callable[[], Any], *words: str) -> str:
    """The one line of an error that must come, with these words in it."""
    with pytest.raises(OutputError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said
    return said


def test_a_measured_batch_is_kept(tmp_path: Path) -> None:
    run = start(tmp_path / "r")
    assert not run.has_batch("part", "b-0")
    run.save_batch("part", "b-0", {"a": TABLE, "b": TABLE[:1]}, seconds=2.0)
    run.save_batch("part", "b-1", {"a": TABLE[:0]}, seconds=0.5)
    for again in (run, start(tmp_path / "r"), Run.load(tmp_path / "r")):
        assert again.has_batch("part", "b-0") and again.has_batch("part", "b-1")
        assert not again.has_batch("part", "b") and not again.has_batch("other", "b-0")
        tables = again.batch("part", "b-0")
        assert list(tables) == ["a", "b"] and not tables["a"].attrs
        pd.testing.assert_frame_equal(tables["a"], TABLE)
        assert again.seconds() == 2.5
        assert again.tables() == []
    assert run.manifest["versions"]["python"]
    assert run.manifest["info"] == {"model": "tiny"}
    with pytest.raises(OutputError, match=r"no tables of batch 'b-2' of section 'part'; run the study again"):
        run.batch("part", "b-2")


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("batch", ["caption (org/name)-0000", "../../out", "é %2F:*-0"])
def test_batches_may_be_called_anything(tmp_path: Path, folder: bool, batch: str) -> None:
    run = start(tmp_path / "r" if folder else None)
    run.save_batch("part", batch, {"a": TABLE})
    assert run.has_batch("part", batch) and list(run.batch("part", batch)) == ["a"]
    if folder:
        parents = {p.parent.parent for p in tmp_path.rglob("*.parquet")}
        assert parents == {tmp_path / "r" / "shards" / "part"}


def test_a_cut_file_of_a_batch_is_measured_again(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.save_batch("part", "b", {"a": TABLE, "b": TABLE})
    file = tmp_path / "shards" / "part" / "b" / "a.parquet"
    whole = file.read_bytes()
    for cut in (whole[:-5], whole[:3], b""):
        file.write_bytes(cut)
        assert not run.has_batch("part", "b")
        run.save_batch("part", "b", {"a": TABLE, "b": TABLE})
        assert run.has_batch("part", "b")
    file.write_bytes(b"PAR1" + b"x" * len(whole) + b"PAR1")
    with pytest.raises(OutputError, match=r"a\.parquet' of run .* is damaged; delete 'shards/part/b' there"):
        run.batch("part", "b")


def test_what_a_killed_writer_left_is_nobodys(tmp_path: Path) -> None:
    """Hidden parts keep a folder from being nothing, and are read by nobody."""
    (tmp_path / ".manifest.json.0123456789ab.part").write_bytes(b"{")
    run = start(tmp_path)
    run.save_batch("part", "b", {"a": TABLE}, seconds=1.0)
    part = tmp_path / "shards" / "part" / ".c.0123456789ab.part"
    part.mkdir()
    (part / "a.parquet").write_bytes(b"PAR")
    (tmp_path / ".table.parquet.0123456789ab.part").write_bytes(b"PAR")
    assert not run.has_batch("part", "c")
    assert run.seconds() == 1.0 and run.tables() == []
    assert start(tmp_path).has_batch("part", "b")


def test_a_missing_or_cut_table_is_not_there(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.save("a", TABLE)
    assert start(tmp_path).has("a") and run.tables() == ["a"]
    file = tmp_path / "a.parquet"
    file.write_bytes(file.read_bytes()[:-5])
    assert not start(tmp_path).has("a") and run.tables() == []
    run.save("a", TABLE)
    pd.testing.assert_frame_equal(start(tmp_path).table("a"), TABLE)
    file.unlink()
    assert not start(tmp_path).has("a")


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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe{}", b'{"format": 3}'])
def test_damaged_manifests(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    for opened in (lambda: Run.load(tmp_path), lambda: start(tmp_path)):
        assert refused(opened, str(tmp_path)).startswith(f"{str(tmp_path / 'manifest.json')!r} is damaged (")


@pytest.mark.parametrize("value", [None, [], {}, "garbage", 7, True, 1.5])
@pytest.mark.parametrize("key", ["format", "study", "settings", "fingerprint", "info", "created", "versions"])
def test_a_manifest_damaged_at_one_key(tmp_path: Path, key: str, value: Any) -> None:
    """One line that says what is wrong and what to delete; or what is read is as good as it was."""
    start(tmp_path)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    kind = type(manifest[key])
    for damaged in ({**manifest, key: value}, {k: v for k, v in manifest.items() if k != key}):
        file.write_text(json.dumps(damaged))
        if key in damaged and type(value) is kind and key not in ("settings", "fingerprint", "format"):
            assert Run.load(tmp_path).manifest == damaged
        elif key in damaged and key == "format" and value == 7 and value is not True:
            assert "newer gatelens" in refused(lambda: Run.load(tmp_path), "update gatelens")
        else:
            said = refused(lambda: Run.load(tmp_path), f"delete {str(tmp_path)!r} and run the study again")
            assert "is damaged (its " in said and len(said) < 200 + 3 * len(str(tmp_path))


def test_runs_of_other_formats(tmp_path: Path) -> None:
    """One of format 1 (``stages`` in its manifest, and tables under the names they have now), and one to come."""
    settings = {"model": "organism:gated", "n": {"class": 500}, "sections": {"knockouts": {}}, "seed": 0}
    old = {
        "format": 1,
        "study": "narrow-gate",
        "settings": settings,
        "fingerprint": fingerprint(settings),
        "info": {"device": "cpu"},
        "created": "2025-01-01T00:00:00+00:00",
        "versions": {"python": "3.11.7"},
        "stages": {"knockout": {"file": "knockout.parquet", "seconds": 1.0}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    TABLE.to_parquet(tmp_path / "knockout.parquet")
    calls = (
        lambda: Run.load(tmp_path),
        lambda: Run.open(tmp_path, study="narrow-gate", settings=settings),
        lambda: Run.check_folder(tmp_path, "narrow-gate"),
    )
    for opened in calls:
        said = refused(opened, "run the study again in a new folder")
        assert "an older gatelens (format 1, this version reads 3)" in said
    (tmp_path / "manifest.json").write_text(json.dumps({**old, "format": 99}))
    assert "a newer gatelens (format 99" in refused(lambda: Run.load(tmp_path), "update gatelens")


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no run"):
        Run.load(tmp_path / "nowhere")


def test_asking_for_what_is_not_there_lists_what_is(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.save("verdict", {"a": "é"})
    assert run.json("verdict") == {"a": "é"}
    with pytest.raises(OutputError, match="no finished 'knockout'"):
        run.table("knockout")


def test_in_memory() -> None:
    run = start(None)
    run.save("figure.png", b"123")
    assert run.file("figure") == b"123"
    run.save("t", TABLE)
    assert run.table("t").equals(TABLE)
    run.save_batch("part", "b", {"a": TABLE}, seconds=3.0)
    assert run.batch("part", "b")["a"].equals(TABLE) and not run.has_batch("part", "b-1")
    assert run.seconds() == 3.0
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


def test_a_run_that_holds_nothing_can_be_withdrawn(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    run = Run.open(folder, study="s", settings={})
    run.withdraw()
    assert not folder.exists()
    run = Run.open(folder, study="s", settings={})
    run.save("a", 1)
    run.withdraw()
    assert Run.load(folder).json("a") == 1
    Run.open(None, study="s", settings={}).withdraw()  # nothing on disk to take back


def test_a_run_can_be_withdrawn_by_two(tmp_path: Path) -> None:
    first, second = (Run.open(tmp_path / "r", study="s", settings={}) for _ in range(2))
    first.withdraw()
    second.withdraw()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_checked_before_the_settings_are_known(tmp_path: Path) -> None:
    Run.check_folder(tmp_path / "new", "test")
    assert list(tmp_path.iterdir()) == []
    start(tmp_path / "r")
    Run.check_folder(tmp_path / "r", "test")
    assert "holds a run of 'test', not of 'other'" in refused(
        lambda: Run.check_folder(tmp_path / "r", "other"), "choose another folder"
    )
    with pytest.raises(OutputError, match="is not a run but holds 'r'"):
        Run.check_folder(tmp_path, "test")


def test_several_open_one_new_folder(tmp_path: Path) -> None:
    """One of them writes the manifest; those with other settings are refused, whoever came first."""
    outcomes: list[str] = []
    begin = threading.Barrier(8)

    def opened(seed: int) -> None:
        begin.wait()
        for i in range(10):
            try:
                run = Run.open(tmp_path / f"r{i}", study="s", settings={"seed": seed})
                outcomes.append(f"{i} opened {seed} {run.manifest['settings']['seed']}")
            except OutputError as error:
                outcomes.append(f"{i} refused {seed} {'other settings' in str(error)}")

    threads = [threading.Thread(target=opened, args=(n % 2,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(10):
        seed = Run.load(tmp_path / f"r{i}").settings["seed"]
        mine = sorted(o for o in outcomes if o.startswith(f"{i} "))
        assert mine == [f"{i} opened {seed} {seed}"] * 4 + [f"{i} refused {1 - seed} True"] * 4


def test_what_comes_up_on_the_way_is_noted(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.note(bad_rows_left_out={"n": 1})
    assert Run.load(tmp_path).manifest["info"] == {"model": "tiny", "bad_rows_left_out": {"n": 1}}
    start(tmp_path)  # notes are not settings


def test_a_run_prints_in_a_line(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", study="some-study", settings={})
    assert repr(run) == f"Run(some-study, {tmp_path / 'r'}; tables: none yet)"
    run.save("numbers", pd.DataFrame({"a": [1]}))
    assert repr(run).endswith("tables: numbers)") and "in memory" in repr(
        Run.open(None, study="s", settings={})
    )
