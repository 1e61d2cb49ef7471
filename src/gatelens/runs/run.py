"""A run on disk: settings, tables and files, each written whole or not at all.

A run is a folder. ``manifest.json`` says what was asked for and is written once; other settings in the same folder are
an error. What a study measured of one batch is a folder ``shards/SECTION/BATCH`` of Parquet tables, renamed into place
when all of it is written; what it made of them are ``NAME.parquet``, ``NAME.json`` and other files. A thing is finished
when it is there under its name, so a run that was cut short resumes where it stopped, and several writers lose nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pandas as pd
import pyarrow.parquet as pq

from gatelens import atomic_files
from gatelens.atomic_files import (
    as_path,
    check_writable,
    is_partial,
    is_whole,
    listed,
    readable,
    writable,
    write_atomic,
)
from gatelens.errors import OutputError
from gatelens.runs.claims import Claims, folder_name
from gatelens.runs.manifest import MANIFEST, differences, new_manifest, read_manifest, versions

SHARDS = "shards"
MIXED = "GATELENS_MIXED_CODE"  # of the environment: measure on, whatever measured the rest
_SUFFIXES = (".parquet", ".json", ".html", ".png", ".safetensors")
Read = TypeVar("Read")
# in the metadata of each table of a batch: what it took, and the names of all its tables
_SECONDS, _TABLES = "seconds", "tables"


class Run:
    """One run: open it to work (:meth:`open`), or read one (:meth:`load`).

    Attributes:
        path: the folder, or None for a run kept in memory only.
        manifest: format, study, settings, info (device, bad rows left out…), versions and time of its start.

    Example:
        >>> import pandas as pd
        >>> run = gl.Run.open(folder, study="mine", settings={"seed": 0})
        >>> run.save("scores", pd.DataFrame({"layer": [0, 1], "drop": [0.5, 0.0]}))
        >>> gl.Run.load(folder).table("scores")["drop"].tolist()
        [0.5, 0.0]
    """

    def __init__(self, path: Path | None, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._memory: dict[str, bytes] = {}
        self._places: dict[str, list[str]] = {}  # files in memory, by folder of a batch

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else str(self.path)
        return f"Run({self.study}, {where:.200}; tables: {', '.join(self.tables()) or 'none yet':.600})"

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None,
        *,
        study: str,
        settings: Mapping[str, Any],
        info: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a run in ``path``, or continue the one there; ``path=None`` keeps everything in memory.

        Raises:
            OutputError: the folder can't be written, holds something else, or a run with other settings.
        """
        fresh = new_manifest(study, settings, info or {})
        if path is None:
            return cls(None, fresh)
        folder = cls.check_folder(path, study)
        if atomic_files.write_new(folder / MANIFEST, _json_bytes(fresh)):
            return cls(folder, fresh)
        run = cls.load(folder)
        changed = differences(run.settings, fresh["settings"])
        if changed:
            raise OutputError(
                f"{str(folder)!r} holds a run with other settings ({changed}); choose another folder or delete it"
            )
        return run

    @classmethod
    def check_folder(cls, path: str | os.PathLike[str], study: str) -> Path:
        """The folder, when a run of a study can be started or continued there; asked before its settings are known.

        Raises:
            OutputError: the folder can't be written, holds something else, a damaged run, or one of another study.
        """
        folder = check_writable(path)
        with readable(folder):
            begun = (folder / MANIFEST).exists()
            there = list(folder.iterdir()) if folder.exists() else []
            others = [p for p in there if not is_partial(p) and p.name != MANIFEST]
        if begun:
            run = cls.load(folder)
            if run.study != study:
                raise OutputError(
                    f"{str(folder)!r} holds a run of {run.study!r}, not of {study!r}; choose another folder"
                )
        else:
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                first = min(p.name for p in others)
                raise OutputError(
                    f"{str(folder)!r} is not a run but holds {first!r}{more}; choose an empty or new folder"
                )
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run.

        Raises:
            OutputError: no run there, one that can't be read, or one of another format.
        """
        folder = as_path(path)
        return cls(folder, read_manifest(folder))

    @property
    def study(self) -> str:
        """The study's name."""
        return self.manifest["study"]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the call."""
        return self.manifest["settings"]

    @property
    def label(self) -> str:
        """The folder as text, for messages."""
        return "(in memory)" if self.path is None else str(self.path)

    def note(self, **info: Any) -> None:
        """Add to the manifest's info what happened in the run, such as bad rows left out; only the runner does this."""
        if {**self.manifest["info"], **info} != self.manifest["info"]:
            self.manifest["info"] |= info
            if self.path is not None:
                write_atomic(self.path / MANIFEST, _json_bytes(self.manifest))

    def withdraw(self) -> None:
        """Take back a run that holds nothing yet: its settings proved impossible, so it could not be continued."""
        if self.path is None:
            return
        for empty in (*(self.path / SHARDS).glob("*"), self.path / SHARDS):
            with contextlib.suppress(OSError):
                empty.rmdir()
        with contextlib.suppress(OSError):  # another process works there, or removed it too
            if all(p.name == MANIFEST or is_partial(p) for p in self.path.iterdir()):
                (self.path / MANIFEST).unlink(missing_ok=True)
                self.path.rmdir()

    # -- what was measured of a batch

    def check_versions(self) -> None:
        """Called before more is measured: a run must not mix numbers of different code or libraries.

        With ``GATELENS_MIXED_CODE=1`` they may, and the manifest says so.

        Raises:
            OutputError: the run was begun with other versions of what decides the numbers.
        """
        changed = differences(self.manifest["versions"], versions())
        if not changed:
            return
        if os.environ.get(MIXED) != "1":
            raise OutputError(
                f"{self.label!r} was begun with other code ({changed}), so what is missing may not fit what is there; "
                f"finish it with that code, choose another folder, or set {MIXED}=1 if the change alters no number"
            )
        known = self.manifest["info"].get("also_measured_with", [])
        if versions() not in known:
            self.note(also_measured_with=[*known, dict(versions())])

    def claims(self, section: str) -> Claims:
        """Claims on batches of a section, so that others in the same folder measure other ones."""
        return Claims(None if self.path is None else self.path / SHARDS / section)

    def missing(self, section: str, batches: Iterable[str]) -> set[str]:
        """Those of these batches that are not measured; known mostly from a listing of the folder."""
        there = self._measured(section)
        return {
            name for name in batches if folder_name(name) not in there or not self.has_batch(section, name)
        }

    def has_batch(self, section: str, batch: str) -> bool:
        """Whether all tables of a batch are there."""
        files = self._batch_files(section, batch)
        if not files or not all(self._is_there(file) for file in files):
            return False
        there = [Path(file).stem for file in files]
        return set(self._noted(files[0]).get(_TABLES, there)) == set(there)

    def save_batch(
        self, section: str, batch: str, tables: Mapping[str, pd.DataFrame], seconds: float = 0.0
    ) -> None:
        """Keep the tables of a batch, all of them or none."""
        noted = {_SECONDS: round(seconds, 3), _TABLES: sorted(tables)}
        files = {f"{name}.parquet": _parquet_bytes(t, noted) for name, t in tables.items()}
        place = _batch_place(section, batch)
        if self.path is None:
            self._memory.update({f"{place}/{name}": data for name, data in files.items()})
            self._places[place] = [f"{place}/{name}" for name in files]
        else:
            atomic_files.write_folder_atomic(self.path / place, files)

    def batch(self, section: str, batch: str) -> dict[str, pd.DataFrame]:
        """The tables of a measured batch, by name.

        Raises:
            OutputError: it is not measured, or a file is damaged.
        """
        files = self._batch_files(section, batch)
        if not files:
            raise OutputError(
                f"run {self.label} has no tables of batch {batch!r} of section {section!r}; run the study again to "
                "measure it"
            )
        tables = {Path(file).stem: self._table(file) for file in files}
        for table in tables.values():
            table.attrs.clear()  # what it took is not part of what was measured
        return tables

    def seconds(self) -> float:
        """Seconds of measuring in total, over all sessions that worked on the run."""
        files = [Path(n) for n in self._memory if n.startswith(f"{SHARDS}/")]
        if self.path is not None:
            whole = [p for p in (self.path / SHARDS).glob("*/*/*.parquet") if not is_partial(p.parent)]
            files = [p.relative_to(self.path) for p in sorted(whole)]
        first = {file.parent: str(file) for file in reversed(files)}  # each table of a batch says the same
        return sum(float(self._noted(file).get(_SECONDS, 0.0)) for file in first.values())

    def _batch_files(self, section: str, batch: str) -> list[str]:
        place = _batch_place(section, batch)
        if self.path is None:
            return self._places.get(place, [])
        return sorted(f"{place}/{name}" for name in listed(self.path / place) if name.endswith(".parquet"))

    def _measured(self, section: str) -> set[str]:
        """Names of the folders of a section's batches."""
        if self.path is not None:
            return set(listed(self.path / SHARDS / section))
        places = (place.rsplit("/", 1) for place in self._places)
        return {name for folder, name in places if folder == f"{SHARDS}/{section}"}

    # -- what was made of it

    def has(self, name: str) -> bool:
        """Whether there is a finished table, JSON value or file of this name."""
        return self._find(name) is not None

    def save(self, name: str, value: Any) -> None:
        """Store a DataFrame as ``NAME.parquet``, bytes as ``NAME``, what else JSON can hold as ``NAME.json``."""
        if isinstance(value, pd.DataFrame):
            self._store(f"{name}.parquet", _parquet_bytes(value))
        elif isinstance(value, bytes):
            self._store(name, value)
        else:
            self._store(f"{name}.json", _json_bytes(value))

    def remove(self, name: str) -> None:
        """Delete a stored JSON value, if there is one."""
        file = f"{name}.json"
        self._memory.pop(file, None)
        if self.path is not None:
            with writable(self.path / file):
                (self.path / file).unlink(missing_ok=True)

    def table(self, name: str) -> pd.DataFrame:
        """A stored table.

        Raises:
            OutputError: the run has no such finished table, or its file is damaged.
        """
        return self._table(self._need(name, ".parquet"))

    def json(self, name: str) -> Any:
        """A stored JSON value.

        Raises:
            OutputError: the run has no such finished value, or its file is damaged.
        """
        file = self._need(name, ".json")
        text = self._bytes(file)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise OutputError(f"{file!r} of run {self.label} is damaged; delete it and run again") from error

    def file(self, name: str) -> bytes:
        """A stored file's content.

        Raises:
            OutputError: the run has no such finished file.
        """
        return self._bytes(self._need(name))

    def tables(self) -> list[str]:
        """Names of the finished tables, batches left out."""
        return [n.removesuffix(".parquet") for n in self._names() if n.endswith(".parquet")]

    # -- files

    def _names(self) -> list[str]:
        if self.path is None:
            return [n for n in self._memory if not n.startswith(f"{SHARDS}/")]
        with readable(self.path):
            named = sorted(
                p.name for p in self.path.iterdir() if p.suffix in _SUFFIXES and p.name != MANIFEST
            )
        return [name for name in named if self._is_there(name)]

    def _find(self, name: str, suffix: str | None = None) -> str | None:
        files = [name + ending for ending in ((suffix,) if suffix else _SUFFIXES)]
        return next((file for file in files if self._is_there(file)), None)

    def _is_there(self, file: str) -> bool:
        if self.path is None:
            return file in self._memory
        with readable(self.path / file):
            return is_whole(self.path / file)

    def _need(self, name: str, suffix: str | None = None) -> str:
        file = self._find(name, suffix)
        if file is None:
            known = ", ".join(Path(n).stem for n in self._names()) or "nothing yet"
            raise OutputError(
                f"run {self.label} has no finished {name!r} (it has: {known}); run the study again to finish it"
            )
        return file

    def _table(self, file: str) -> pd.DataFrame:
        return self._parquet(file, pd.read_parquet)

    def _noted(self, file: str) -> dict[str, Any]:
        """What is stored with a table of a batch; the table itself is not read."""
        kept = self._parquet(file, pq.read_schema).metadata or {}
        return json.loads(kept.get(b"PANDAS_ATTRS", b"{}"))

    def _parquet(self, file: str, read: Callable[[BinaryIO], Read]) -> Read:
        if self.path is None:
            return read(io.BytesIO(self._memory[file]))
        with readable(self.path / file):
            held = open(self.path / file, "rb")  # noqa: SIM115  (closed below)
        try:
            with held:
                return read(held)
        except Exception as error:  # pyarrow raises many kinds
            place = str(Path(file).parent) if file.startswith(f"{SHARDS}/") else file
            message = f"{file!r} of run {self.label} is damaged; delete {place!r} there and run again"
            raise OutputError(message) from error

    def _bytes(self, file: str) -> bytes:
        if self.path is None:
            return self._memory[file]
        with readable(self.path / file):
            return (self.path / file).read_bytes()

    def _store(self, file: str, data: bytes) -> None:
        if self.path is None:
            self._memory[file] = data
        else:
            write_atomic(self.path / file, data)


def _parquet_bytes(table: pd.DataFrame, noted: Mapping[str, Any] | None = None) -> bytes:
    buffer = io.BytesIO()
    if noted is not None:
        table = table.copy(deep=False)
        table.attrs |= noted
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _batch_place(section: str, batch: str) -> str:
    return f"{SHARDS}/{section}/{folder_name(batch)}"


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()
