"""From a name to a transformers model and its processor: shipped organisms, folders, hub ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_accelerate_available
from transformers.utils import logging as hf_logging

from gatelens.errors import ModelError
from gatelens.families import family_of
from gatelens.families.common.processing import ImageTextParts

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

    Raises ModelError when the name is not found, cannot be fetched, or is no supported VLM, and when
    ``device_map`` needs accelerate and it is not installed.
    """
    where = locate(name)
    if device_map is not None and not is_accelerate_available():
        raise ModelError("device_map needs accelerate: pip install accelerate, or give device= instead")
    hub: dict[str, Any] = {
        k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs
    }
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(where, **hub)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(_unfetched(name, error, hub)) from error
    architectures = getattr(config, "architectures", None) or [type(config).__name__]
    family_of(architectures[0], config)
    try:
        with _no_bar(name.startswith(ORGANISM)):
            model = AutoModelForImageTextToText.from_pretrained(
                where,
                config=config,
                dtype=as_dtype(dtype),
                device_map=device_map,
                **kwargs,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(_unfetched(name, error, hub)) from error
    return model, _processor(where, name, hub)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the pages transformers logs beside the error it raises: ours is one line."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(hf_logging.CRITICAL)
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


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
        if "torchvision" in str(error).lower():  # its video part needs it, pictures do not
            return ImageTextParts.from_pretrained(where, **hub)
        warnings.warn(
            f"{name} has no usable processor ({_line(error)}): use inputs(...), not prepare", stacklevel=4
        )
        return None


def _unfetched(name: str, error: Exception, hub: dict[str, Any]) -> str:
    """Why a checkpoint cannot be had, and what to do: transformers wraps the hub's errors, so look at causes."""
    if Path(name).expanduser().is_dir():
        return f"cannot load the folder '{name}': {_line(error)}"
    causes = list(_causes(error))

    def is_a(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    page = f"{constants.ENDPOINT}/{name}"
    cache = hub.get("cache_dir") or constants.HF_HUB_CACHE
    if is_a(GatedRepoError):
        return f"'{name}' is gated: accept its licence at {page}, then log in (hf auth login, or token=)"
    if is_a(RepositoryNotFoundError, HFValidationError):
        return f"'{name}' is no repository on {constants.ENDPOINT}, or private: check the name, or log in"
    if is_a(RevisionNotFoundError):
        return f"'{name}' has no revision '{hub.get('revision')}': see {page}/tree/main for what there is"
    if is_a(LocalEntryNotFoundError, OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE or hub.get("local_files_only"):
            return f"'{name}' is not in the cache {cache}, and the hub is switched off: unset HF_HUB_OFFLINE once"
        return f"'{name}' is not in the cache {cache}, and {constants.ENDPOINT} cannot be reached: check the network"
    if is_a(EntryNotFoundError):
        return f"'{name}' lacks a file of a transformers checkpoint ({_line(error)}): choose its -hf version"
    return f"cannot load '{name}': {_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
