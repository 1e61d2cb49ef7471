"""Work over data in units, each kept in a run when it is whole: the same call resumes where an earlier one stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from gatelens.errors import GatelensError, OutputError, WorkerError
from gatelens.executors import Done, Executor, Fault, InProcess, Tables, Unit
from gatelens.runs import Claims, Run

__all__ = ["Done", "Tables", "Unit", "measure_missing", "measured", "numbered", "opened"]
FAULTS = "faults"  # the file of a run that lists those of units which it lacks


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
    run: Run,
    section: str,
    units: Sequence[Unit],
    progress: bool,
    words: tuple[str, str] = ("", "run"),
    executor: Executor | None = None,
) -> list[dict[str, pd.DataFrame]]:
    """The tables of every unit, in order, after measuring those that the run lacks.

    Args:
        words: what is done (empty: the section's name), and what a step is, for the progress bar.
        executor: measures them; None does it in this process.

    Raises:
        WorkerError: units that failed again and again; the others are kept.
    """
    missing = run.missing(section, (unit.name for unit in units))
    left = [unit for unit in units if unit.name in missing]
    total = sum(unit.steps for unit in units)
    with tqdm(
        total=total,
        initial=total - sum(unit.steps for unit in left),
        desc=words[0] or section,
        unit=words[1],
        disable=not progress,
    ) as bar:
        measure_missing(run, section, left, executor or InProcess(), bar.update)
    return [run.batch(section, unit.name) for unit in units]


def measure_missing(
    run: Run, section: str, units: Sequence[Unit], executor: Executor, done: Done = lambda steps: None
) -> None:
    """Measure the units that a run lacks, and keep each when it is whole.

    A unit that another process is measuring in the same folder is left to it. What the other did not finish in the end
    is measured here.

    Raises:
        OutputError: the run was begun with other code or libraries (see :meth:`gatelens.runs.Run.check_versions`).
        WorkerError: units that failed again and again; the others are kept, and ``faults.json`` tells of each attempt.
    """
    if units:
        run.check_versions()
    with run.claims(section) as claims:
        left = list(units)
        while left:
            given_up, elsewhere = _measure_free(run, section, left, executor, done, claims)
            if given_up:
                _forget_measured(run, section)
                raise _failed(run, section, given_up)
            for unit in elsewhere:
                claims.wait(unit.name)
            left = elsewhere
    _forget_measured(run, section)


def _measure_free(
    run: Run, section: str, units: Sequence[Unit], executor: Executor, done: Done, claims: Claims
) -> tuple[list[Fault], list[Unit]]:
    """Measure the units that no other process measures; ``given up, measured elsewhere``."""
    given_up: list[Fault] = []
    elsewhere: list[Unit] = []

    def free() -> Iterator[Unit]:
        for unit in units:
            if not claims.take(unit.name):
                elsewhere.append(unit)
            elif run.has_batch(section, unit.name):
                claims.release(unit.name)
                done(unit.steps)
            else:
                yield unit

    for one in executor.run(free(), done):
        if isinstance(one, Fault):
            _note(run, section, one)
            given_up += [one] if one.final else []
        else:
            run.save_batch(section, one.unit.name, one.tables, one.seconds)
        if not isinstance(one, Fault) or one.final:
            claims.release(one.unit.name)
    return given_up, elsewhere


def _failed(run: Run, section: str, given_up: Sequence[Fault]) -> WorkerError:
    first = given_up[0]
    names = ", ".join(fault.unit.name for fault in given_up[:5]) + ", …" * (len(given_up) > 5)
    where = "" if run.path is None else f"; the others are kept, more is in {run.path / FAULTS}.json"
    return WorkerError(
        f"{section}: {len(given_up)} unit{'s' * (len(given_up) > 1)} failed {first.attempt} times ({names}), "
        f"{first.unit.name} by {first.error}{where}; the same call tries again"
    )


def _note(run: Run, section: str, fault: Fault) -> None:
    """Add a fault to the run's list."""
    said = {"section": section, "unit": fault.unit.name, "attempt": fault.attempt, "error": fault.error}
    run.save(FAULTS, [*_noted(run), {**said, "trace": fault.trace}])


def _forget_measured(run: Run, section: str) -> None:
    """Take the units of a section that are measured by now off the list; it goes when it is empty."""
    before = _noted(run)
    there = {
        unit
        for unit in {f["unit"] for f in before if f["section"] == section}
        if run.has_batch(section, unit)
    }
    after = [fault for fault in before if fault["section"] != section or fault["unit"] not in there]
    if not after and before:
        run.remove(FAULTS)
    elif after != before:
        run.save(FAULTS, after)


def _noted(run: Run) -> list[dict[str, Any]]:
    try:
        return run.json(FAULTS)
    except OutputError:  # there are none, or another process has just taken the last off
        return []


def numbered(number: int) -> str:
    """The name of a unit by its number."""
    return f"{number:05d}"
