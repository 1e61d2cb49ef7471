"""``gl.sweep``: a grid of interventions on a prepared batch, or over data in batches of prompts of one length."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gatelens import engine
from gatelens.data import Example, load
from gatelens.data.base import check_task
from gatelens.engine.grid import (
    Grid,
    Make,
    Metric,
    as_table,
    measure_points,
    metrics_of,
    n_passes,
    points_of,
)
from gatelens.engine.plan import Specs
from gatelens.errors import DataError, InputError, shown, whole_number
from gatelens.examples import Labels, auto_batch_size, of_one_length, prepare_numbered
from gatelens.executors import Executor, executing
from gatelens.identity import content_fingerprint, model_settings
from gatelens.inputs import VLMInputs
from gatelens.interventions.compile import as_interventions
from gatelens.model import HookedVLM
from gatelens.units import Done, Unit, measured, numbered, opened

SWEEP = "sweep"  # what its folder calls the study, the only section and the table


def sweep(
    model: HookedVLM,
    inputs: Any,
    grid: Grid,
    metric: Metric | Mapping[str, Metric],
    progress: bool = True,
    *,
    make: Make | None = None,
    task: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    ray: str | None = None,
) -> pd.DataFrame:
    """Run every point of a grid of interventions, computing once what they have in common.

    The numbers are those of plain runs (to rounding) in any batches; :func:`gatelens.explain` says what is computed. So
    over data a mean of the batch is refused, and ``image.mask(name)`` is the example's own (``object``: what is asked).

    Args:
        inputs: a prepared batch, a list of examples, or a data set (or its name or folder, as of ``gl.data.load``).
        grid: named axes. Each is a list of choices, labelled 0, 1, …, or a dict of label to choice; a choice is an
            intervention, a list of them, or None. The points are the product of the axes, the last moving fastest; the
            choices of a point act together, in the order of the axes.
        metric: what is measured of each example, or a dict of column name to that: a function of the logits,
            Float[batch, pos, d_vocab] to Float[batch] (overwritten afterwards: keep a copy); of what the model writes
            (``gl.metrics.of_texts``, ``gl.metrics.answer``); or of activations (``gl.metrics.of_cache``). Over data,
            tokens of ``gl.metrics`` may be functions of the example: ``gl.metrics.logit(lambda e: e.label)``.
        progress: show a progress bar.
        make: makes the intervention of a point: a function of the axes, whose choices are then any values.
        task, limit, seed: of a data set: as in its ``examples``; a task of None is ``class``, or the only one it has.
        batch_size: over data: how many examples of one length are a batch at most; None bounds memory.
        out: a folder that keeps finished batches, and the result as ``sweep.parquet``. The same call resumes there,
            one with other settings is refused; a function is identified by its code and closure.
        workers, ray: over data: how many processes measure, or actors on the Ray cluster with this address.

    Returns:
        One row per point and example, in order. Columns: the axes (labels), ``example`` (its id; in a batch its
        number), and last ``value`` or the metrics' names. An empty grid is the one clean run.

    Raises:
        InputError: a word unknown to the tokenizer; over data, a mean over the batch or ``masks=``.
        InterventionError: a grid, ``make`` or metric that cannot be read, an intervention that cannot act.
        DataError, OutputError: no such data, or two examples of one id; ``out`` holds something else.
        WorkerError: batches that failed on workers again and again; the others are kept.

    Example:
        >>> cuts = {keys: gl.knockout("text - gate", keys) for keys in ("gate", "image")}
        >>> table = gl.sweep(model, "emoji-scenes", {"keys": cuts}, gl.metrics.answer(), progress=False, limit=4)
        >>> table.groupby("keys")["value"].mean().to_dict()
        {'gate': 0.25, 'image': 1.0}
    """
    if is_data(inputs):
        work = _Work.planned(model, examples_of(inputs, task, limit, seed), grid, metric, make, batch_size)
        with executing(workers, ray) as executor:
            return work.done(out, progress, executor)
    _leave_out(inputs, task=task, limit=limit, batch_size=batch_size, out=out, workers=workers, ray=ray)
    return engine.sweep(model, inputs, grid, metric, progress, make)


def _leave_out(inputs: Any, **given: Any) -> None:
    """Raise InputError for an argument that means nothing for a prepared batch."""
    wrong = next((name for name, value in given.items() if value is not None), None)
    if wrong is not None:
        raise InputError(f"{wrong}= goes with examples or a data set, and inputs is {shown(inputs)}")


def is_data(inputs: Any) -> bool:
    """Whether these are examples or a data set, not a batch."""
    if isinstance(inputs, VLMInputs):
        return False
    if isinstance(inputs, str | Path) or callable(getattr(inputs, "examples", None)):
        return True
    return isinstance(inputs, list | tuple) and (not inputs or any(hasattr(one, "prompt") for one in inputs))


def examples_of(data: Any, task: str | None, limit: int | None, seed: int) -> list[Example]:
    """The examples of a data set, its name or folder, or those of a list; each id once.

    Raises:
        DataError: there are none, a task or limit with a list, or two examples of one id.
    """
    data = load(data) if isinstance(data, str | Path) else data
    if callable(getattr(data, "examples", None)):
        if task is None and "class" not in data.tasks and len(data.tasks) != 1:
            raise DataError(f"{data.name} has the tasks {', '.join(data.tasks)}: choose one, task=")
        task = task or ("class" if "class" in data.tasks else data.tasks[0])
        check_task(data.name, task, data.tasks)
        found = list(data.examples(task, limit=limit, seed=seed))
    else:
        if task is not None or limit is not None:
            raise DataError("task= and limit= go with a data set; cut the list of examples yourself")
        found = list(data)
    for one in found:
        if not hasattr(one, "prompt") or not hasattr(one, "id"):
            raise DataError(f"{shown(one)} is not an example: give a list of examples, or a data set")
    if not found:
        raise DataError("there are no examples to run: give at least one")
    seen: set[str] = set()
    twice = next((one.id for one in found if one.id in seen or seen.add(one.id)), None)  # type: ignore[func-returns-value]
    if twice is not None:
        raise DataError(f"two examples have the id {twice!r}: rows of the table are told apart by it")
    return found


def batches_of(
    model: HookedVLM, examples: Sequence[Example], batch_size: int | None
) -> tuple[int, list[list[int]]]:
    """The size of batches, and the numbers of each batch's examples.

    Raises:
        InputError: a batch size below 1.
    """
    if batch_size is None:
        batch_size = auto_batch_size(model, max(examples, key=lambda e: len(e.prompt)))
    number = whole_number(batch_size)
    if number is None or number < 1:
        raise InputError(f"batch_size={shown(batch_size)}: give a whole number, 1 or more, or None")
    return number, of_one_length(model, examples, number)


def of_examples(
    metrics: Mapping[str, Metric], examples: Sequence[Example], labels: Labels
) -> dict[str, Metric]:
    """The metrics of these examples: those that ask each example for its tokens or answers are told of them."""

    def token_id(example: Example, word: str) -> int:
        return labels.first_token(example.prompt, word)

    return {
        name: one.bind(examples, token_id) if hasattr(one, "bind") else one for name, one in metrics.items()
    }


def _check_each_by_itself(runs: Sequence[Specs], n_examples: int, one_batch: bool) -> None:
    """Refuse what would give an example another number in another batch, or the mask of another picture.

    Args:
        one_batch: the user has chosen a batch size that holds all examples.

    Raises:
        InputError: it names the intervention and what to give.
    """
    for one in as_interventions(list(runs)):
        if one.reads_others and not one_batch:
            raise InputError(
                f"{one!r}: over data, a mean over the batch depends on which examples share it: give reference= the "
                f"cache of the prompts to average (model.run_with_cache), or one batch of all, batch_size={n_examples} "
                "for prompts of one length"
            )
        if one.masks is not None and n_examples > 1:
            raise InputError(
                f"{one!r}: over data, image.mask(name) is the examples' own mask of that name (example.masks; 'object' "
                "is what the prompt asks about): leave masks= out, or put the masks in the examples' meta"
            )


@dataclass(frozen=True)
class _Runs:
    """What is run on every batch."""

    model: HookedVLM
    runs: Sequence[Specs]
    metrics: Mapping[str, Metric]
    labels: Labels

    def measure(
        self, part: Sequence[int], examples: Sequence[Example], done: Done
    ) -> dict[str, pd.DataFrame]:
        """One batch: columns ``point`` (its number), ``example`` (its id) and the metrics.

        Args:
            part: the numbers of its examples.
        """
        with torch.inference_mode():
            inputs = prepare_numbered(self.model, examples, part)
            metrics = of_examples(self.metrics, examples, self.labels)
            values = measure_points(self.model, inputs, self.runs, metrics, lambda n: done(n * len(part)))
        points = [(i,) for i in range(len(self.runs))]
        return {"values": as_table(points, [e.id for e in examples], ["point"], values)}


@dataclass(frozen=True)
class _Work:
    """A sweep over examples, as data: what is run, on which batches."""

    model: HookedVLM
    examples: Sequence[Example]
    axes: tuple[str, ...]
    labels: Sequence[tuple[Any, ...]]
    runs: Sequence[Specs]
    metrics: Mapping[str, Metric]
    size: int
    parts: Sequence[Sequence[int]]

    @classmethod
    def planned(
        cls,
        model: HookedVLM,
        examples: Sequence[Example],
        grid: Grid,
        metric: Any,
        make: Any,
        size: int | None,
    ) -> _Work:
        metrics = metrics_of(metric, grid)
        labels, runs = points_of(grid, make)
        chosen = size
        size, parts = batches_of(model, examples, size)
        one_batch = len(parts) == 1 and chosen is not None
        _check_each_by_itself(runs, len(examples), one_batch)
        return cls(model, examples, tuple(grid), labels, runs, metrics, size, parts)

    def done(self, out: str | os.PathLike[str] | None, progress: bool, executor: Executor) -> pd.DataFrame:
        """Measures what is missing in the folder, or all of it, and gives the table."""
        every = _Runs(self.model, self.runs, self.metrics, Labels(self.model))
        a_prompt = len(self.runs) * n_passes(self.metrics)
        units = [
            Unit(
                numbered(n),
                len(part) * a_prompt,
                partial(every.measure, part, [self.examples[i] for i in part]),
            )
            for n, part in enumerate(self.parts)
        ]
        with opened(out, SWEEP, self.settings) as run:
            found = measured(run, SWEEP, units, progress, executor=executor)
            table = self.table([tables["values"] for tables in found])
        run.save(SWEEP, _storable(table))
        return table

    def settings(self) -> dict[str, Any]:
        """What the folder of a sweep says was asked for."""
        points = {}
        for i, (label, specs) in enumerate(zip(self.labels, self.runs, strict=True)):
            said = ", ".join(f"{axis}={one}" for axis, one in zip(self.axes, label, strict=True))
            points[f"{i} {said}".strip()] = f"{content_fingerprint(specs)} {specs!r:.200}"
        return {
            **model_settings(self.model),
            "n": len(self.examples),
            "examples": content_fingerprint(list(self.examples)),
            "batch_size": self.size,
            "points": points,
            "metrics": {name: content_fingerprint(one) for name, one in self.metrics.items()},
        }

    def table(self, batches: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """The result, from the tables of all batches."""
        values = {name: [[0.0] * len(self.examples) for _ in self.runs] for name in self.metrics}
        for part, batch in zip(self.parts, batches, strict=True):
            for name, by_point in values.items():
                numbers = batch[name].to_numpy().reshape(len(self.runs), len(part))
                for i, row in enumerate(numbers):
                    for place, value in zip(part, row, strict=True):
                        by_point[i][place] = float(value)
        return as_table(self.labels, [e.id for e in self.examples], self.axes, values)


def _storable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with labels of mixed kinds as words, which Parquet can hold."""
    mixed = [name for name in table if table[name].dtype == object]
    return table.assign(**{name: [str(one) for one in table[name]] for name in mixed})
