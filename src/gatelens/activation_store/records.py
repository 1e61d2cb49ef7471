"""What is known about the files of each shard, written when it is complete, and whether they are unchanged.

A file that was touched after the record was written (changed, copied, restored) is compared with its checksum when a
process first reads it. Others are trusted, so that reading costs no more than the copy.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from gatelens.activation_store.files import read_tables
from gatelens.activation_store.layout import record_file, records_folder
from gatelens.errors import OutputError

COLUMNS = ("rows", "examples", "file", "bytes", "crc32")
_CHUNK = 1 << 22  # bytes read at once


def record_of(folder: Path, files: Sequence[Path], n_rows: int, n_examples: int) -> pd.DataFrame:
    """The record of a shard: a line a file, with its place in the folder, its length and its checksum."""
    lines = [
        (n_rows, n_examples, file.relative_to(folder).as_posix(), file.stat().st_size, checksum(file))
        for file in files
    ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def checksum(file: Path) -> int:
    """CRC-32 of all bytes of a file, as ``zlib.crc32`` and gzip have it."""
    found, room = 0, memoryview(bytearray(_CHUNK))
    with open(file, "rb", buffering=0) as opened:
        while n := opened.readinto(room):
            found = zlib.crc32(room[:n], found)
    return found


class Records:
    """The records of a store's shards.

    Attributes:
        shards: their names, in order.
        starts: the number of the first row of each, and at last how many rows there are.
        n_examples: of all.

    Raises:
        OutputError: a record is damaged; it is named.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        there = records_folder(folder)
        names = [p.name for p in there.iterdir() if not p.name.startswith(".")] if there.is_dir() else []
        self.shards = sorted(names)
        table = pd.DataFrame(columns=list(COLUMNS))
        if self.shards:
            table = read_tables([record_file(folder, name) for name in self.shards])
        if list(table) != list(COLUMNS):
            raise OutputError(
                f"{str(folder)!r} was collected by an earlier version, without checksums: collect into a new folder"
            )
        # each record starts with the file of who its rows are
        first = table[table["file"].str.startswith("rows/")]
        if len(first) != len(self.shards):
            raise OutputError(f"{str(there)!r} is damaged: delete it, and collect again into the same folder")
        self.starts = np.cumsum([0, *first["rows"]])
        self.n_examples = int(first["examples"].sum())
        self._files = {one.file: one for one in table.itertuples()}
        self._whole: set[str] = set()

    def check_every(self) -> None:
        """:meth:`check` of every file: a look at its times, and its checksum if it was touched since.

        Raises:
            OutputError: the first that is not whole, and how it is collected again.
        """
        for name in self._files:
            self.check(self.folder / name)

    def check(self, file: Path) -> None:
        """Refuse a file that is not as it was written; a process checks it once.

        Raises:
            OutputError: it is missing, cut short or changed, and how it is collected again.
        """
        name = file.relative_to(self.folder).as_posix()
        if name not in self._whole:
            wrong = self._wrong(name, self._written(file.stem))
            if wrong:
                raise self.damaged(file, wrong)
            self._whole.add(name)

    def damaged(self, file: Path, why: str) -> OutputError:
        """The error about a file, which says how it is collected again."""
        return OutputError(f"{str(file)!r} {why}; {self._fix([file.stem])}")

    def verify(self, progress: bool) -> None:
        """Compare every file with its checksum, and note in the times of the records that they are right.

        Raises:
            OutputError: some are not whole; the first are named, and how they are collected again.
        """
        wrong: dict[str, str] = {}
        size = sum(int(one.bytes) for one in self._files.values())
        with tqdm(total=size, desc="verify", unit="B", unit_scale=True, disable=not progress) as bar:
            for name, one in self._files.items():
                why = self._wrong(name, None)
                if why:
                    wrong[name] = why
                bar.update(int(one.bytes))
        damaged = sorted({Path(name).stem for name in wrong})
        for shard in self.shards:
            if shard not in damaged:
                with contextlib.suppress(OSError):  # a folder that is only read
                    os.utime(record_file(self.folder, shard))
        if wrong:
            said = ", ".join(f"{name} {why}" for name, why in list(wrong.items())[:3]) + ", …" * (
                len(wrong) > 3
            )
            raise OutputError(
                f"{len(damaged)} of {len(self.shards)} shards of {str(self.folder)!r} are damaged ({said}); "
                f"{self._fix(damaged)}"
            )
        self._whole = set(self._files)

    def _written(self, shard: str) -> int:
        """When the record was, in nanoseconds."""
        return record_file(self.folder, shard).stat().st_mtime_ns

    def _wrong(self, name: str, written: int | None) -> str:
        """What is wrong with a file, or nothing; one touched before ``written`` is not compared."""
        known: Any = self._files.get(name)
        try:
            if known is None:
                return "is not in the record of its shard"
            there = (self.folder / name).stat()
            if there.st_size != known.bytes:
                return f"is damaged: it has {there.st_size} of {known.bytes} bytes"
            touched = max(there.st_mtime_ns, there.st_ctime_ns)
            if (written is None or touched >= written) and checksum(self.folder / name) != known.crc32:
                return "is damaged: its checksum differs from the one it was written with"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return ""

    def _fix(self, shards: Sequence[str]) -> str:
        where = str(records_folder(self.folder) / shards[0])
        more = f" and {len(shards) - 1} more there ({', '.join(shards[1:6])})" if len(shards) > 1 else ""
        return f"delete {where!r}{more} and call gl.collect again with the same arguments"
