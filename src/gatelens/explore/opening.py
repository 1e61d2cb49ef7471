"""From names, or a run, to an explorer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatelens.data import load
from gatelens.errors import DataError, InputError
from gatelens.explore.explorer import Explorer
from gatelens.explore.shelf import Shelf
from gatelens.model import HookedVLM
from gatelens.runs import Run


def open_explorer(
    folder: str | os.PathLike[str] | None = None,
    model: str | None = None,
    data: str | None = None,
    default_model: str = "organism:gated",
    default_data: str = "emoji-scenes",
    options: Mapping[str, Any] | None = None,
) -> Explorer:
    """An explorer with a model of its own.

    Args:
        folder: a run, whose model and examples are taken where none are named.
        model, data: names, as ``HookedVLM.from_pretrained`` and ``gl.data.load`` take them.
        default_model, default_data: for what neither a run nor a name gives.
        options: of ``from_pretrained``: device, dtype.

    Raises:
        InputError: a run and another model are named.
        DataError, ModelError, OutputError: data, model or run cannot be read.
    """
    settings: Mapping[str, Any] = {} if folder is None else Run.load(folder).settings
    if folder is not None and model is not None:
        raise InputError(
            f"give a run ({str(folder)!r}) or --model {model!r}, not both: a run names its model"
        )
    model = str(model or settings.get("model", default_model))
    of_run = folder is not None and data is None
    data = str(data or settings.get("data", default_data))
    try:
        source = load(data)
    except DataError as error:
        if not of_run:
            raise
        raise DataError(
            f"data of the run {str(folder)!r}: {error}; say where they are with --data"
        ) from error
    drawn = settings.get("n") if of_run and isinstance(settings.get("n"), dict) else None
    seed = settings.get("seed", 0) if of_run else 0
    data = _absolute(data)
    shelf = Shelf(source, data, seed, drawn)
    if not shelf.samples:
        raise DataError(f"data {data!r} has no pictures to begin with: name others with --data")
    options = dict(options or {})
    loading = [
        json.dumps(_absolute(model)),
        *(f"{name}={json.dumps(value)}" for name, value in options.items()),
    ]
    wrapped = HookedVLM.from_pretrained(model, **options)
    return Explorer(wrapped, shelf, source, data, model, ", ".join(loading))


def _absolute(name: str) -> str:
    """A folder by its whole path, so that the script finds it from anywhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
