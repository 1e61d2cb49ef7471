"""Work over data in units, each kept in a run when it is whole: the same call goes on where an earlier one stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import pandas as pd
from tqdm.auto import tqdm

from gatelens.errors import GatelensError
from gatelens.runs import Run

Done: TypeAlias = Callable[[int], object]  # told of steps that are finished
Tables: TypeAlias = Mapping[str, pd.DataFrame]


class Unit(NamedTuple):
    """One unit of work.

    Attributes:
        name: of its folder.
        steps: how many steps of the progress bar it takes.
        measure: gives its tables.
    """

    name: str
    steps: int
    measure: Callable[[Done], Tables]


@contextmanager
def opened(
    out: str | os.PathLike[str] | None, study: str, settings: Callable[[], Mapping[str, Any]]
) -> Iterator[Run]:
    """The run in a folder, begun or continued; None keeps it in memory. Work that proves impossible takes it back.

    Args:
        settings: what was asked for, which is only asked where there is a folder.

    Raises:
        OutputError: the folder can't be written, holds something else, or a run with other settings.
    """
    run = Run.open(out, study=study, settings={} if out is None else settings())
    try:
        yield run
    except GatelensError:
        run.withdraw()
        raise


def measured(
    run: Run, section: str, units: Sequence[Unit], progress: bool, words: tuple[str, str] = ("", "run")
) -> list[dict[str, pd.DataFrame]]:
    """The tables of every unit, in order, after measuring those that the run lacks.

    Args:
        words: what is done (empty: the section's name), and what a step is, for the progress bar.
    """
    left = [unit for unit in units if not run.has_batch(section, unit.name)]
    total = sum(unit.steps for unit in units)
    with tqdm(
        total=total,
        initial=total - sum(unit.steps for unit in left),
        desc=words[0] or section,
        unit=words[1],
        disable=not progress,
    ) as bar:
        for unit in left:
            started = time.perf_counter()
            tables = unit.measure(bar.update)
            run.save_batch(section, unit.name, tables, time.perf_counter() - started)
    return [run.batch(section, unit.name) for unit in units]


def numbered(number: int) -> str:
    """The name of a unit by its number."""
    return f"{number:05d}"
