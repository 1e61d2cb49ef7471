"""What a table of heads holds, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gatelens.errors import DataError, did_you_mean, shown
from gatelens.plots.value_maps import Grid, ScaledGrid, scaled_grids

# of a column: what a figure says of it, and its unit; ``answer`` is what is measured of an answer
HEADINGS = {
    "image": ("attention to the picture", "share of attention"),
    "gate": ("attention to the gate", "share of attention"),
    "text": ("attention to the text", "share of attention"),
    "entropy": ("entropy of attention", "nats"),
    "object": ("attention in the object's mask", "share of attention on the picture"),
    "sink": ("attention drawn by sinks", "share of attention"),
    "sink_tower": ("attention drawn by sinks of the tower", "share of attention"),
    "sink_decoder": ("attention drawn by sinks of the decoder", "share of attention"),
    "attribution": ("direct attribution", "answer"),
    "knockout": ("lost without the head", "answer"),
    "regression": ("worth by regression", "answer"),
}


class HeadsTable(pd.DataFrame):
    """A DataFrame with a row per head, which :meth:`show` draws.

    Each column is a mean over examples, with its 95 % interval (``_low, _high``). What is measured of an answer is one
    number: the logit of the right token less that of a wrong one (another example's answer; of pairs the corrupt
    picture's). Positive ``attribution``, ``knockout`` and ``regression`` mean that the head helps.

    ================  =============================================================================================
    part              columns
    ================  =============================================================================================
    ``attention``     ``image, gate, text``: shares of the query rows' attention; ``entropy`` of these rows (nats)
    ``localisation``  ``object``: of the attention on the picture, the share in the mask of the object asked about;
                      ``object_chance``: of an even map
    ``sinks``         ``sink``: attention of all later rows that goes to positions which draw 0.3 of it or more (Gu et
                      al. 2024); ``sink_tower, sink_decoder``: to those whose norm is large from the tower, or becomes
                      large in the decoder (:func:`gatelens.measures.heads.sink_origins`); others are in neither
    ``attribution``   what it writes towards the answer directly (:func:`gatelens.attribute`)
    ``knockout``      what is lost when its output ``z`` is replaced
    ``regression``    its weight in a linear regression of the answer on which heads are kept, over random subsets
    ``vocabulary``    ``writes``: the tokens its OV circuit writes for the mean value of chosen positions
    ================  =============================================================================================

    ``regression`` follows *head attribution* (Kim, Kang, Park, Kim and Hwang 2025, arXiv 2509.17588), known here from
    its abstract and figures. Theirs: random subsets of heads are ablated, and a linear model that knows which heads are
    there is fitted to the answer's logit; its coefficients find heads that ablating one at a time misses, where heads
    stand in for each other. Ours: what is ablated (there the keys and values of the picture that a head reads, here all
    that a head writes at ``ablate_at``, as for ``knockout``); the difference of two logits; how many subsets, the share
    left out, and the penalty; the same subsets for every example with a fit for each; ``r2_held_out``, for subsets that
    were not fitted; the interval, which adds in quadrature what the draw of subsets leaves open
    (:class:`gatelens.measures.heads.Regression`) to the interval over examples.

    ``.attrs`` hold what is true of the whole table: ``n`` (examples); ``quantity``, what is measured of an answer,
    where a part does; ``r2`` and ``r2_held_out`` of the regression, and ``sinks``, the positions that draw attention
    (as records; :attr:`sinks` is a table of them).

    Example:
        >>> heads = gl.heads_table(model, "emoji-scenes", ["attention", "knockout"], n=4, progress=False)
        >>> best = heads.sort_values("knockout", ascending=False)
        >>> best.columns[:6].tolist()
        ['layer', 'head', 'image', 'image_low', 'image_high', 'gate']
    """

    @property
    def _constructor(self) -> Callable[..., HeadsTable]:
        return HeadsTable

    @property
    def table(self) -> pd.DataFrame:
        """The same as a plain DataFrame, as other readouts have it."""
        return pd.DataFrame(self)

    @property
    def sinks(self) -> pd.DataFrame:
        """Positions that draw attention, one row per example and position; empty without the part ``sinks``.

        Columns: ``example, position, token, role``; ``heads``, how many it is a sink of; ``weight``, the most that one
        of them gives it; ``norm_entering, norm_inside``, how large it is
        (:func:`gatelens.measures.heads.norm_growth`), and by these its ``origin``: tower, decoder or neither.
        """
        return pd.DataFrame(self.attrs.get("sinks", []))

    def show(self, column: str | Sequence[str] | None = None, title: str = "", dark: bool = False) -> Figure:
        """A column, or several side by side, as heat maps of layers and heads.

        Shares of attention have one scale, from 0 to the largest that is shown, so that they compare; each other column
        has its own. ``image``, ``gate`` and ``text`` sum to less than 1: the rest is attention to what comes before the
        picture (the beginning-of-sequence token, a system prompt) and to its begin marker.

        Args:
            column: one or several; None is ``knockout``, or the first column where that part was not measured.
            title: above; empty says how many examples.
            dark: draw on dark ground.

        Raises:
            DataError: no such column of numbers, or no head has a number there.
        """
        if column is None:
            numbers = self._numbers()
            column = "knockout" if "knockout" in numbers else numbers[:1]
        names = [column] if isinstance(column, str) else list(column)
        if not names:
            raise DataError(f"show([]): name some of the columns {', '.join(self._numbers())}")
        panels = _comparable([self._panel(name) for name in names])
        return scaled_grids(panels, title or f"Mean of {self.attrs.get('n', 'some')} examples", dark)

    def _numbers(self) -> list[str]:
        names = [str(name) for name in self.select_dtypes("number")]
        return [
            name for name in names if name not in ("layer", "head") and not name.endswith(("_low", "_high"))
        ]

    def _panel(self, column: str) -> ScaledGrid:
        known = self._numbers()
        if column not in known:
            raise DataError(
                f"show({shown(column)}): the columns are {', '.join(known)}{did_you_mean(str(column), known)}"
            )
        cells = self.table.pivot(index="layer", columns="head", values=column)
        if cells.isna().all(axis=None):
            raise DataError(f"show({column!r}): no head has a number there")
        heading, unit = HEADINGS.get(column, (column, column))
        values = cells.to_numpy(dtype=float)
        rows, columns_ = ([str(i) for i in axis] for axis in (cells.index, cells.columns))
        return ScaledGrid(
            Grid(values, rows, columns_, "layer", "head", title=heading),
            unit=self.attrs.get("quantity", "logit") if unit == "answer" else unit,
            signed=unit == "answer" or bool((values < 0).any()),
        )


def _comparable(panels: Sequence[ScaledGrid]) -> list[ScaledGrid]:
    """Shares of one thing get one scale."""
    most: dict[str, float] = {}
    for one in panels:
        if one.unit.startswith("share"):
            most[one.unit] = max(most.get(one.unit, 0.0), float(np.nanmax(one.grid.values)))
    return [replace(one, limits=(0.0, most[one.unit] or 1.0)) if one.unit in most else one for one in panels]
