"""Files and folders written completely or not at all; OutputError says what the disk refused."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gatelens.errors import OutputError

PARTIAL = ".part"  # ends the name of what is being written


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path that was given.

    Raises:
        OutputError: it is none.
    """
    try:
        there = Path(path).expanduser()
        if "\0" in str(there):
            raise ValueError("a name cannot hold a NUL byte")
    except (TypeError, ValueError, RuntimeError) as error:  # the last is of an unknown user's home
        raise OutputError(f"{path!r} is not a folder: {error}; give another") from error
    return there


@contextmanager
def readable(place: Path) -> Iterator[None]:
    """What the disk refuses to let the block read is said in a line."""
    try:
        yield
    except OSError as error:
        what = f"cannot read {str(error.filename or place)!r}: {error.strerror}"
        raise OutputError(f"{what}; make it readable, or delete it and run again") from error


@contextmanager
def writable(place: Path) -> Iterator[None]:
    """What the disk refuses to let the block write, or delete, is said in a line."""
    try:
        yield
    except OSError as error:
        taken = isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError)
        fix = "; delete what stands there and run again" if taken else ""
        raise OutputError(f"cannot write {str(place)!r}: {error.strerror}{fix}") from error


def listed(folder: Path) -> list[str]:
    """Names of what is in a folder; none where it is not there.

    Raises:
        OutputError: it cannot be read, or it or a folder it should lie in is a file.
    """
    with readable(folder):
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            part = next(p for p in (folder, *folder.parents) if p.is_file())
            raise OutputError(
                f"{str(part)!r} is a file where a folder should be; delete it and run again"
            ) from None


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Prove that a folder can be written to, or made where it is not there yet, before any compute.

    Nothing is made, so that others who check the same path at the same time do not meet half-made folders.

    Raises:
        OutputError: the path is a file, can't be made, or can't be written to.
    """
    folder = as_path(path)
    try:
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(
            dir=existing
        ):  # has no name: nothing stays, also of a process that is killed
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {str(path)!r}: {error.strerror}; choose another folder"
        ) from error
    return folder


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the whole new one, never a part."""
    with written_whole(path) as temporary:
        _write(temporary, data)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A hidden file to write to, which takes the name ``path`` when the block ends without an error."""
    with _beside(path) as temporary:
        yield temporary
        with open(temporary, "rb") as opened:
            os.fsync(opened.fileno())
        os.replace(temporary, path)


def write_new(path: Path, data: bytes) -> bool:
    """Write a file that is not there yet, whole or not at all; whether this writer was the first."""
    with _beside(path) as temporary:
        _write(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.replace(temporary, path)
    return True


def write_folder_atomic(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that readers see all of them or none.

    Where several write the same folder, the first that is whole stays. Files of a damaged one are replaced in place,
    so that at no time there is no folder.
    """
    partial = _hidden(target)
    try:
        with writable(target):
            partial.mkdir(parents=True)
            for name, data in files.items():
                _write(partial / name, data)
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                for name in files:
                    if not is_whole(target / name):
                        os.replace(partial / name, target / name)
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


def is_partial(file: Path) -> bool:
    """Whether a file or folder is being written, or was when its writer ended; it is never read."""
    return file.name.startswith(".") and file.suffix == PARTIAL


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for a file in the same folder; the file goes when the block ends."""
    temporary = _hidden(path)
    try:
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write(file: Path, data: bytes) -> None:
    with open(file, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _hidden(target: Path) -> Path:
    """An unused name in the same folder, so that renaming moves nothing."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
