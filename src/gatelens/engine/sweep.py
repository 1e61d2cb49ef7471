"""A grid of interventions, one number an example at each point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.engine.run import run
from gatelens.errors import InterventionError
from gatelens.interventions.compile import as_interventions

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM


def sweep(
    model: HookedVLM,
    inputs: VLMInputs,
    grid: Mapping[str, Iterable[Any] | Mapping[Any, Any]],
    metric: Callable[[Tensor], Tensor],
    progress: bool = True,
) -> pd.DataFrame:
    """Run every point of a grid of interventions.

    Args:
        model: the model.
        inputs: the batch each point is run on.
        grid: named axes. Each is a list of choices, labelled 0, 1, …, or a dict of label to choice; a choice
            is an intervention, a list of them, or None for nothing. The points are the product of the axes,
            the last axis moving fastest; the choices of one point act together, in the order of the axes.
        metric: logits ``Float[batch, pos, d_vocab]`` to ``Float[batch]``, e.g. from ``gl.metrics``.
        progress: show a progress bar.

    Returns:
        One row a point and example, in order. Columns: the axes (the label of the choice), ``example`` (its
        number in the batch), and last ``value``. An empty grid is the one clean run.

    Raises:
        InterventionError: an axis without choices or with a taken name, an intervention that cannot act, or
            a metric that does not give one number an example.
    """
    axes: dict[str, list[tuple[Any, list[Any]]]] = {}
    for name, choices in grid.items():
        if name in ("example", "value"):
            raise InterventionError(
                f"an axis cannot be called {name!r}, that is a column of the table; rename it"
            )
        labelled = choices.items() if isinstance(choices, Mapping) else enumerate(choices)
        axes[name] = [(label, as_interventions(choice)) for label, choice in labelled]
        if not axes[name]:
            raise InterventionError(
                f"axis {name!r} of the grid has no choices; leave it out or put None in it"
            )
    points = list(product(*axes.values()))
    rows: list[tuple[Any, ...]] = []
    with torch.no_grad():
        for point in tqdm(points, desc="sweep", unit="point", disable=not progress):
            values = metric(run(model, inputs, [one for _, group in point for one in group]))
            if not isinstance(values, Tensor) or tuple(values.shape) != (inputs.tokens.batch_size,):
                shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise InterventionError(
                    f"the metric gave {shape} where {(inputs.tokens.batch_size,)} was due: one number an "
                    "example"
                )
            labels = tuple(label for label, _ in point)
            rows.extend(
                (*labels, i, value) for i, value in enumerate(values.detach().cpu().double().tolist())
            )
    return pd.DataFrame(rows, columns=[*axes, "example", "value"])
