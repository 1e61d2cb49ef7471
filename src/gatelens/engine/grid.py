"""A grid of interventions, one number an example at each point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.engine.plan import Specs
from gatelens.engine.run_batch import RunBatch
from gatelens.errors import InterventionError, shown
from gatelens.hooked_model import HookedModel, usable
from gatelens.inputs import VLMInputs
from gatelens.interventions.compile import as_interventions

Grid = Mapping[str, Iterable[Any] | Mapping[Any, Any]]
Metric = Callable[[Tensor], Tensor]


def sweep(
    model: HookedModel,
    inputs: VLMInputs,
    grid: Grid,
    metric: Metric | Mapping[str, Metric],
    progress: bool = True,
) -> pd.DataFrame:
    """Run every point of a grid of interventions, computing once what they have in common.

    The numbers are those of a plain run of each point (to rounding); see :func:`gatelens.explain` for what
    is computed and what is not.

    Args:
        model: the model.
        inputs: the batch each point is run on.
        grid: named axes. Each is a list of choices, labelled 0, 1, …, or a dict of label to choice; a choice
            is an intervention, a list of them, or None for nothing. The points are the product of the axes,
            the last axis moving fastest; the choices of one point act together, in the order of the axes.
        metric: logits ``Float[batch, pos, d_vocab]`` to ``Float[batch]``, e.g. from ``gl.metrics``; or a dict
            of column name to metric. Those of ``gl.metrics`` that read the last position spare the other
            rows of the logits. The logits are overwritten after the metric has returned: keep a copy.
        progress: show a progress bar.

    Returns:
        One row a point and example, in order. Columns: the axes (the label of the choice), ``example`` (its
        number in the batch), and last ``value`` (or the metrics' names). An empty grid is the one clean run.

    Raises:
        InterventionError: an axis without choices or with a taken name, an intervention that cannot act, or
            a metric that does not give one number an example.
    """
    inputs, metrics = usable(model, inputs), _metrics(metric)
    labels, runs = points_of(grid)
    for name in grid:
        if name in ("example", "value", *metrics):
            raise InterventionError(
                f"an axis cannot be called {name!r}, that is a column of the table; rename it"
            )
    last_only = all(getattr(m, "last_only", False) for m in metrics.values())
    values: dict[int, list[list[float]]] = {}
    with model.lock, torch.no_grad():
        batch = RunBatch(model, inputs, runs, every_position=not last_only)
        for i, logits in tqdm(batch.each(), total=len(runs), desc="sweep", unit="run", disable=not progress):
            values[i] = [numbers_of(m(logits), inputs.batch_size) for m in metrics.values()]
    rows = [
        (*point, example, *numbers)
        for i, point in enumerate(labels)
        for example, numbers in enumerate(zip(*values[i], strict=True))
    ]
    return pd.DataFrame(rows, columns=[*grid, "example", *metrics])


def points_of(grid: Grid) -> tuple[list[tuple[Any, ...]], list[Specs]]:
    """The labels and the interventions of every point of a grid, the last axis moving fastest.

    Raises:
        InterventionError: an axis without choices, or a choice that is no intervention.
    """
    if not isinstance(grid, Mapping):
        raise InterventionError(f'grid is {shown(grid)}: give a dict, such as {{"start": [...]}}')
    axes: list[list[tuple[Any, Specs]]] = []
    for name, choices in grid.items():
        if not isinstance(name, str):
            raise InterventionError(f"axis {shown(name)} of the grid: give it a name")
        if isinstance(choices, str) or not isinstance(choices, Iterable):
            raise InterventionError(
                f"axis {name!r} of the grid is {shown(choices)}: give a list of choices, or a dict of label to choice"
            )
        labelled = choices.items() if isinstance(choices, Mapping) else enumerate(choices)
        axes.append([(label, as_interventions(choice)) for label, choice in labelled])
        if not axes[-1]:
            raise InterventionError(
                f"axis {name!r} of the grid has no choices; leave it out or put None in it"
            )
    points = list(product(*axes))
    labels = [tuple(label for label, _ in point) for point in points]
    return labels, [[spec for _, specs in point for spec in specs] for point in points]


def _metrics(metric: Any) -> dict[str, Metric]:
    """Column name to metric. Raises InterventionError where there is none to compute."""
    metrics = {"value": metric} if callable(metric) else metric
    if not isinstance(metrics, Mapping) or not metrics:
        raise InterventionError(
            f"metric is {shown(metric)}: give a function of the logits, or a dict of column name to function"
        )
    for name, one in metrics.items():
        if not isinstance(name, str) or name == "example":
            raise InterventionError(f"a metric cannot be called {shown(name)}; give another name")
        if not callable(one):
            raise InterventionError(f"metric {name!r} is {shown(one)}: give a function of the logits")
    return dict(metrics)


def numbers_of(values: Any, batch: int) -> list[float]:
    """What a metric gave, one number an example. Raises InterventionError for anything else."""
    if not isinstance(values, Tensor) or tuple(values.shape) != (batch,) or values.is_complex():
        given = type(values).__name__
        if isinstance(values, Tensor):
            given = f"complex {tuple(values.shape)}" if values.is_complex() else str(tuple(values.shape))
        raise InterventionError(f"the metric gave {given} where {(batch,)} was due: one number an example")
    return values.detach().cpu().double().tolist()
