"""A run on disk: settings, tables and files, each written whole or not at all.

A run is a folder. ``manifest.json`` says what was asked for and is written once; other settings in the same folder are
an error. What a study measured of one batch is a folder ``shards/SECTION/BATCH`` of Parquet tables, renamed into place
when all of it is written; what it made of them are ``NAME.parquet``, ``NAME.json`` and other files. A thing is finished
when it is there under its name, so a run that was cut short goes on where it stopped, and several writers lose nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from gatelens import atomic_files
from gatelens.atomic_files import check_writable, is_partial, is_whole, write_atomic
from gatelens.errors import OutputError

FORMAT = 2
MANIFEST = "manifest.json"
SHARDS = "shards"
_VERSIONED = ("gatelens", "torch", "transformers", "transformer-lens", "numpy", "pandas")
_SUFFIXES = (".parquet", ".json", ".html", ".png", ".safetensors")
_MANIFEST_KEYS = {
    int: ["format"],
    str: ["study", "fingerprint", "created"],
    dict: ["settings", "info", "versions"],
}
_SECONDS = "seconds"  # what a batch took, in the metadata of its tables


def fingerprint(value: Any) -> str:
    """Twelve hex digits that change when ``value`` (anything JSON can hold) changes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Run:
    """One run: open it to work (:meth:`open`), or read one (:meth:`load`).

    Attributes:
        path: the folder, or None for a run kept in memory only.
        manifest: format, study, settings, info (device, bad rows left out…), versions and time of its start.
    """

    def __init__(self, path: Path | None, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._memory: dict[str, bytes] = {}

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
        settings = _as_json(settings)
        fresh = {
            "format": FORMAT,
            "study": study,
            "settings": settings,
            "fingerprint": fingerprint(settings),
            "info": _as_json(info or {}),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }
        if path is None:
            return cls(None, fresh)
        folder = cls.check_folder(path, study)
        if atomic_files.write_new(folder / MANIFEST, _json_bytes(fresh)):
            return cls(folder, fresh)
        run = cls.load(folder)
        changed = _differences(run.settings, settings)
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
        if (folder / MANIFEST).exists():
            run = cls.load(folder)
            if run.study != study:
                raise OutputError(
                    f"{str(folder)!r} holds a run of {run.study!r}, not of {study!r}; choose another folder"
                )
        elif folder.exists():
            others = sorted(p.name for p in folder.iterdir() if not is_partial(p) and p.name != MANIFEST)
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                raise OutputError(
                    f"{str(folder)!r} is not a run but holds {others[0]!r}{more}; choose an empty or new folder"
                )
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run.

        Raises:
            OutputError: no run there, one that can't be read, or one of another format.
        """
        folder = Path(path).expanduser()
        file = folder / MANIFEST
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise OutputError(
                f"{str(folder)!r} holds no run ({MANIFEST} is missing); give a folder a study wrote"
            ) from error
        except (OSError, ValueError) as error:
            raise _damaged(file, f"it cannot be read: {error}") from error
        if not isinstance(manifest, dict):
            raise _damaged(file, "it is no JSON object")
        written = manifest.get("format")
        if type(written) is int and written != FORMAT:
            older = written < FORMAT
            raise OutputError(
                f"{str(folder)!r} was written by {'an older' if older else 'a newer'} gatelens (format {written}, this "
                f"version reads {FORMAT}); {'run the study again in a new folder' if older else 'update gatelens'}"
            )
        for key, kind in ((key, kind) for kind, keys in _MANIFEST_KEYS.items() for key in keys):
            if type(manifest.get(key)) is not kind:
                raise _damaged(file, f"its {key!r} is {_short(manifest.get(key))}")
        if fingerprint(manifest["settings"]) != manifest["fingerprint"]:
            raise _damaged(file, "its settings are not those the run was started with")
        return cls(folder, manifest)

    @property
    def study(self) -> str:
        """The study's name."""
        return self.manifest["study"]

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for."""
        return self.manifest["settings"]

    @property
    def label(self) -> str:
        """The folder as text, for messages."""
        return "(in memory)" if self.path is None else str(self.path)

    def note(self, **info: Any) -> None:
        """Add to the manifest's info what came up on the way, such as bad rows left out; the runner alone does."""
        if {**self.manifest["info"], **info} != self.manifest["info"]:
            self.manifest["info"] |= info
            if self.path is not None:
                write_atomic(self.path / MANIFEST, _json_bytes(self.manifest))

    def withdraw(self) -> None:
        """Take back a run that holds nothing yet: nobody could continue it, as its settings proved impossible."""
        with contextlib.suppress(OSError):  # somebody else is at work there, or took it back as well
            if self.path and all(p.name == MANIFEST or is_partial(p) for p in self.path.iterdir()):
                (self.path / MANIFEST).unlink(missing_ok=True)
                self.path.rmdir()

    # -- what was measured of a batch

    def has_batch(self, section: str, batch: str) -> bool:
        """Whether all tables of a batch are there."""
        files = self._batch_files(section, batch)
        return bool(files) and all(self._is_there(file) for file in files)

    def save_batch(
        self, section: str, batch: str, tables: Mapping[str, pd.DataFrame], seconds: float = 0.0
    ) -> None:
        """Keep the tables of a batch, all of them or none."""
        files = {f"{name}.parquet": _parquet_bytes(t, seconds) for name, t in tables.items()}
        place = _batch_place(section, batch)
        if self.path is None:
            self._memory.update({f"{place}/{name}": data for name, data in files.items()})
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
            table.attrs.clear()  # what it took is no part of what was measured
        return tables

    def seconds(self) -> float:
        """What measuring took in all, over all sessions that worked on the run."""
        files = [Path(n) for n in self._memory if n.startswith(f"{SHARDS}/")]
        if self.path is not None:
            whole = [p for p in (self.path / SHARDS).glob("*/*/*.parquet") if not is_partial(p.parent)]
            files = [p.relative_to(self.path) for p in sorted(whole)]
        first = {file.parent: str(file) for file in reversed(files)}  # each table of a batch says the same
        return sum(float(self._table(file).attrs.get(_SECONDS, 0.0)) for file in first.values())

    def _batch_files(self, section: str, batch: str) -> list[str]:
        place = _batch_place(section, batch)
        if self.path is None:
            return [name for name in self._memory if name.startswith(f"{place}/")]
        return sorted(f"{place}/{p.name}" for p in (self.path / place).glob("*.parquet"))

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
        try:
            return json.loads(self._bytes(file))
        except ValueError as error:
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
        named = sorted(p.name for p in self.path.iterdir() if p.suffix in _SUFFIXES and p.name != MANIFEST)
        return [name for name in named if self._is_there(name)]

    def _find(self, name: str, suffix: str | None = None) -> str | None:
        files = [name + ending for ending in ((suffix,) if suffix else _SUFFIXES)]
        return next((file for file in files if self._is_there(file)), None)

    def _is_there(self, file: str) -> bool:
        return file in self._memory if self.path is None else is_whole(self.path / file)

    def _need(self, name: str, suffix: str | None = None) -> str:
        file = self._find(name, suffix)
        if file is None:
            known = ", ".join(Path(n).stem for n in self._names()) or "nothing yet"
            raise OutputError(
                f"run {self.label} has no finished {name!r} (it has: {known}); run the study again to finish it"
            )
        return file

    def _table(self, file: str) -> pd.DataFrame:
        try:
            return pd.read_parquet(io.BytesIO(self._bytes(file)))
        except Exception as error:  # pyarrow raises many kinds
            place = str(Path(file).parent) if file.startswith(f"{SHARDS}/") else file
            message = f"{file!r} of run {self.label} is damaged; delete {place!r} there and run again"
            raise OutputError(message) from error

    def _bytes(self, file: str) -> bytes:
        return self._memory[file] if self.path is None else (self.path / file).read_bytes()

    def _store(self, file: str, data: bytes) -> None:
        if self.path is None:
            self._memory[file] = data
        else:
            write_atomic(self.path / file, data)


def _parquet_bytes(table: pd.DataFrame, seconds: float | None = None) -> bytes:
    buffer = io.BytesIO()
    if seconds is not None:
        table = table.copy(deep=False)
        table.attrs[_SECONDS] = round(seconds, 3)
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _batch_place(section: str, batch: str) -> str:
    """The folder of a batch; names of data sets in it may hold any character."""
    return f"{SHARDS}/{section}/{quote(batch, safe=' (),')}"


def _damaged(manifest: Path, why: str) -> OutputError:
    folder = str(manifest.parent)
    return OutputError(f"{str(manifest)!r} is damaged ({why}); delete {folder!r} and run the study again")


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(values), default=str))


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 3) -> str:
    changes = list(_changes(old, new, ""))
    more = f"; and {len(changes) - most} more" if len(changes) > most else ""
    return "; ".join(changes[:most]) + more


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], within: str) -> Iterator[str]:
    """What differs, nested settings by their path."""
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _changes(a, b, f"{within}{key}.")
        else:
            there, now = (_short(side[key]) if key in side else "none" for side in (old, new))
            yield f"{within}{key}: there {there}, now {now}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
