"""What transformers passes a decoder layer besides the stream: along which axes arguments hold positions and
examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import Cache

# arguments by name: the axes, counted from the last, of positions and of examples; None where there are none
_AXES: dict[str, tuple[int, int | None]] = {
    "attention_mask": (2, 4),
    "position_ids": (1, 2),
    "position_embeddings": (2, 3),
    "cache_position": (1, None),
}


def known(kwargs: dict[str, Any]) -> bool:
    """Whether every argument is a plain setting, or is known to hold positions along an axis."""
    mask = kwargs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 4):
        return False
    for name, value in kwargs.items():
        parts = value if isinstance(value, tuple | list) else (value,)
        kinds = (Tensor, type(None)) if name in _AXES else (bool, int, float, str, Cache, type(None))
        if not all(isinstance(part, kinds) for part in parts):
            return False
    return True


def of_rows(kwargs: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The arguments for some positions."""

    def some(name: str, value: Any) -> Any:
        if name not in _AXES:
            return value
        index: Any = (..., rows, *[slice(None)] * (_AXES[name][0] - 1))
        return _each(value, lambda x: x[index])

    return {name: some(name, value) for name, value in kwargs.items()}


def of_first(kwargs: dict[str, Any], n: int, total: int) -> dict[str, Any]:
    """The arguments for the first ``n`` of ``total`` examples; what holds for all of them stays."""

    def first(name: str, value: Any) -> Any:
        axis = _AXES.get(name, (0, None))[1]
        if axis is None or n == total:
            return value
        return _each(
            value, lambda x: x.narrow(-axis, 0, n) if x.ndim >= axis and x.shape[-axis] == total else x
        )

    return {name: first(name, value) for name, value in kwargs.items()}


def _each(value: Any, part: Callable[[Tensor], Tensor]) -> Any:
    """Of a tensor, or of each of several."""
    if value is None or isinstance(value, Tensor):
        return value if value is None else part(value)
    return type(value)(_each(one, part) for one in value)
