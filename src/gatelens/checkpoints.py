"""From a name to a transformers model and its processor, and from a wrapped model back to a plain checkpoint.

Wrapping puts modules of the bridge between those of transformers, and with them names into the state dict: some
weights appear under several, none under its own. The names a model had before it was wrapped say what is saved.
"""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_accelerate_available
from transformers.utils import logging as hf_logging

from gatelens.bridge.parts import Parts
from gatelens.errors import ModelError, OutputError
from gatelens.families import Family, Layout, family_of
from gatelens.families.common.processing import ImageTextParts
from gatelens.hooked_model import HookedModel
from gatelens.hub_errors import hub_reason, one_line
from gatelens.shipped_organisms import ORGANISM, organism_folder

COMPANIONS = ("vq_decoder.safetensors",)  # not transformers' own: the picture decoder of a native organism
SMALL = 1 << 30  # bytes of weights that are written at once: a progress bar would be noise


def locate(name: str) -> str:
    """What transformers' from_pretrained takes for a name: a folder or a hub id. Raises ModelError."""
    if name.startswith(ORGANISM):
        return str(organism_folder(name.removeprefix(ORGANISM)))
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
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype):
        raise ModelError(f"dtype '{dtype}' is no torch dtype: write for example 'bfloat16'")
    return named


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
    with _without_log():
        try:
            config = AutoConfig.from_pretrained(where, **hub)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(_why_not_loaded(name, error, hub)) from error
    architectures = getattr(config, "architectures", None) or [type(config).__name__]
    family_of(architectures[0], config)
    try:
        with _without_progress_bar(name.startswith(ORGANISM)):
            model = AutoModelForImageTextToText.from_pretrained(
                where,
                config=config,
                dtype=as_dtype(dtype),
                device_map=device_map,
                **kwargs,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(_why_not_loaded(name, error, hub)) from error
    return model, _processor(where, name, hub)


@contextmanager
def _without_log() -> Iterator[None]:
    """Without the pages transformers logs beside the error it raises: ours is one line."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(hf_logging.CRITICAL)
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


@contextmanager
def _without_progress_bar(hide: bool) -> Iterator[None]:
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
            f"{name} has no usable processor ({one_line(error)}): use inputs(...), not prepare", stacklevel=4
        )
        return None


def _why_not_loaded(name: str, error: Exception, hub: dict[str, Any]) -> str:
    if Path(name).expanduser().is_dir():
        return f"cannot load the folder '{name}': {one_line(error)}"
    reason = hub_reason(
        error,
        name,
        revision=hub.get("revision"),
        cache=hub.get("cache_dir"),
        offline=bool(hub.get("local_files_only")),
    )
    return reason or f"cannot load '{name}': {one_line(error)}"


def check_fresh(hf_model: Any) -> None:
    """Raises ModelError for a module that carries hooks already."""
    if any(isinstance(module, GeneralizedComponent) for module in hf_model.modules()):
        raise ModelError(f"this {type(hf_model).__name__} is wrapped already: wrap a fresh one")


def decoder_of(language_model: Any) -> str:
    """The class of a decoder, or the first of its base classes, that TransformerLens has an adapter for."""
    ArchitectureAdapterFactory.discover_entry_points()
    for base in type(language_model).__mro__:
        if base.__name__ in SUPPORTED_ARCHITECTURES or base.__name__ in ArchitectureAdapterFactory._adapters:
            return base.__name__
    raise ModelError(
        f"TransformerLens has no adapter for the decoder {type(language_model).__name__}: give a causal language "
        "model with its head, such as LlamaForCausalLM, or register an adapter"
    )


def family_for(hf_model: Any, layout: Layout | None) -> tuple[str, Family]:
    """(architecture, family) of a model or the first of its base classes that is known."""
    names = [base.__name__ for base in type(hf_model).__mro__]
    for name in names:
        try:
            return name, family_of(name, getattr(hf_model, "config", None))
        except ModelError:
            continue
    ArchitectureAdapterFactory.discover_entry_points()
    if layout is not None and names[0] in ArchitectureAdapterFactory._adapters:
        return names[0], Family(names[0], (names[0],), lambda config, processor: layout)
    return names[0], family_of(names[0])


def weights(model: HookedModel) -> dict[str, Tensor]:
    """The weights under the names they have in transformers, as ``state_dict`` gave them before wrapping.

    The tensors themselves, not copies, tied ones under each of their names; ``model.hf.state_dict()`` has the
    bridge's names instead. Raises ModelError where the wrapped model computes with values that have no place among
    them: then a checkpoint of these would be another model.
    """
    own = {name: _tensor(model.hf, name) for name in model.weight_names}
    elsewhere = next((name for name, value in own.items() if value.device.type == "meta"), None)
    if elsewhere is not None:
        raise ModelError(f"'{elsewhere}' is not in memory: load without offloading (no device_map) to save")
    stored = {value.untyped_storage().data_ptr() for value in own.values()}
    for name, value in model.hf.state_dict().items():
        # the bridge adds a bias of zeros to an unembedding without one
        if value.untyped_storage().data_ptr() not in stored and bool(value.any()):
            raise ModelError(
                f"'{name}' holds values that the unwrapped model has no place for: load or move the model first "
                "and wrap it then, and do not process its weights"
            )
    return own


def put_weights(model: HookedModel, state: Mapping[str, Tensor]) -> None:
    """Copy weights, named as :func:`weights` names them, into the model's own.

    Raises ModelError for names or shapes that are not the model's.
    """
    own = weights(model)
    for name in {**own, **state}:
        if name not in own or name not in state or own[name].shape != state[name].shape:
            raise ModelError(f"'{name}' is not a weight of both, in one shape: give weights of {model!r}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def _tensor(root: nn.Module, name: str) -> Tensor:
    *path, leaf = name.split(".")
    module = _unwrapped(root)
    for part in path:
        child = module._modules[part]
        assert child is not None, name
        module = _unwrapped(child)
    held = module._parameters if leaf in module._parameters else module._buffers
    value = held[leaf]
    assert value is not None, name
    return value.detach()


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module of transformers that a module of the bridge stands around."""
    while isinstance(module, GeneralizedComponent):
        assert module.original_component is not None
        module = module.original_component
    return module


def save(
    model: HookedModel,
    folder: str | os.PathLike[str],
    overwrite: bool = False,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write the checkpoint; see :meth:`gatelens.model.HookedVLM.save_pretrained`."""
    if isinstance(model.hf, Parts):
        raise ModelError(
            f"{model!r} was put together by from_parts and is no class of transformers: save "
            "gatelens.checkpoints.weights(model) with torch.save"
        )
    if getattr(model.hf, "hf_quantizer", None) is not None:
        raise ModelError(
            f"{model!r} is quantised, and its wrapped weights cannot be saved: save it unwrapped"
        )
    target = Path(folder).expanduser().absolute()
    _check_target(target, overwrite)
    state = weights(model)
    size = sum(value.numel() * value.element_size() for value in state.values())
    partial = _beside(
        target
    )  # one rename makes it the checkpoint: a folder half written is never under its name
    try:
        partial.mkdir(parents=True)
        with _without_progress_bar(size < SMALL):
            model.hf.save_pretrained(partial, state_dict=state, max_shard_size=max_shard_size)
        _save_processor(model.processor, partial)
        for name in COMPANIONS:
            source = Path(getattr(model.hf, "name_or_path", "")) / name
            if source.is_file():
                shutil.copyfile(source, partial / name)
        _put(partial, target)
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(f"cannot save {model!r} in '{folder}': {one_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise OutputError(f"folder '{target}' is not empty: choose another, or give overwrite=True")
        if not (target / "config.json").is_file() or any(entry.is_dir() for entry in target.iterdir()):
            raise OutputError(f"folder '{target}' holds more than a checkpoint, or none: choose another")
    elif target.exists() and not target.is_dir():
        raise OutputError(f"'{target}' is a file: choose a folder")


def _save_processor(processor: Any, folder: Path) -> None:
    if processor is None:
        return
    if hasattr(processor, "save_pretrained"):
        processor.save_pretrained(folder)
        return
    for part in (processor.image_processor, processor.tokenizer):  # no processor, or one of somebody's own
        part.save_pretrained(folder)


def _put(partial: Path, target: Path) -> None:
    """Rename a finished folder into place; what it takes the place of goes last, or comes back."""
    old = _beside(target)
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path) -> Path:
    """A hidden name nobody has, in the same folder, so that renaming moves nothing."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
