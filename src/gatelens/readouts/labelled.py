"""The result of every readout: a tensor whose axes have names and labels, as a table and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from typing import Any, Self

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gatelens.errors import DataError, did_you_mean
from gatelens.readouts.picture import Prompts, draw
from gatelens.tokens import Role, TokenMap

SHOWN = 12  # rows of a table in a notebook
ROLE_NAMES = np.array([role.name.lower() for role in sorted(Role)], dtype=object)


@dataclass(frozen=True, eq=False, repr=False)
class LabelledTensor:
    """Numbers with names: ``.tensor``, ``.table`` and ``.show()`` of the same cells.

    Attributes:
        tensor: the numbers.
        axes: for each dimension in order, its name and a table with a row for each index. Columns are what
            ``sel`` picks by.
        quantity: what a number is, with its unit.
        tokens, images: the prompts, for positions: their roles, words and pictures.
        columns: further values of every cell, each of the tensor's shape.
        heading: the title above a picture; empty where the numbers say it.
        signed: 0 is no effect, so it is the middle of a picture's colours.

    Example:
        >>> lens = gl.logit_lens(model, inputs, at="last")
        >>> lens.dims, lens.quantity
        (('layer', 'position', 'word'), 'log-probability (nats)')
        >>> lens.sel(layer=5, target="top 0").table["word"].item()
        'sunflower'
    """

    tensor: Tensor
    axes: Mapping[str, pd.DataFrame]
    quantity: str
    tokens: TokenMap
    images: Sequence[Sequence[Image.Image]] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    heading: str = ""
    signed: bool = False

    def __post_init__(self) -> None:
        lengths = tuple(len(labels) for labels in self.axes.values())
        if tuple(self.tensor.shape) != lengths:
            raise DataError(f"a tensor of shape {tuple(self.tensor.shape)} for axes of {lengths} labels")

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the axes."""
        return tuple(self.axes)

    @cached_property
    def _labels(self) -> dict[str, pd.DataFrame]:
        """The labels of the axes, with the axis before a column that several have: ``sender_layer, receiver_layer``."""
        times = Counter(name for labels in self.axes.values() for name in labels)
        return {
            axis: labels.rename(columns={n: f"{axis}_{n}" for n in labels if times[n] > 1 and n != axis})
            for axis, labels in self.axes.items()
        }

    def sel(self, **wanted: Any) -> Self:
        """Some of the cells: ``sel(layer=3, role="image")``, by columns of ``.table`` that label an axis.

        A value, several (a list or range), a slice (``slice(2, 5)`` is 2, 3, 4) or a function of a column's values.
        All axes are kept.

        Raises:
            DataError: no axis has such a column, or nothing is left.
        """
        kept = {name: np.ones(len(labels), dtype=bool) for name, labels in self.axes.items()}
        for column, value in wanted.items():
            owner = next((name for name, labels in self._labels.items() if column in labels), None)
            if owner is None:
                known = [str(name) for labels in self._labels.values() for name in labels]
                raise DataError(
                    f"sel({column}=...): the columns are {', '.join(known)}{did_you_mean(column, known)}"
                )
            kept[owner] &= _matches(self._labels[owner][column], value)
            if not kept[owner].any():
                some = ", ".join(map(str, self._labels[owner][column].dropna().unique()[:8]))
                raise DataError(f"sel({column}={value!r}) leaves nothing; there are {some} …")
        index = np.ix_(*(rows.nonzero()[0] for rows in kept.values()))
        return replace(
            self,
            tensor=self.tensor[index],
            axes={name: labels[kept[name]].reset_index(drop=True) for name, labels in self.axes.items()},
            columns={name: np.asarray(values)[index] for name, values in self.columns.items()},
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per cell: the columns of every axis, what else is known of the cell, and ``value``."""
        places = np.indices(self.tensor.shape).reshape(len(self.axes), -1)
        each = zip(self._labels.values(), places, strict=True)
        parts = [labels.iloc[place].reset_index(drop=True) for labels, place in each]
        table = pd.concat(parts, axis=1)
        if "position" in table:
            places = self._places(table)
            table = pd.concat([table, places[[name for name in places if name not in table]]], axis=1)
        for name, values in self.columns.items():
            table[name] = np.asarray(values).reshape(-1)
        return table.assign(value=self.tensor.detach().float().cpu().numpy().reshape(-1))

    def _places(self, table: pd.DataFrame) -> pd.DataFrame:
        """Role, place and word of the positions of a table; empty where a cell has none."""
        here = table["position"].notna().to_numpy()
        found = position_labels(self.tokens, table["example"][here], table["position"][here])
        found.index = table.index[here]
        return found.drop(columns=["example", "position"]).reindex(table.index)

    def show(self, title: str = "", image: int = 0, dark: bool = False) -> Figure:
        """A picture: over the original picture where there are image positions, else a heat map or bars.

        Two axes may be open (have several labels): a grid of cells, or over the picture a panel for each label of the
        axis that is not positions; positions outside the picture stand in a grid below. Of a logit lens one ``target``
        is shown, the first that was asked for or else ``top 0``; the title says which, ``sel(target="top 0")`` chooses.

        Args:
            title: over it; empty: a description of what it shows.
            image: which picture of the prompt.
            dark: draw on dark ground.

        Raises:
            DataError: more than two axes are open, or positions of several prompts are: ``sel`` one label.
        """
        prompts = Prompts(self.tokens, self.images, image)
        return draw(self.table, self.axes, self.quantity, prompts, title or self.heading, self.signed, dark)

    def _summary(self) -> str:
        shape = " × ".join(f"{name} {len(labels)}" for name, labels in self.axes.items())
        return f"{type(self).__name__}({shape}: {self.quantity})"

    def __repr__(self) -> str:
        return self._summary()

    def _repr_html_(self) -> str:
        rest = len(self.table) - SHOWN
        more = f"<p>… {rest} rows more in <code>.table</code></p>" if rest > 0 else ""
        heading = "<br>".join(escape(line) for line in repr(self).splitlines())
        return f"<p><b>{heading}</b></p>{self.table.head(SHOWN).to_html(index=False, na_rep='')}{more}"


def _matches(column: pd.Series, value: Any) -> np.ndarray:
    value = value.tolist() if hasattr(value, "tolist") else value  # tensors, arrays and their numbers
    if callable(value):
        return column.map(value).fillna(False).to_numpy(dtype=bool)
    if isinstance(value, slice):
        low, high = value.start, value.stop
        kept = column.notna() if low is None else column >= low
        return (kept if high is None else kept & (column < high)).fillna(False).to_numpy(dtype=bool)
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return column.isin(list(value) if several else [value]).to_numpy(dtype=bool)


def position_labels(tokens: TokenMap, example: Any, position: Any) -> pd.DataFrame:
    """One row per position: ``example, position, role, image, row, col, tile, token``; ``image`` is -1 outside one."""
    index = np.asarray(example, dtype=int), np.asarray(position, dtype=int)
    words = np.array([list(row) for row in tokens.strings], dtype=object)
    columns = {"role": ROLE_NAMES[tokens.roles.numpy()[index]], "image": tokens.image_index.numpy()[index]}
    for name in ("row", "col", "tile"):
        columns[name] = getattr(tokens, name).numpy()[index]
    return pd.DataFrame({"example": index[0], "position": index[1], **columns, "token": words[index]})
