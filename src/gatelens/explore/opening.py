"""From names, or a run, to an explorer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatelens.data import load
from gatelens.data.loading import from_anywhere
from gatelens.errors import DataError, ModelError
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
        folder: a run, whose model and examples are taken where none are named. Data that are named and are the
            run's, such as a folder that was moved, give the run's examples too.
        model, data: names, as ``HookedVLM.from_pretrained`` and ``gl.data.load`` take them.
        default_model, default_data: for what neither a run nor a name gives.
        options: of ``from_pretrained``: device, dtype.

    Raises:
        DataError, ModelError, OutputError: data, model or run cannot be read.
    """
    run = None if folder is None else Run.load(folder)
    settings: Mapping[str, Any] = {} if run is None else run.settings
    given: Mapping[str, Any] = {} if run is None else run.manifest["info"]
    wanted = str(model or given.get("model_given") or settings.get("model", default_model))
    named = str(data or given.get("data_given") or settings.get("data", default_data))
    try:
        source = load(named)
    except DataError as error:
        if run is None or data is not None:
            raise
        raise DataError(f"data of the run {str(folder)!r}: {error}; give it by --data") from error
    of_run = run is not None and source.name == settings.get("data")
    drawn = settings.get("n") if of_run and isinstance(settings.get("n"), dict) else None
    seed = settings.get("seed", 0) if of_run else 0
    data = from_anywhere(named)
    shelf = Shelf(source, data, seed, drawn)
    if not shelf.samples:
        raise DataError(f"data {data!r} has no pictures to begin with: name others with --data")
    options = dict(options or {})
    place = (
        str(Path(wanted).resolve()) if Path(wanted).is_dir() else wanted
    )  # the script finds it from anywhere
    loading = [json.dumps(place), *(f"{name}={json.dumps(value)}" for name, value in options.items())]
    try:
        wrapped = HookedVLM.from_pretrained(wanted, **options)
    except ModelError as error:
        if run is None or model is not None:
            raise
        raise ModelError(f"model of the run {str(folder)!r}: {error}; give it by --model") from error
    called = str(model or settings.get("model", wanted))
    return Explorer(wrapped, shelf, source, data, called, ", ".join(loading))
