"""Files and folders are written whole or not at all, also by several writers at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import gatelens.files
import pytest
from gatelens.files import check_writable, is_partial, is_whole, write_atomic, write_folder_atomic, write_new

from gatelens.errors import OutputError

WHOLE = b"PAR1 rows PAR1"
FILES = {"a.parquet": WHOLE, "b.parquet": WHOLE + WHOLE}


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot write"):
            check_writable(path)
    with pytest.raises(OutputError, match="name too long"):
        check_writable(tmp_path / ("x" * 300))
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(OutputError, match="cannot write"):
            check_writable(tmp_path / "locked")


def test_a_check_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_writable(tmp_path / "new" / "run") == tmp_path / "new" / "run"
    monkeypatch.chdir(tmp_path)
    check_writable("other/run")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    write_atomic(file, b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write_atomic(file, b"new")
    assert content(tmp_path) == {"a": b"old"}


def test_a_failed_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gatelens.files, "_write", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*folder.*No space left"):
        write_folder_atomic(tmp_path / "folder", FILES)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    monkeypatch.undo()
    with pytest.raises(OutputError, match="cannot write"):
        write_folder_atomic(tmp_path / "file", FILES)
    assert content(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_has_one_author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refuse)  # some file systems have none
    assert write_new(tmp_path / "below" / "a", b"first")
    assert not write_new(tmp_path / "below" / "a", b"second")
    assert content(tmp_path / "below") == {"a": b"first"}


def test_the_first_whole_folder_stays(tmp_path: Path) -> None:
    write_folder_atomic(tmp_path / "f", FILES)
    write_folder_atomic(tmp_path / "f", dict.fromkeys(FILES, WHOLE * 3))
    assert content(tmp_path / "f") == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_damaged_folder_is_repaired_in_place(tmp_path: Path) -> None:
    write_folder_atomic(tmp_path / "f", FILES)
    (tmp_path / "f" / "a.parquet").write_bytes(WHOLE[:-2])
    write_folder_atomic(tmp_path / "f", FILES)
    assert content(tmp_path / "f") == FILES
    (tmp_path / "f" / "b.parquet").unlink()
    write_folder_atomic(tmp_path / "f", FILES)
    assert content(tmp_path / "f") == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_appears_just_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def late(self: Path, target: Path) -> Path:
        target.mkdir()
        for name, data in FILES.items():
            (target / name).write_bytes(data)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", late)
    write_folder_atomic(tmp_path / "f", FILES)
    assert content(tmp_path / "f") == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_many_writers_of_one_folder(tmp_path: Path) -> None:
    """Once the folder is there, a reader finds it whole, whoever writes."""
    errors: list[BaseException] = []
    start = threading.Barrier(9)

    def write() -> None:
        try:
            start.wait()
            for i in range(20):
                write_folder_atomic(tmp_path / f"f{i}", FILES)
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        try:
            start.wait()
            for i in range(20):
                while not (tmp_path / f"f{i}").exists() and not errors:
                    pass
                for _ in range(20):
                    assert content(tmp_path / f"f{i}") == FILES
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=target) for target in [write] * 6 + [read] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(tmp_path.iterdir())) == 20


def test_whole_and_partial(tmp_path: Path) -> None:
    cut, other = tmp_path / "a.parquet", tmp_path / "a.json"
    assert not is_whole(cut)
    for data in (b"", b"PAR", WHOLE[:-1]):
        cut.write_bytes(data)
        assert not is_whole(cut)
    cut.write_bytes(WHOLE)
    other.write_bytes(b"")
    assert is_whole(cut) and is_whole(other) and not is_whole(tmp_path)
    assert is_partial(tmp_path / ".a.parquet.0123456789ab.part")
    assert not is_partial(cut) and not is_partial(tmp_path / "a.part")
