"""The manifest of a run: its settings and versions; written once, and checked when read."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gatelens.atomic_files import readable
from gatelens.errors import OutputError

FORMAT = 3
MANIFEST = "manifest.json"
CODE = "gatelens' code"
# rooms and modules that draw, tell or serve: what they say changes no number that is measured
_UNMEASURED = ("cli", "explore", "organisms", "plots", "views", "studies/report.py", "studies/compare.py")
_VERSIONED = ("gatelens", "torch", "transformers", "transformer-lens", "numpy", "pandas")
_KEYS = {
    int: ["format"],
    str: ["study", "fingerprint", "created"],
    dict: ["settings", "info", "versions"],
}


def fingerprint(value: Any) -> str:
    """Twelve hex digits that change when ``value`` (anything JSON can hold) changes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def new_manifest(study: str, settings: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that begins now."""
    asked = _as_json(settings)
    return {
        "format": FORMAT,
        "study": study,
        "settings": asked,
        "fingerprint": fingerprint(asked),
        "info": _as_json(info),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": dict(versions()),
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in the folder of a run.

    Raises:
        OutputError: no run there, one that can't be read, or one of another format.
    """
    file = folder / MANIFEST
    with readable(folder):
        if not file.exists():
            raise OutputError(
                f"{str(folder)!r} holds no run ({MANIFEST} is missing); give the folder of a study or of gl.collect"
            )
        written_text = file.read_bytes() if file.is_file() else b""
    try:
        manifest = json.loads(written_text.decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"it cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise _damaged(file, "it is not a JSON object")
    written = manifest.get("format")
    if type(written) is int and written != FORMAT:
        older = written < FORMAT
        raise OutputError(
            f"{str(folder)!r} was written by {'an older' if older else 'a newer'} gatelens (format {written}, this "
            f"version reads {FORMAT}); {'run the study again in a new folder' if older else 'update gatelens'}"
        )
    for key, kind in ((key, kind) for kind, keys in _KEYS.items() for key in keys):
        if type(manifest.get(key)) is not kind:
            raise _damaged(file, f"its {key!r} is {_short(manifest.get(key))}")
    if fingerprint(manifest["settings"]) != manifest["fingerprint"]:
        raise _damaged(file, "its settings are not those the run was started with")
    return manifest


def differences(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 3) -> str:
    """What differs between two settings, in words; empty where nothing does."""
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


def _damaged(manifest: Path, why: str) -> OutputError:
    folder = str(manifest.parent)
    return OutputError(f"{str(manifest)!r} is damaged ({why}); delete {folder!r} and run the study again")


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(values), default=str))


@functools.cache
def versions() -> dict[str, str]:
    """Of what decides the numbers: Python, libraries, and the code of gatelens that measures, as a hash.

    Known from the first call in a process on: code that changes while it runs is not what it runs.
    """
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {**versions, CODE: code_of(Path(__file__).parent.parent)}


def code_of(package: Path) -> str:
    """Twelve hex digits that change when a Python file of a gatelens package does, unless it only draws or tells."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        if place.parts[0] not in _UNMEASURED and place.as_posix() not in _UNMEASURED:
            digest.update(f"{place.as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
