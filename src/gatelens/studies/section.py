"""What a section of a study is: work as data, a function that measures it, and what is made of the tables.

A study is a folder of sections, and a section is one file: options, batches, measure, conclude, evidence, page.
``measure`` touches nothing but its batch and the model, so that it can run here, in another process or on another
machine; the runner alone saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gatelens.data import Dataset, Example
from gatelens.data.base import kind
from gatelens.errors import GatelensError
from gatelens.examples import by_length, consecutive
from gatelens.executors import Executor, InProcess, Tables
from gatelens.measures.stats import Bounds
from gatelens.model import HookedVLM
from gatelens.plots.card import Card
from gatelens.runs import Run
from gatelens.studies.options import Options

# kind: what it is called; says: a verdict; text: the numbers in a sentence; line: the same in at most 25 words
Evidence = dict[str, str]


CELL = ("how", "metric", "row")  # what names a cell that two runs are compared in
CELLS = [*CELL, "mean", "low", "high", "n"]
VALUES = [*CELL, "id", "value", "span"]


def span_of(bounds: Bounds | None) -> float:
    """The most by which two scores between these bounds can differ; infinite without bounds."""
    return math.inf if bounds is None else bounds[1] - bounds[0]


def cells(table: pd.DataFrame, metric: pd.Series | str, row: pd.Series) -> pd.DataFrame:
    """A table of means as cells, named by a metric and a row; without ``how`` there is one kind of knockout."""
    how = table["how"] if "how" in table.columns else ""
    return table.assign(how=how, metric=metric, row=row)[CELLS]


class Absent(GatelensError):
    """A section cannot be measured on this model or data; the message is the reason, without the section's name."""


@dataclass(frozen=True)
class Batch:
    """Work as data: whatever ``measure`` needs besides the model. It can be pickled; a section adds fields.

    Attributes:
        name: of the batch in its section, such as ``class-0003``; its tables are kept under it.
        units: how long it takes, in units of about one batch under one knockout; for the progress bar.
    """

    name: str
    units: int = field(default=1, kw_only=True)


class Measured(dict[str, Tables]):
    """Tables of the batches of one section that are measured, by batch, in the order of the batches."""

    def table(self, name: str, of: str = "") -> pd.DataFrame:
        """One table over all batches whose names begin with ``of``; empty where nothing was measured."""
        tables = [t[name] for batch, t in self.items() if batch.startswith(of) and name in t]
        parts = [table for table in tables if len(table)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


@dataclass(frozen=True)
class Setup:
    """What a section plans its batches from. It stays with the runner: batches and ``measure`` never see it.

    Attributes:
        model, data: the study's.
        drawn: the examples of each task, drawn once for all sections.
        options: the study's.
        section_options: of each chosen section, by its name.
        size: examples in a batch.
        run: read for the tables of sections before this one.
        progress: whether progress is shown.
        executor: what measures batches; for a section that itself runs a study.
    """

    model: HookedVLM
    data: Dataset
    drawn: Mapping[str, Sequence[Example]]
    options: Any
    section_options: Mapping[str, Any]
    size: int
    run: Run
    progress: bool = False
    executor: Executor = field(default_factory=InProcess)

    @property
    def n_layers(self) -> int:
        """The decoder's layers."""
        return int(self.model.cfg.n_layers)

    def examples(self, *kinds: str) -> list[tuple[str, Sequence[Example]]]:
        """``(task, examples)`` of the kinds named (``"class"``, ``"vqa"``, ``"caption"``), in that order."""
        return [(t, drawn) for wanted in kinds for t, drawn in self.drawn.items() if kind(t) == wanted]

    def batched(self, items: Sequence[Any]) -> list[tuple[int, int, Sequence[Any]]]:
        """``(number, index of the first, items)`` of batches in the order given."""
        return list(consecutive(items, self.size))

    def batched_by_length(self, examples: Sequence[Example]) -> list[tuple[int, int, Sequence[Example]]]:
        """Batches of prompts of one length, which need no padding and can share a prefix."""
        return by_length(self.model, examples, self.size)


@dataclass(frozen=True)
class Section:
    """One section of a study.

    Attributes:
        name: in ``sections=`` and on the command line.
        about: a line for the list of sections.
        batches: all of its work that is known, given what is measured so far; asked again after each round until
            nothing new comes. Raises :class:`Absent` where model or data do not have what it needs.
        measure: the tables of one batch. A function of a module, so that it can be sent away.
        conclude: the section's tables and JSON values by name, made of all that was measured; cheap, remade every
            time.
        options: its options; their defaults are the section's.
        evidence: what its tables say, in words; not asked of a run in which the section is absent.
        page: its cards in the report; not asked of a run in which the section is absent.
        reads: sections whose tables ``batches`` may read; it is planned after them.
        cells: what two runs are compared in, ``how, metric, row, mean, low, high, n``; none where its study's own
            comparison has them.
        here: its batches are measured in the runner's own process, as they use the folder of the run.
        values: what the cells are the means of, ``how, metric, row, id, value, span`` (see :func:`span_of`), so that
            runs on the same examples are compared example by example; of cells that it leaves out only the means
            are compared. None of a run from before they were kept.
        unpaired: by metric, why its cells can have no values by example.
    """

    name: str
    about: str
    batches: Callable[[Setup, Measured], Sequence[Batch]]
    measure: Callable[[HookedVLM, Any], Tables]
    conclude: Callable[[Setup, Measured], Mapping[str, Any]]
    options: type[Options] = Options
    evidence: Callable[[Run], list[Evidence]] = lambda run: []
    page: Callable[[Run], list[Card]] = lambda run: []
    reads: tuple[str, ...] = ()
    here: bool = False
    cells: Callable[[Run], pd.DataFrame] = lambda run: pd.DataFrame(columns=CELLS)
    values: Callable[[Run], pd.DataFrame] = lambda run: pd.DataFrame(columns=VALUES)
    unpaired: Mapping[str, str] = field(default_factory=dict)
