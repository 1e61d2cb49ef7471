"""A grid of interventions on one batch of prompts, one number per example at each point."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.engine.full_run import full_cache
from gatelens.engine.generation import generate_many
from gatelens.engine.plan import Specs
from gatelens.engine.run_batch import RunBatch
from gatelens.errors import InterventionError, shown
from gatelens.hooked_model import HookedModel, usable
from gatelens.inputs import VLMInputs
from gatelens.interventions.compile import as_interventions

Grid = Mapping[str, Iterable[Any] | Mapping[Any, Any]]
Metric = Callable[[Any], Any]
Make = Callable[..., Any]
RESERVED = ("example", "point")
LOGITS, TEXTS, CACHE = (
    "logits",
    "texts",
    "cache",
)  # what a metric says it ``reads``; logits where it says nothing


def sweep(
    model: HookedModel,
    inputs: VLMInputs,
    grid: Grid,
    metric: Metric | Mapping[str, Metric],
    progress: bool = True,
    make: Make | None = None,
) -> pd.DataFrame:
    """Run every point of a grid of interventions on a batch, computing once what they have in common.

    The numbers are those of a plain run of each point (to rounding); see :func:`gatelens.explain` for what
    is computed and what is not. :func:`gatelens.sweep` takes data as well.

    Args:
        model: the model.
        inputs: the batch each point is run on.
        grid: named axes. Each is a list of choices, labelled 0, 1, …, or a dict of label to choice; a choice
            is an intervention, a list of them, or None for nothing. The points are the product of the axes,
            the last axis moving fastest; the choices of one point act together, in the order of the axes.
        metric: logits ``Float[batch, pos, d_vocab]`` to ``Float[batch]``, e.g. from ``gl.metrics``; or a dict
            of column name to metric. Those of ``gl.metrics`` that read the last position skip the other
            rows of the logits. The logits are overwritten after the metric has returned: keep a copy.
        progress: show a progress bar.
        make: makes the intervention of a point from its choices, which are then any values: a function whose
            arguments are the axes. Words and numbers are their own labels.

    Returns:
        One row per point and example, in order. Columns: the axes (the label of the choice), ``example`` (its
        number in the batch), and last ``value`` (or the metrics' names). An empty grid is the one clean run.

    Raises:
        InterventionError: an axis without choices or with a taken name, an intervention that cannot act, or
            a metric that does not give one number per example.

    Example:
        >>> grid = {"cut": {"nothing": None, "gate": gl.knockout("last", "gate")}}
        >>> metric = gl.metrics.prob(model.to_single_token("sunflower"))
        >>> gl.engine.sweep(model, inputs, grid, metric, progress=False).value.round(2).tolist()
        [0.99, 0.08]
    """
    inputs, metrics = usable(model, inputs), metrics_of(metric, grid)
    labels, runs = points_of(grid, make)
    with tqdm(total=len(runs) * n_passes(metrics), desc="sweep", unit="run", disable=not progress) as bar:
        values = measure_points(model, inputs, runs, metrics, bar.update)
    numbers = range(inputs.batch_size)
    return as_table(labels, list(numbers), list(grid), {name: values[name] for name in metrics})


def as_table(
    labels: Sequence[tuple[Any, ...]],
    examples: Sequence[Any],
    axes: Sequence[str],
    values: Mapping[str, Sequence[Sequence[float]]],
) -> pd.DataFrame:
    """One row per point and example; ``values`` by metric, point and example."""
    rows = [
        (*point, example, *(values[name][i][j] for name in values))
        for i, point in enumerate(labels)
        for j, example in enumerate(examples)
    ]
    return pd.DataFrame(rows, columns=[*axes, "example", *values])


def measure_points(
    model: HookedModel,
    inputs: VLMInputs,
    runs: Sequence[Specs],
    metrics: Mapping[str, Metric],
    done: Callable[[int], object] = lambda n: None,
) -> dict[str, list[list[float]]]:
    """What each metric gives of each run, by name: one number per example. ``done`` is told of runs made."""
    values: dict[str, list[list[float]]] = {name: [[] for _ in runs] for name in metrics}
    by_kind = _by_kind(metrics)

    def note(names: Iterable[str], i: int, given: Any) -> None:
        for name in names:
            values[name][i] = numbers_of(metrics[name](given), inputs.batch_size)

    with model.lock, torch.no_grad():
        for (kind, detail), names in by_kind.items():
            if kind == LOGITS:
                last_only = all(getattr(metrics[name], "last_only", False) for name in names)
                for i, logits in RunBatch(model, inputs, runs, every_position=not last_only).each():
                    note(names, i, logits)
                    done(1)
            elif kind == TEXTS:
                for i, written in enumerate(generate_many(model, inputs, runs, detail)):
                    note(names, i, written.texts)
                done(len(runs))
            else:
                for i, specs in enumerate(runs):
                    note(names, i, full_cache(model, inputs, specs, detail))
                    done(1)
    return values


def n_passes(metrics: Mapping[str, Metric]) -> int:
    """How often every point is run: once for the logits, once for each length of texts, once for each cache."""
    return len(_by_kind(metrics))


def _by_kind(metrics: Mapping[str, Metric]) -> dict[tuple[str, Any], list[str]]:
    """(what is read, and how much of it), and the metrics that read it."""
    kinds: dict[tuple[str, Any], list[str]] = {}
    for name, one in metrics.items():
        kind = getattr(one, "reads", LOGITS)
        detail = {TEXTS: "max_new_tokens", CACHE: "names"}.get(kind)
        kinds.setdefault((kind, getattr(one, detail) if detail else None), []).append(name)
    return kinds


def points_of(grid: Grid, make: Make | None = None) -> tuple[list[tuple[Any, ...]], list[Specs]]:
    """The labels and the interventions of every point of a grid, the last axis moving fastest.

    Raises:
        InterventionError: an axis without choices, a choice that is not an intervention, or a ``make`` whose arguments
            are not the axes.
    """
    if not isinstance(grid, Mapping):
        raise InterventionError(f'grid is {shown(grid)}: give a dict, such as {{"start": [...]}}')
    axes: list[list[tuple[Any, Any]]] = []
    for name, choices in grid.items():
        if not isinstance(name, str):
            raise InterventionError(f"axis {shown(name)} of the grid: give it a name")
        if isinstance(choices, str) or not isinstance(choices, Iterable):
            raise InterventionError(
                f"axis {name!r} of the grid is {shown(choices)}: give a list of choices, or a dict of label to choice"
            )
        labelled = choices.items() if isinstance(choices, Mapping) else enumerate(choices)
        if make is None:
            axes.append([(label, as_interventions(choice)) for label, choice in labelled])
        elif isinstance(choices, Mapping):
            axes.append(list(labelled))
        else:
            plain = (str, int, float, type(None))
            axes.append([(choice if isinstance(choice, plain) else i, choice) for i, choice in labelled])
        if not axes[-1]:
            raise InterventionError(
                f"axis {name!r} of the grid has no choices; leave it out or put None in it"
            )
    if make is not None:
        _check_make(make, list(grid))
    points = list(product(*axes))
    labels = [tuple(label for label, _ in point) for point in points]
    chosen = [[choice for _, choice in point] for point in points]
    if make is None:
        return labels, [[spec for specs in choices for spec in specs] for choices in chosen]
    return labels, [as_interventions(make(**dict(zip(grid, choices, strict=True)))) for choices in chosen]


def _check_make(make: Any, axes: list[str]) -> None:
    if not callable(make):
        raise InterventionError(f"make is {shown(make)}: give a function of the axes {', '.join(axes)}")
    try:
        inspect.signature(make).bind(**dict.fromkeys(axes))
    except TypeError as error:
        raise InterventionError(
            f"make does not take the axes of the grid ({', '.join(axes) or 'none'}): {error}; name its arguments as "
            "the axes"
        ) from None


def metrics_of(metric: Any, grid: Grid) -> dict[str, Metric]:
    """Column name to metric. Raises InterventionError where there is none, or an axis takes a column's name."""
    metrics = {"value": metric} if callable(metric) else metric
    if not isinstance(metrics, Mapping) or not metrics:
        raise InterventionError(
            f"metric is {shown(metric)}: give a function of the logits, or a dict of column name to function"
        )
    for name, one in metrics.items():
        if not isinstance(name, str) or name in RESERVED:
            raise InterventionError(f"a metric cannot be called {shown(name)}; give another name")
        if not callable(one):
            raise InterventionError(f"metric {name!r} is {shown(one)}: give a function of the logits")
    for name in grid if isinstance(grid, Mapping) else ():
        if name in (*RESERVED, "value", *metrics):
            raise InterventionError(
                f"an axis cannot be called {name!r}, which is a column of the table; rename it"
            )
    return dict(metrics)


def numbers_of(values: Any, batch: int) -> list[float]:
    """What a metric gave, one number per example. Raises InterventionError for anything else."""
    if not isinstance(values, Tensor) or tuple(values.shape) != (batch,) or values.is_complex():
        given = type(values).__name__
        if isinstance(values, Tensor):
            given = f"complex {tuple(values.shape)}" if values.is_complex() else str(tuple(values.shape))
        raise InterventionError(f"the metric gave {given}, expected {(batch,)}: one number per example")
    return values.detach().cpu().double().tolist()
