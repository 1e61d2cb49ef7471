"""The weights of a wrapped model under transformers' names, and a plain checkpoint of them.

Wrapping puts modules of the bridge between those of transformers, and with them names into the state dict: some
weights appear under several, none under its own. The names a model had before it was wrapped say what is saved.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from gatelens.bridge.parts import Parts
from gatelens.bridge.weights import named_tensors, quantisation
from gatelens.errors import ModelError, OutputError
from gatelens.hooked_model import HookedModel
from gatelens.hub_errors import one_line
from gatelens.model.loading import without_progress_bar
from gatelens.shipped_organisms import weights_folder

COMPANIONS = ("vq_decoder.safetensors",)  # not transformers' own: the picture decoder of a native organism
SMALL = 1 << 30  # bytes of weights that are written at once: a progress bar would be noise


def weights(model: HookedModel) -> dict[str, Tensor]:
    """The weights under the names they have in transformers, as ``state_dict`` gave them before wrapping.

    The tensors themselves, not copies, tied ones under each of their names; ``model.hf.state_dict()`` has the
    bridge's names instead. Raises ModelError where they are quantised or not in memory, and where the wrapped model
    computes with values that have no place among them: then a checkpoint of these would be another model.
    """
    quantised = quantisation(model.hf)
    if quantised is not None:
        raise ModelError(
            f"{model!r} is quantised ({quantised}), and its weights can be neither saved nor trained: save the model "
            "before it is wrapped, or load it in full"
        )
    own = {name: _tensor(model.hf, name) for name in model.weight_names}
    elsewhere = next((name for name, value in own.items() if value.device.type == "meta"), None)
    if elsewhere is not None:
        raise ModelError(f"'{elsewhere}' is not in memory: load without offloading (no device_map) to save")
    stored = {value.untyped_storage().data_ptr() for value in own.values()}
    for name, value in named_tensors(model.hf):
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
    """The module of transformers that a module of the bridge wraps."""
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
            f"{model!r} was put together by from_parts and is not a transformers class: save "
            "gatelens.model.checkpoints.weights(model) with torch.save"
        )
    written = isinstance(max_shard_size, str) and max_shard_size[:1].isdigit()
    if not written and not (isinstance(max_shard_size, int) and max_shard_size > 0):
        raise OutputError(f"max_shard_size={max_shard_size!r}: give bytes, or a size such as '5GB'")
    target = _checked_target(folder, overwrite)
    state = weights(model)
    size = sum(value.numel() * value.element_size() for value in state.values())
    partial = _beside(target)  # one rename makes it the checkpoint: none is half written under its name
    try:
        partial.mkdir(parents=True)
        with without_progress_bar(size < SMALL):
            model.hf.save_pretrained(partial, state_dict=state, max_shard_size=max_shard_size)
        _save_processor(model.processor, partial)
        for name in COMPANIONS:
            source = weights_folder(getattr(model.hf, "name_or_path", "")) / name
            if source.is_file():
                shutil.copyfile(source, partial / name)
        _put(partial, target)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise OutputError(f"cannot save {model!r} in {str(folder)!r}: {one_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _checked_target(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """The absolute path of a folder that is new, empty or an older checkpoint. Raises OutputError for another."""
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise OutputError(f"the folder to save in is {folder!r}: give its path")
    if not isinstance(overwrite, bool):
        raise OutputError(f"overwrite={overwrite!r}: give True or False")
    try:
        target = Path(folder).expanduser().absolute()
        if target.is_dir():
            if any(target.iterdir()):
                _check_replaceable(target, overwrite)
            if Path.cwd().is_relative_to(
                target
            ):  # a renamed folder would leave processes that work in it nowhere
                raise OutputError(f"'{folder}' holds the working directory: give a folder of its own")
        elif target.exists():
            raise OutputError(f"'{target}' is a file: choose a folder")
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot save in {str(folder)!r}: {one_line(error)}") from error
    return target


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(f"folder '{target}' is not empty: choose another, or give overwrite=True")
    if not (target / "config.json").is_file() or any(entry.is_dir() for entry in target.iterdir()):
        raise OutputError(f"folder '{target}' holds more than a checkpoint, or none: choose another")


def _save_processor(processor: Any, folder: Path) -> None:
    if processor is None:
        return
    if hasattr(processor, "save_pretrained"):
        processor.save_pretrained(folder)
        return
    for part in (processor.image_processor, processor.tokenizer):  # no processor, or a custom one
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
    """An unused hidden name in the same folder, so that renaming moves nothing."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
