"""Options of studies and their sections: what they may be, checked before a model is loaded or a folder opened.

Options are pydantic models. The command line, the manifest and the list of sections are made from their fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from gatelens.errors import DataError, InterventionError, did_you_mean

O = TypeVar("O", bound="Options")  # noqa: E741  # the field's word for a model of options
M = TypeVar("M")
How = Literal["zero", "mask"]


@dataclass(frozen=True)
class Says:
    """What to give instead, in the words of an error: ``give a whole number, 1 or more``."""

    text: str


@dataclass(frozen=True)
class CountsExamples:
    """Marks an option that counts examples: ``limit`` caps it."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


MOST = 10**9  # of anything counted: what comes after is a slip, and too long for what counts in C
Count = Annotated[int, Field(ge=0, le=MOST), Says("a whole number, 0 or more")]
AtLeastOne = Annotated[int, Field(ge=1, le=MOST), Says("a whole number, 1 or more")]
AtLeastTwo = Annotated[int, Field(ge=2, le=MOST), Says("a whole number, 2 or more")]
Examples = Annotated[int, Field(ge=0, le=MOST), Says("a whole number, 0 or more"), CountsExamples()]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Says("a whole number, 0 or more")]  # numpy's, the narrowest
# drawn again and again: each is work, or held in memory
Repeats = Annotated[int, Field(ge=0, le=1000), Says("a whole number, 0 or more")]
Resamples = Annotated[int, Field(ge=1, le=100_000), Says("a whole number, 1 or more")]
NonNegative = Annotated[float, Field(ge=0), AfterValidator(_finite), Says("a number, 0 or more")]


class Options(BaseModel):
    """Options of a section; a subclass adds fields, each with a default and a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    def capped(self: O, limit: int | None) -> O:
        """With the options that count examples at most ``limit``."""
        if limit is None:
            return self
        counts = {
            name: min(value, limit)
            for name, field in type(self).model_fields.items()
            if _mark(field, CountsExamples) and (value := getattr(self, name)) is not None
        }
        return self.model_copy(update=counts)

    def settings(self) -> dict[str, Any]:
        """As the manifest keeps them: what JSON can hold; objects by the name of their kind."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields}


def checked(kind: type[O], values: Mapping[str, Any], place: str = "") -> O:
    """The options with these values.

    Args:
        kind: the options' class.
        values: by name; what is not there has its default.
        place: named before the option in errors, such as a section.

    Raises:
        DataError: an unknown option, or a value that it cannot have; one line that says what to give.
        InterventionError: a kind of knockout that there is not.
    """
    where = f"{place}." if place else ""
    for name in values:
        check_known(f"option{f' of section {place!r}' if place else ''}", name, kind.model_fields)
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        says = _says(kind.model_fields[name]) if name in kind.model_fields else ""
        if first["type"] == "missing":
            raise DataError(f"option {where}{name} has no default: give {says or 'it a value'}") from None
        value = values.get(name)
        if name == "how":
            raise InterventionError(
                f"how={value!r} is not a kind of knockout; choose 'zero', 'mask' or 'both'"
            ) from None
        reason = f"give {says}" if says else first["msg"].removeprefix("Value error, ")
        if first["type"] == "less_than_equal":
            reason = f"give {first['ctx']['le']:,} at most"
        text = repr(value)
        text = text if len(text) <= 80 else f"{text[:79]}…"
        raise DataError(f"option {where}{name}={text}: {reason}") from None


def typed(value: Any) -> str:
    """A value of an option as it is typed on the command line: a word, or JSON."""
    return value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)


def _says(field: FieldInfo) -> str:
    """What an option may be, as its marks say."""
    says = _mark(field, Says)
    if says is None:
        return ""
    return says.text if says in field.metadata else f"{says.text}, or null"


def _mark(field: FieldInfo, kind: type[M]) -> M | None:
    """The mark of a kind on an option, or beside null on one of its choices, as ``Examples | None``."""
    choices = [mark for choice in get_args(field.annotation) for mark in getattr(choice, "__metadata__", ())]
    return next((mark for mark in (*field.metadata, *choices) if isinstance(mark, kind)), None)


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not among the known ones.

    Raises:
        DataError: with the nearest known name, or all of them.
    """
    names = list(known)
    if name not in names:
        hint = did_you_mean(name, names) or f"; known: {', '.join(names) or 'none'}"
        raise DataError(f"no {what} {name!r}{hint}")


def kinds_of_knockout(how: str, first: How = "zero") -> tuple[How, ...]:
    """``"both"`` as two kinds, the paper's ``first`` before the other.

    A study's verdict starts from the first, which does not always decide: in the narrow-gate study patching does where
    both cuts do damage, and in the gate finder sets of positions do, with another picture's activations.
    """
    second: How = "mask" if first == "zero" else "zero"
    return (first, second) if how == "both" else ("zero",) if how == "zero" else ("mask",)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__name__", type(value).__name__)
