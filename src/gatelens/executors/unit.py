"""A unit of work, its outcome, and what measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import pandas as pd

Done: TypeAlias = Callable[[int], object]  # told of steps that are finished
Tables: TypeAlias = Mapping[str, pd.DataFrame]


class Unit(NamedTuple):
    """One unit of work.

    Attributes:
        name: of its folder.
        steps: how many steps of the progress bar it takes.
        measure: gives its tables. To be sent to workers it is best a ``functools.partial`` of a function that all
            units share, which goes to each worker once, and of what this unit alone needs. A model in either goes as
            where it was loaded from.
    """

    name: str
    steps: int
    measure: Callable[[Done], Tables]


class Measured(NamedTuple):
    """A unit that is measured: its tables, and the seconds that took."""

    unit: Unit
    tables: Tables
    seconds: float


class Fault(NamedTuple):
    """A unit that failed.

    Attributes:
        attempt: 1 for the first.
        final: it is not tried again.
        error, trace: in a line, and the traceback where there is one.
    """

    unit: Unit
    attempt: int
    final: bool
    error: str
    trace: str = ""


class Executor(Protocol):
    """Measures units somewhere, and saves nothing."""

    def run(self, units: Iterable[Unit], done: Done) -> Iterator[Measured | Fault]:
        """The outcomes of units as they finish, in any order; ``done`` is told of steps.

        Units are taken when a worker is free, so that the caller may leave out what meanwhile another
        has finished. A GatelensError of a unit is raised.
        """
        ...


def shared_and_own(unit: Unit) -> tuple[Callable[..., Tables], tuple[Any, ...]]:
    """``function, arguments``: what a unit shares with others, and its own."""
    measure: Any = unit.measure
    if hasattr(measure, "func") and not measure.keywords:
        return measure.func, measure.args
    return called, (measure,)


def called(measure: Callable[[Done], Tables], done: Done) -> Tables:
    return measure(done)
