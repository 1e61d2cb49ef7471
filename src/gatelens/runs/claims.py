"""Which batches a process measures at the moment, so that others at work in the same folder take other ones."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from urllib.parse import quote

from gatelens.atomic_files import writable

if sys.platform != "win32":
    import fcntl


class Claims:
    """Claims on the batches of a section; those that are still held end with the block.

    A claim is a lock on a hidden file of the section's folder. The system gives it up when its process ends, however
    it ends, so no claim has to be cleared by hand. On a file system without locks, on Windows and in memory every
    claim succeeds: two processes may then measure the same batch, of which the first to be whole is kept.

    Args:
        folder: of the section's batches; None keeps no claims.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if sys.platform == "win32" else folder
        self._held: dict[str, int] = {}  # open files by name

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Claim a batch; False where another process measures it now.

        Raises:
            OutputError: the folder cannot be written to.
        """
        if self._folder is None:
            return True
        file = self._file(name)
        with writable(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            while True:
                opened = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
                if not _lock(opened, wait=False):
                    os.close(opened)
                    return False
                if _is(file, opened):
                    self._held[name] = opened
                    return True
                os.close(opened)  # who held it has deleted the file since it was opened here

    def release(self, name: str) -> None:
        """Give up the claim on a batch, if it is held."""
        opened = self._held.pop(name, None)
        if opened is not None:
            with contextlib.suppress(OSError):
                self._file(name).unlink()  # before the lock goes, so that the next makes a new file
            _unlock(opened)
            os.close(opened)

    def wait(self, name: str) -> None:
        """Wait until no other process claims a batch: it is measured, or was given up."""
        with contextlib.suppress(FileNotFoundError):
            opened = os.open(self._file(name), os.O_RDWR)
            try:
                _lock(opened, wait=True)
            finally:
                os.close(opened)

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f".{folder_name(name)}.lock"


def folder_name(batch: str) -> str:
    """The name of a batch's folder; names of data sets in it may hold any character."""
    return quote(batch, safe=" (),")


def _lock(opened: int, wait: bool) -> bool:
    """Lock an open file, or say that another has. True as well where files cannot be locked."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _unlock(opened: int) -> None:
    """Also for a process that was forked meanwhile and has the file open too."""
    with contextlib.suppress(OSError):
        fcntl.flock(opened, fcntl.LOCK_UN)


def _is(file: Path, opened: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(opened))
    except FileNotFoundError:
        return False
