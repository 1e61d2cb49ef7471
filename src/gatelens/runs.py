"""A run on disk: a manifest, finished stages, and resuming; nothing is ever half-written.

A run is a folder with ``manifest.json`` and the files the stages wrote (Parquet tables, JSON, PNG, HTML).
A stage
counts as done when the manifest lists it and its file is there in full, so a run that was cut short continues
where it stopped. The manifest carries the settings; other settings in the same folder are an error.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from gatelens.errors import OutputError

FORMAT = 1
MANIFEST = "manifest.json"
_VERSIONED = ("gatelens", "torch", "transformers", "transformer-lens", "numpy", "pandas")


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


def fingerprint(value: Any) -> str:
    """Twelve hex digits that change when ``value`` (anything JSON can hold) changes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the whole new one, never a part.

    Raises:
        OutputError: the disk refused.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


class Run:
    """One run: open it to work (:meth:`open`), or read a finished one (:meth:`load`).

    Attributes:
        path: the folder, or None for a run kept in memory only.
        manifest: study, settings, info (model, data…), versions, times and stages.
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
        settings = json.loads(json.dumps(dict(settings), default=str))
        fresh = {
            "format": FORMAT,
            "study": study,
            "settings": settings,
            "fingerprint": fingerprint(settings),
            "info": json.loads(json.dumps(dict(info or {}), default=str)),
            "created": _now(),
            "versions": _versions(),
            "stages": {},
        }
        if path is None:
            return cls(None, fresh)
        folder = check_writable(path)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            others = sorted(p.name for p in folder.iterdir())
            if others:
                raise OutputError(
                    f"{str(folder)!r} is not a run but holds {others[0]!r}"
                    f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}; choose an empty or new "
                    f"folder"
                )
            run = cls(folder, fresh)
            run._write_manifest()
            return run
        run = cls.load(folder)
        if run.manifest["study"] != study:
            raise OutputError(
                f"{str(folder)!r} holds a run of {run.manifest['study']!r}, not of {study!r}; choose "
                f"another folder"
            )
        changed = _differences(run.manifest["settings"], settings)
        if changed:
            raise OutputError(
                f"{str(folder)!r} holds a run with other settings ({changed}); choose another folder or "
                f"delete it"
            )
        return run

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run.

        Raises:
            OutputError: no run there, one that can't be read, or one written by a newer format.
        """
        folder = Path(path).expanduser()
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            known = {"format", "study", "settings", "stages"} <= set(manifest)
        except FileNotFoundError as error:
            raise OutputError(
                f"{str(folder)!r} holds no run ({MANIFEST} is missing); give a folder a study wrote"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise OutputError(
                f"{str(folder / MANIFEST)!r} cannot be read ({error}); the run is damaged"
            ) from error
        if not known or manifest["format"] > FORMAT:
            raise OutputError(
                f"{str(folder)!r} was not written by this version's format {FORMAT}; update gatelens"
            )
        return cls(folder, manifest)

    def withdraw(self) -> None:
        """Take back a run that has no stage yet: nobody could continue it, as its settings proved impossible."""
        if self.path is None or self.manifest["stages"]:
            return
        (self.path / MANIFEST).unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    # -- stages
    # -------------------------------------------------------------------------------------------------

    def done(self, stage: str) -> bool:
        """Whether the stage is finished and its file still there in full."""
        entry = self.manifest["stages"].get(stage)
        if entry is None:
            return False
        if self.path is None:
            return entry["file"] in self._memory
        file = self.path / entry["file"]
        return file.is_file() and file.stat().st_size == entry["bytes"]

    def stage(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table of a stage: read when done, else computed and stored."""
        if not self.done(name):
            started = time.perf_counter()
            self.save_table(name, compute(), seconds=time.perf_counter() - started)
        return self.table(name)

    def save_table(self, name: str, table: pd.DataFrame, seconds: float | None = None) -> None:
        """Store a table as ``<name>.parquet``."""
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        self._store(name, f"{name}.parquet", buffer.getvalue(), seconds, rows=len(table))

    def save_json(self, name: str, value: Any) -> None:
        """Store anything JSON can hold as ``<name>.json``."""
        data = json.dumps(value, indent=1, ensure_ascii=False).encode()
        self._store(name, f"{name}.json", data, None)

    def save_file(self, name: str, suffix: str, data: bytes) -> None:
        """Store a file (a figure, the report) as ``<name><suffix>``."""
        self._store(name, name + suffix, data, None)

    def table(self, name: str) -> pd.DataFrame:
        """A stored table.

        Raises:
            OutputError: the run has no such finished table, or its file is damaged.
        """
        data = self._read(name)
        try:
            return pd.read_parquet(io.BytesIO(data))
        except Exception as error:  # pyarrow raises many kinds
            raise OutputError(
                f"table {name!r} of run {self.label} is damaged; delete it and run again"
            ) from error

    def json(self, name: str) -> Any:
        """A stored JSON value.

        Raises:
            OutputError: the run has no such finished value, or its file is damaged.
        """
        try:
            return json.loads(self._read(name))
        except json.JSONDecodeError as error:
            raise OutputError(f"{name!r} of run {self.label} is damaged; delete it and run again") from error

    def file(self, name: str) -> bytes:
        """A stored file's content.

        Raises:
            OutputError: the run has no such finished file.
        """
        return self._read(name)

    def tables(self) -> list[str]:
        """Names of the finished tables that are results (shards left out)."""
        stages = self.manifest["stages"]
        return [
            n for n, e in stages.items() if e["file"].endswith(".parquet") and "/" not in n and self.done(n)
        ]

    @property
    def label(self) -> str:
        """The folder as text, for messages."""
        return "(in memory)" if self.path is None else str(self.path)

    # -- files
    # ------------------------------------------------------------------------------------------------

    def _store(self, name: str, file: str, data: bytes, seconds: float | None, **more: Any) -> None:
        if self.path is None:
            self._memory[file] = data
        else:
            write_atomic(self.path / file, data)
        entry = {"file": file, "bytes": len(data), "finished": _now(), **more}
        if seconds is not None:
            entry["seconds"] = round(seconds, 3)
        self.manifest["stages"][name] = entry
        self._write_manifest()

    def _read(self, name: str) -> bytes:
        if not self.done(name):
            known = ", ".join(n for n in self.manifest["stages"] if "/" not in n) or "nothing yet"
            raise OutputError(
                f"run {self.label} has no finished {name!r} (it has: {known}); run the study again to "
                f"finish it"
            )
        file = self.manifest["stages"][name]["file"]
        return self._memory[file] if self.path is None else (self.path / file).read_bytes()

    def _write_manifest(self) -> None:
        if self.path is not None:
            data = json.dumps(self.manifest, indent=1, ensure_ascii=False).encode()
            write_atomic(self.path / MANIFEST, data)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 3) -> str:
    found = list(_changes(old, new, ""))
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more


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
