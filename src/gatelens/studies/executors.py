"""Where batches are measured: here, one after the other. Another executor is another class of this file.

An executor gets a function and batches, both of which can be pickled, and gives the tables of each batch as they are
ready, in any order. It saves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gatelens.model import HookedVLM
from gatelens.studies.section import Batch, Tables

Measure = Callable[[HookedVLM, Any], Tables]


class Executor(Protocol):
    """Measures batches somewhere.

    An executor brings its own copy of the study's model. It is kept for a whole study and called once for every round
    of batches of a section, so what is slow to start is started once; whoever made it ends it. An error of
    ``measure`` is raised to the caller.
    """

    def run(self, measure: Measure, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Tables, float]]:
        """``(batch, its tables, seconds it took)`` as they are ready; the batch may be a copy."""
        ...


def measure_one(measure: Measure, model: HookedVLM, batch: Batch) -> tuple[Batch, Tables, float]:
    """``(batch, its tables, seconds it took)``: what an executor does with each batch, wherever it does it."""
    started = time.perf_counter()
    with torch.inference_mode():
        tables = measure(model, batch)
    return batch, tables, time.perf_counter() - started


@dataclass
class Here:
    """In this process, with the model it holds."""

    model: HookedVLM

    def run(self, measure: Measure, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Tables, float]]:
        """``(batch, its tables, seconds it took)``, in the order of the batches."""
        for batch in batches:
            yield measure_one(measure, self.model, batch)
