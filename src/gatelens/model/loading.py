"""From a name to a transformers model and its processor, checked to be what is published under that name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase
from transformers.utils import is_accelerate_available
from transformers.utils import logging as hf_logging

from gatelens.bridge.weights import named_values, scales
from gatelens.errors import ModelError
from gatelens.families import Family, Layout, family_of
from gatelens.families.common.processing import ImageTextParts
from gatelens.hub_errors import hub_reason, one_line
from gatelens.model.differences import add_difference, read_difference
from gatelens.shipped_organisms import DIFFERENCE_FILE, ORGANISM, organism_folder, weights_folder

_BY_HAND = "load it with transformers and give it to HookedVLM.from_module"
# keywords of transformers' from_pretrained that would undo what load checks, and what to do instead
_NOT_PASSED_ON = {
    "config": _BY_HAND,
    "state_dict": _BY_HAND,
    "output_loading_info": "leave it out",
    "ignore_mismatched_sizes": _BY_HAND,
    "torch_dtype": "write dtype=",
}
_CHECKED_FOR_NAN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def locate(name: str) -> str:
    """What transformers' from_pretrained takes for a name: a folder or a hub id. Raises ModelError."""
    if name.startswith(ORGANISM):
        return str(weights_folder(organism_folder(name.removeprefix(ORGANISM))))
    folder = Path(name).expanduser()
    if _is_folder(folder):
        if not (folder / "config.json").is_file():
            raise ModelError(f"folder '{name}' has no config.json: give a folder saved with save_pretrained")
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"no folder '{name}': give an existing folder, a hub id or organism:NAME")
    return name


def _graded(name: str) -> Path | None:
    """The folder of an organism that is stored as a difference; None for any other name."""
    if not name.startswith(ORGANISM):
        return None
    folder = organism_folder(name.removeprefix(ORGANISM))
    return folder if (folder / DIFFERENCE_FILE).is_file() else None


def anywhere(name: str | os.PathLike[str]) -> str:
    """The name as it means the same in any working directory: a folder's whole path."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if _is_folder(folder) else os.fspath(name)


def _is_folder(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # no name a folder can have
        return False


def as_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    """A torch dtype from its name; None and "auto" keep the checkpoint's own. Raises ModelError."""
    if dtype is None or dtype == "auto":
        return "auto"
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype):
        raise ModelError(f"dtype '{dtype}' is not a torch dtype: write for example 'bfloat16'")
    return named


def load(
    name: str | os.PathLike[str],
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    device_map: Any,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """(model, processor) by transformers' Auto classes; processor None, with a warning, when it has none.

    transformers fills with random numbers what a checkpoint lacks, and drops what the model has no place for
    (layers beyond the config's, biases, an adapter's weights). Either is another model than the published one, so
    both are errors, as are weights that are not finite. Where it is meant, load with transformers and wrap the
    model: ``HookedVLM.from_module(AutoModelForImageTextToText.from_pretrained(name), processor)``.

    Raises ModelError when the name is not found, cannot be fetched, is not a supported VLM, or its weights are not
    those of the model; when ``device`` cannot be used, or ``device_map`` needs accelerate and it is not installed.
    """
    if device is not None and device_map is not None:
        raise ModelError("device and device_map were both given: give one")
    if not isinstance(name, (str, os.PathLike)) or not str(name):
        raise ModelError(f"the model's name is {name!r}: give organism:NAME, a folder or a hub id")
    name = os.fspath(name)
    for word in kwargs:
        if word in _NOT_PASSED_ON:
            raise ModelError(f"{word}= is not passed on to transformers: {_NOT_PASSED_ON[word]}")
    where = locate(name)
    if device_map is not None and not is_accelerate_available():
        raise ModelError("device_map needs accelerate: pip install accelerate, or give device= instead")
    hub: dict[str, Any] = {
        k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs
    }
    with _without_log(), _in_one_line(name, hub):
        config = AutoConfig.from_pretrained(where, **hub)
        architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    family_of(architecture, config)
    quantised = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
    graded = _graded(name)
    if graded is not None and (quantised or device_map is not None):
        raise ModelError(
            f"'{name}' is stored as a difference from other weights, which cannot be added to packed or spread ones: "
            "load it without quantization_config and device_map"
        )
    if quantised and device is not None:  # packed weights cannot be moved once they are loaded
        device_map, device = {"": device}, None
    # of a model of a few megabytes it is noise
    with without_progress_bar(name.startswith(ORGANISM)), _in_one_line(name, hub):
        model, report = AutoModelForImageTextToText.from_pretrained(
            where,
            config=config,
            dtype=as_dtype(dtype),
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below, all of them
            **kwargs,
        )
    _check_complete(model, name, report)
    if graded is not None:
        add_difference(model, read_difference(graded / DIFFERENCE_FILE, Path(where)))
        model.name_or_path = model.config._name_or_path = str(graded)
    return _moved(model, device), _processor(where, name, hub)


def without_weights(name: str | os.PathLike[str], dtype: str | torch.dtype | None, **hub: Any) -> Any:
    """The model of a name on the device "meta": only its config is read, from a folder, the file itself or the hub.

    Raises ModelError when there is none, or it is of no supported VLM.
    """
    name = os.fspath(name)
    where = str(Path(name).parent) if Path(name).name == "config.json" else locate(name)
    with _without_log(), _in_one_line(name, hub):
        config = AutoConfig.from_pretrained(where, **hub)
        architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        family_of(architecture, config)
        wanted = as_dtype(dtype)
        if wanted == "auto":
            held = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
            wanted = held or torch.float32
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, dtype=wanted)


def _moved(model: Any, device: str | torch.device | None) -> Any:
    """The model on a device; None leaves it. Raises ModelError where the device cannot be used."""
    if device is None:
        return model
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no weights")
        return model.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA asserts
        raise ModelError(f"device '{device}' cannot be used: {one_line(error)}") from error


@contextmanager
def _in_one_line(name: str, hub: dict[str, Any]) -> Iterator[None]:
    """ModelError for whatever transformers trips over: a damaged file can end in any exception of its code."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_why_not_loaded(name, error, hub)) from error


def _check_complete(model: Any, name: str, report: Mapping[str, Any]) -> None:
    """Raises ModelError where checkpoint and model do not hold the same tensors, or a weight is not finite.

    ``report`` leaves out tied weights, and buffers that transformers knows to be missing or extra.
    """
    reshaped = [
        f"{key} {list(there)} for {list(here)}" for key, there, here in sorted(report["mismatched_keys"])
    ]
    faults = [
        _counted(report["missing_keys"], "missing"),
        _counted(report["unexpected_keys"], "with no place in the model"),
        _counted(reshaped, "of another shape"),
    ]
    if any(faults):
        raise ModelError(
            f"'{name}' does not hold the weights of a {type(model).__name__} with its config: "
            f"{'; '.join(fault for fault in faults if fault)}; get all of its files, or if this is intended {_BY_HAND}"
        )
    wrong = _counted(
        (
            key
            for key, parameter, values in named_values(model)
            if not all(_is_finite(value) for value in (*values, *scales(parameter)))
        ),
        "with NaN or inf",
    )
    if wrong:
        raise ModelError(f"'{name}' holds weights that are not finite, {wrong}: get its files again")


def _counted(keys: Iterable[str], fault: str) -> str:
    """ "13 tensors missing (first, second, third …)"; nothing for no keys."""
    named = sorted(keys)
    if not named:
        return ""
    listed = ", ".join(named[:3]) + (" …" if len(named) > 3 else "")
    return f"{len(named)} tensor{'s' * (len(named) > 1)} {fault} ({listed})"


def _is_finite(value: Tensor) -> bool:
    """Whether it is free of NaN and inf, in one pass without a copy; True where nothing can be read."""
    if value.device.type == "meta" or value.dtype not in _CHECKED_FOR_NAN or not value.numel():
        return True
    return all(bool(end.isfinite()) for end in value.detach().aminmax())


@contextmanager
def _without_log() -> Iterator[None]:
    """Without the pages that transformers and the hub's client log with the error they raise: ours is one line."""
    loggers = (hf_logging, hub_logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity(hf_logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)


@contextmanager
def without_progress_bar(hide: bool = True) -> Iterator[None]:
    """Without transformers' progress bar while a model loads."""
    shown = hf_logging.is_progress_bar_enabled()
    if hide:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide and shown:
            hf_logging.enable_progress_bar()


def processor_of(name: str) -> Any:
    """The processor of a name; None, with a warning, where there is none. Raises ModelError without such a folder."""
    where = str(Path(name).parent) if Path(name).name == "config.json" else locate(name)
    return _processor(where, name, {})


def _processor(where: str, name: str, hub: dict[str, Any]) -> Any:
    """The processor, or its parts where it wants torchvision; None, with a warning, where neither can be built."""
    try:
        try:
            return AutoProcessor.from_pretrained(where, **hub)
        except Exception as error:
            if "torchvision" not in str(error).lower():  # its video part needs it, pictures do not
                raise
            return ImageTextParts.from_pretrained(where, **hub)
    except Exception as error:  # a damaged file can end in any exception of transformers' code
        warnings.warn(
            f"{name} has no usable processor ({one_line(error)}): use inputs(...), not prepare", stacklevel=4
        )
        return None


def _why_not_loaded(name: str, error: Exception, hub: dict[str, Any]) -> str:
    if isinstance(error, UnpicklingError):
        return (
            f"'{name}' holds pickled objects beside its tensors, which can run code: save it as safetensors"
        )
    if _is_folder(Path(name).expanduser()):
        return f"cannot load the folder '{name}': {one_line(error)}; check its files and the keywords given"
    reason = hub_reason(
        error,
        name,
        revision=hub.get("revision"),
        cache=hub.get("cache_dir"),
        offline=bool(hub.get("local_files_only")),
    )
    return reason or f"cannot load '{name}': {one_line(error)}"


def check_wrappable(hf_model: Any, processor: Any) -> None:
    """Raises ModelError for what is not a transformers model or no processor, and for a model with hooks."""
    if not isinstance(hf_model, nn.Module) or not hasattr(hf_model, "config"):
        given = f"'{hf_model}'" if isinstance(hf_model, str) else f"a {type(hf_model).__name__}"
        raise ModelError(
            f"{given} is not a transformers model: give a loaded one, or a name to HookedVLM.from_pretrained"
        )
    if any(isinstance(module, GeneralizedComponent) for module in hf_model.modules()):
        raise ModelError(f"this {type(hf_model).__name__} is wrapped already: wrap a fresh one")
    has_parts = hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")
    takes_pictures = callable(processor) and not isinstance(processor, (type, PreTrainedTokenizerBase))
    if processor is not None and not has_parts and not takes_pictures:
        raise ModelError(
            f"processor is a {type(processor).__name__}: give what takes images= and text=, or "
            "gatelens.families.common.processing.ImageTextParts(image_processor, tokenizer)"
        )


def check_layout(layout: Any) -> None:
    """Raises ModelError for what is none."""
    if not isinstance(layout, Layout):
        raise ModelError(f"layout is a {type(layout).__name__}: give a gatelens.families.Layout")


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
