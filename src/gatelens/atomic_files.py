"""Files and folders written whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from gatelens.errors import OutputError


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Prove that the folder can be made and written to, before any compute; leaves nothing behind.

    Raises:
        OutputError: the path is a file, can't be made, or can't be written to.
    """
    folder = Path(path).expanduser()
    try:
        made = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
        for new in made:  # innermost first: a run that fails before it has anything to write leaves no folder
            new.rmdir()
    except OSError as error:
        raise OutputError(
            f"cannot write to {str(folder)!r}: {error.strerror}; choose another folder"
        ) from error
    return folder


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the whole new one, never a part.

    Raises:
        OutputError: the disk refused.
    """
    temporary = _hidden(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_atomic(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that readers see all of them or none; a folder of that name is replaced.

    Raises:
        OutputError: the disk refused.
    """
    partial = _hidden(target)
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            _write(partial / name, data)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {str(target)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_whole(file: Path) -> bool:
    """Whether a file is there, and for Parquet whether its end is."""
    if not file.is_file():
        return False
    if file.suffix != ".parquet":
        return True
    with open(file, "rb") as opened:
        opened.seek(0, os.SEEK_END)
        opened.seek(max(0, opened.tell() - 4))
        return opened.read() == b"PAR1"


def _write(file: Path, data: bytes) -> None:
    with open(file, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _hidden(target: Path) -> Path:
    """A name nobody has, in the same folder, so that renaming moves nothing."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")
