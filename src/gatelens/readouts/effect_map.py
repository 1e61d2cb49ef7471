"""The result of a map: an effect for each pair and cell, with the numbers it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from gatelens.measures.stats import Bounds, mean_interval
from gatelens.readouts.labelled import LabelledTensor


@dataclass(frozen=True, eq=False, repr=False)
class EffectMap(LabelledTensor):
    """Float[pair, ...]: the share of the way from one run of a pair to the other that a cell alone carries.

    0 leaves the run as it is, 1 makes its metric that of the other run. ``.table`` has a row for each pair and cell,
    with the metric itself: ``patched``, ``clean`` and ``corrupt``. Positions are those of the first pair's prompt; NaN
    where another prompt lacks the place.

    Attributes:
        bounds: minimum and maximum of an effect, None where it is unbounded.
        cells: what each cell patches (``MapAxes`` or ``EdgeAxes``), from which a circuit is made.

    Example:
        >>> effects = gl.patch_map(model, pairs, over=("layer", "role"), layers=[0, 5], progress=False)
        >>> effects.dims
        ('pair', 'layer', 'role')
        >>> effects.table.columns.tolist()
        ['pair', 'target', 'base', 'differ', 'clean_id', 'layer', 'role', 'patched', 'clean', 'corrupt', 'value']
    """

    signed: bool = True
    bounds: Bounds | None = None
    cells: Any = None

    def mean(self, level: float = 0.95) -> LabelledTensor:
        """The mean over pairs, with its interval (``low``, ``high``), the number of pairs and the mean metric.

        Intervals are over pairs: Wilson's for answers that change or do not (``metric="top1"``), else BCa.
        """
        values = self.tensor.numpy().reshape(len(self.tensor), -1)
        low, high = np.full((2, values.shape[1]), np.nan)
        for i, cell in enumerate(values.T):
            known = cell[np.isfinite(cell)]
            if len(known):
                low[i], high[i] = mean_interval(known, self.bounds, level=level)
        return self._averaged({"low": low, "high": high})

    def show(self, title: str = "", image: int = 0, dark: bool = False) -> Figure:
        """The mean over pairs: image positions over the picture, all else in a grid, or as bars with their intervals.

        With several pairs the picture is their mean where all have one size, else the first.
        """
        as_bars = sum(len(labels) > 1 for name, labels in self.axes.items() if name != "pair") < 2
        return (self.mean() if as_bars else self._averaged({})).show(title, image, dark)

    def _averaged(self, columns: dict[str, Any]) -> LabelledTensor:
        axes = {name: labels for name, labels in self.axes.items() if name != "pair"}
        shape = self.tensor.shape[1:]
        columns = {name: np.asarray(values).reshape(shape) for name, values in columns.items()}
        columns["n"] = (~self.tensor.isnan()).sum(0).numpy()
        columns["patched"] = torch.as_tensor(self.columns["patched"]).nanmean(0).numpy()
        n = len(self.tensor)
        heading = self.heading + (f", mean of {n} pairs" if n > 1 else "")
        mean = self.tensor.nanmean(0)
        return LabelledTensor(mean, axes, self.quantity, self.tokens, self.images, columns, heading, True)

    def _summary(self) -> str:
        each = self._averaged({})
        best = int(np.nanargmax(each.tensor.numpy()))
        cell = np.unravel_index(best, tuple(each.tensor.shape))
        where = ", ".join(
            f"{name} {_name(labels, int(i))}"
            for (name, labels), i in zip(each.axes.items(), cell, strict=True)
        )
        return f"{super()._summary()[:-1]}, most {float(each.tensor.reshape(-1)[best]):.2f} at {where})"


def _name(labels: pd.DataFrame, i: int) -> str:
    """What is at an index of an axis."""
    row = labels.iloc[i]
    if "position" in labels:
        return f"{row['position']} ({row['role']}, {str(row['token']).strip()!r})"
    return str(row.iloc[0])


def labelled_axes(pairs: Sequence[Any], axes: Sequence[Any]) -> dict[str, pd.DataFrame]:
    """The axes of a map, pairs first."""
    columns = {
        "pair": range(len(pairs)),
        "target": [pair.target for pair in pairs],
        "base": [pair.base for pair in pairs],
        "differ": [pair.differ for pair in pairs],
        "clean_id": [pair.clean.id for pair in pairs],
    }
    return {"pair": pd.DataFrame(columns), **{axis.name: axis.labels for axis in axes}}
