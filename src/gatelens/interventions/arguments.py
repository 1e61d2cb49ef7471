"""What the verbs take: arguments checked when an intervention is made, each error one line that names the fix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from gatelens.errors import GatelensError, InterventionError, shown, whole_number

Indices: TypeAlias = tuple[int, ...] | slice | None
Layers: TypeAlias = int | Iterable[int] | slice | None
Heads: TypeAlias = int | Iterable[int] | slice | None


def as_indices(value: Layers | Heads, word: str) -> Indices:
    """Normalise ``layers=`` or ``heads=``: None and slices stay, ints and iterables become a sorted tuple.

    Raises:
        InterventionError: nothing in it, or something that is not an integer.
    """
    if value is None:
        return value
    if isinstance(value, slice):
        try:
            value.indices(1)
        except (TypeError, ValueError) as error:
            raise InterventionError(f"{word}={value!r} is not a slice of {word}: {error}") from None
        return value
    given: Any = value.tolist() if hasattr(value, "tolist") else value  # tensors and numpy arrays
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    indices = tuple(sorted({_as_index(item, value, word) for item in (given if several else [given])}))
    if not indices:
        raise InterventionError(
            f"{word} is empty, so nothing would happen; leave the intervention out (None in a sweep's grid)"
        )
    return indices


def _as_index(item: Any, value: object, word: str) -> int:
    number = whole_number(item)
    if number is None:
        raise InterventionError(
            f"{word}={shown(value)}: {shown(item)} is no {word[:-1]} number; give an int, several ints, a range "
            "or a slice"
        )
    return number


def as_number(value: Any, word: str) -> float:
    """A finite real number.

    Raises:
        InterventionError: anything else.
    """
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InterventionError(f"{word}={shown(value)} is not a number; give one, e.g. {word}=1.5") from None
    if not math.isfinite(number):
        raise InterventionError(f"{word}={value!r} is not finite; give a finite number")
    return number


def as_count(value: Any, word: str, least: int = 1, error: type[GatelensError] = InterventionError) -> int:
    """A whole number of ``least`` or more; numpy's and torch's pass, True and 2.0 do not.

    Raises:
        error: anything else.
    """
    number = whole_number(value)
    if number is None or not least <= number < 2**63:
        raise error(f"{word}={shown(value)}: give a whole number, {least} or more")
    return number


def as_flag(value: Any, word: str) -> bool:
    """True or False. Raises InterventionError for anything else."""
    if not isinstance(value, bool):
        raise InterventionError(f"{word}={shown(value)}: say {word}=True or {word}=False")
    return value


def check_choice(value: Any, choices: Mapping[str, str], word: str) -> None:
    """Raise :class:`InterventionError` for none of the choices, which map to what they mean."""
    if not isinstance(value, str) or value not in choices:
        known = " or ".join(f"{word}={name!r} ({meaning})" for name, meaning in choices.items())
        raise InterventionError(f"{word}={shown(value)} is unknown; say {known}")


def check_vector(value: Any, word: str) -> None:
    """Raise :class:`InterventionError` for what is not a tensor of finite real numbers."""
    if not isinstance(value, Tensor):
        raise InterventionError(
            f"{word} is a {type(value).__name__}; give a tensor, e.g. torch.as_tensor(values)"
        )
    if value.is_complex() or (value.dtype.is_floating_point is False and value.element_size() == 1):
        raise InterventionError(f"{word} is a tensor of {value.dtype}; give one of floating-point numbers")
    if not value.isfinite().all():
        raise InterventionError(f"{word} holds numbers that are not finite; give others")
