"""Units measured one after the other in this process, with the model it holds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from gatelens.executors.unit import Done, Fault, Measured, Unit


class InProcess:
    """In this process. An error of a unit is raised as it is, at once; its traceback names the unit."""

    def run(self, units: Iterable[Unit], done: Done) -> Iterator[Measured | Fault]:
        """The units as they are measured, in order."""
        for unit in units:
            started = time.perf_counter()
            try:
                tables = unit.measure(done)
            except Exception as error:
                error.add_note(f"while unit {unit.name!r} was measured")
                raise
            yield Measured(unit, tables, time.perf_counter() - started)
