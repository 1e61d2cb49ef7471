"""From a name to a transformers model and its processor: shipped organisms, folders, hub ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as hf_logging

from .errors import ModelError
from .families import family_of

ORGANISM = "organism:"


def organisms() -> list[str]:
    """Names of the model organisms that ship with the package."""
    folder = resources.files("gatelens") / "organisms" / "weights"
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file())


def locate(name: str) -> str:
    """What transformers' from_pretrained takes for a name: a folder or a hub id. Raises ModelError."""
    if name.startswith(ORGANISM):
        wanted = name[len(ORGANISM) :]
        if wanted not in organisms():
            raise ModelError(f"no organism '{wanted}': this package ships {', '.join(organisms()) or 'none'}")
        return str(resources.files("gatelens") / "organisms" / "weights" / wanted)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"folder '{name}' has no config.json: give a folder saved with save_pretrained")
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"no folder '{name}': give an existing folder, a hub id or organism:NAME")
    return name


def as_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """A torch dtype from its name; None and "auto" keep the checkpoint's own. Raises ModelError."""
    if dtype is None or dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ModelError(f"dtype '{dtype}' is no torch dtype: write for example 'bfloat16'")
    return found


def load(name: str, dtype: str | torch.dtype | None, device_map: Any, **kwargs: Any) -> tuple[Any, Any]:
    """(model, processor) by transformers' Auto classes; processor None, with a warning, when it has none.

    Raises ModelError when the name is not found, cannot be fetched, or is no supported VLM.
    """
    where = locate(name)
    hub: dict[str, Any] = {
        k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs
    }
    try:
        config = AutoConfig.from_pretrained(where, **hub)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_unfetched(name, error)) from error
    architectures = getattr(config, "architectures", None) or [type(config).__name__]
    family_of(architectures[0])
    try:
        with _no_bar(name.startswith(ORGANISM)):
            model = AutoModelForImageTextToText.from_pretrained(
                where,
                config=config,
                dtype=as_dtype(dtype),
                device_map=device_map,
                **kwargs,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(_unfetched(name, error)) from error
    return model, _processor(where, name, hub)


@contextmanager
def _no_bar(hide: bool) -> Iterator[None]:
    """Without transformers' progress bar, which for a model of a few megabytes is noise."""
    shown = hf_logging.is_progress_bar_enabled()
    if hide:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide and shown:
            hf_logging.enable_progress_bar()


def _processor(where: str, name: str, hub: dict[str, Any]) -> Any:
    try:
        return AutoProcessor.from_pretrained(where, **hub)
    except (OSError, ValueError, KeyError, ImportError) as error:
        warnings.warn(
            f"{name} has no usable processor ({_line(error)}): use inputs(...), not prepare", stacklevel=4
        )
        return None


def _unfetched(name: str, error: Exception) -> str:
    return f"cannot load '{name}': {_line(error)} (check the name, the network and HF_HUB_OFFLINE)"


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
