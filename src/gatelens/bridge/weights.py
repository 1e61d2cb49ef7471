"""Weights wherever they are: in memory, quantised, or kept elsewhere by accelerate until their module runs.

``state_dict`` is called nowhere on a wrapped model: the 4-bit layers of bitsandbytes 0.50 repack their weights in it,
and on the CPU compute something else afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatelens.errors import ModelError

_WRAPPED = (
    "_original_component"  # in a path where a module of TransformerLens stands around one of transformers
)
ROUNDED = "activations are rounded to 8 bits"
OUTLIERS = "which columns of an activation stay in 16 bits depends on all rows of the batch"


def named_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, under the names and in the order of ``state_dict``."""
    for path, module in root.named_modules(remove_duplicate=False):
        buffers = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for leaf, value in {**module._parameters, **buffers}.items():
            if value is not None:
                yield (f"{path}.{leaf}" if path else leaf), value


def named_values(root: nn.Module) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
    """(name, parameter, plain tensors that hold its values), each parameter once, also those that are not in memory.

    A parameter without values has no tensors: that of a model made on the device "meta".
    """
    maps: list[tuple[str, Any]] = []
    for path, module in root.named_modules():
        for hook in _accelerate_hooks(module):
            if getattr(hook, "weights_map", None) is not None:
                maps.append((_own_path(path), hook.weights_map))
    for name, parameter in root.named_parameters():
        value: Any = parameter if parameter.device.type != "meta" else _kept(maps, _own_path(name))
        yield name, parameter, [] if value is None else _plain(value)


def _own_path(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _WRAPPED)


def _kept(maps: list[tuple[str, Any]], name: str) -> Tensor | None:
    """What accelerate keeps under a name."""
    for prefix, kept in reversed(maps):
        if name.startswith(f"{prefix}.") or not prefix:
            try:
                return kept[name.removeprefix(f"{prefix}.")]
            except KeyError:  # its keys are not asked for: accelerate lists those of the whole model
                continue
    return None


def _plain(value: Any) -> list[Tensor]:
    """The tensors of numbers that a weight is made of."""
    if type(value).__name__ == "Params4bit":
        return [_code_counts(value)]
    value = value.detach()
    if hasattr(value, "__tensor_flatten__"):  # torchao and other subclasses of torch's kind
        parts = (getattr(value, name, None) for name in value.__tensor_flatten__()[0])
        return [inner for part in parts if isinstance(part, Tensor) for inner in _plain(part)]
    return [value.as_subclass(Tensor)]


def _code_counts(value: Any) -> Tensor:
    """How often each 4-bit code occurs in the first 32 rows, which bitsandbytes repacks together."""
    codes = value.detach().as_subclass(Tensor).flatten().view(torch.uint8)
    codes = codes[: 16 * shape_of(value)[-1]]
    return torch.bincount(torch.cat([codes & 15, codes >> 4]).long(), minlength=16)


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of the matrix that a weight represents."""
    return tuple(getattr(getattr(value, "quant_state", None), "shape", None) or value.shape)


def stored_bytes(root: nn.Module) -> int:
    """Bytes of parameters and buffers, each once, as they are stored; also of those that are not in memory."""
    held = {id(value): value for value in (*root.parameters(), *root.buffers())}
    return sum(_bytes_of(value) for value in held.values())


def _bytes_of(value: Any) -> int:
    if hasattr(value, "__tensor_flatten__"):
        parts = (getattr(value, name, None) for name in value.__tensor_flatten__()[0])
        return sum(_bytes_of(part) for part in parts if isinstance(part, Tensor))
    scale = sum(one.numel() * one.element_size() for one in scales(value))
    return value.numel() * value.element_size() + scale


def scales(value: Any) -> list[Tensor]:
    """What bitsandbytes multiplies the codes of a weight by; NaN where the weight it was made from was."""
    state = getattr(value, "quant_state", None)
    inner = getattr(state, "state2", None)
    found = (getattr(state, "absmax", None), getattr(inner, "absmax", None), getattr(value, "SCB", None))
    return [one for one in found if isinstance(one, Tensor)]


def is_quantised(value: Any) -> bool:
    """Whether a weight is stored as anything other than its own numbers."""
    return (
        hasattr(value, "__tensor_flatten__") or not value.dtype.is_floating_point or value.dtype.itemsize < 2
    )


@dataclass(frozen=True)
class Quantisation:
    """How a model's weights are quantised.

    Attributes:
        name: in words, such as ``bitsandbytes 8-bit``.
        inexact: why a run that shares a batch with others can differ from the same run alone; empty where it cannot
            by more than rounding.
    """

    name: str
    inexact: str = ""

    def __str__(self) -> str:
        return self.name


def quantisation(root: nn.Module) -> Quantisation | None:
    """How the weights are quantised; None where none is."""
    found: dict[str, str] = {}
    for module in root.modules():
        for value in module._parameters.values():
            if value is not None and is_quantised(value):
                name, inexact = _kind(module, value)
                found[name] = found.get(name) or inexact
    if not found:
        return None
    reasons = sorted({reason for reason in found.values() if reason})
    return Quantisation(", ".join(sorted(found)), "; ".join(reasons))


def _kind(module: Any, value: Any) -> tuple[str, str]:
    kind = type(value).__name__
    if kind == "Int8Params":
        outliers = float(getattr(getattr(module, "state", None), "threshold", 0.0) or 0.0)
        return "bitsandbytes 8-bit", f"{ROUNDED}, and {OUTLIERS}" if outliers else ROUNDED
    if kind == "Params4bit":
        return f"bitsandbytes 4-bit {getattr(value, 'quant_type', '')}".strip(), ""
    if hasattr(value, "__tensor_flatten__"):
        package = type(value).__module__.split(".")[0]
        return f"{package} {kind}", ROUNDED if getattr(value, "act_quant_kwargs", None) is not None else ""
    return f"packed {str(value.dtype).removeprefix('torch.')}", ""


def refuse_state_dict(root: nn.Module) -> None:
    """Make ``state_dict`` of 4-bit layers an error in this model: after it they compute something else on the CPU."""
    for module in root.modules():
        if any(type(value).__name__ == "Params4bit" for value in module._parameters.values()):
            module.register_state_dict_pre_hook(_refuse)


def _refuse(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise ModelError(
        f"state_dict() would change the 4-bit weights of '{prefix.rstrip('.')}': save the model before it is wrapped"
    )


def keeps_elsewhere(root: nn.Module) -> bool:
    """Whether accelerate's hooks place this model's modules: weights that are fetched, or layers on several devices."""
    return any(
        getattr(hook, "execution_device", None) is not None
        for module in root.modules()
        for hook in _accelerate_hooks(module)
    )


def _accelerate_hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = module.__dict__.get("_hf_hook")
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def unfetched(root: nn.Module, error: BaseException) -> str | None:
    """The module that read a weight which accelerate had not fetched; None where an error has another cause.

    accelerate fetches a module's weights when the module is called; some code reads them without calling it, such as
    the codebook of Chameleon's picture encoder.
    """
    if "meta" not in str(error) or not keeps_elsewhere(root):
        return None
    names = {id(module): _own_path(path) for path, module in root.named_modules()}
    found, trace = None, error.__traceback__
    while trace is not None:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


def check_movable(root: nn.Module, what: str) -> None:
    """Raises ModelError where weights cannot be moved or cast, as they are quantised or placed by accelerate."""
    quantised = quantisation(root)
    if quantised is not None:
        raise ModelError(
            f"{what}: the weights are quantised ({quantised}); load the model again as you want it"
        )
    if keeps_elsewhere(root):
        raise ModelError(f"{what}: accelerate places the weights; load the model again without device_map")
