"""Prompts of a store as the source of a patch: what ``gl.patch`` asks of a cache, of the rows that were kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.model import HookedVLM
from gatelens.tokens import Role, TokenMap


class StoredPrompts:
    """The kept rows of some examples, left-padded to one length, in the order of their positions.

    Attributes:
        tokens: who the rows are; positions count kept rows.
        selected: Bool[example, row], the rows that are not padding.
        vlm: the model.
        fix: what to do where a site is asked for that the store lacks.
    """

    fix = "collect that site and layer"

    def __init__(
        self,
        model: HookedVLM,
        table: pd.DataFrame,
        rows: Sequence[np.ndarray],
        readers: Mapping[str, Callable[[np.ndarray], Tensor]],
    ) -> None:
        """``table``: the store's index; ``rows``: the row numbers of each example; ``readers``: by hook point."""
        self.vlm = model
        self._rows, self._readers = rows, readers
        self._values: dict[str, Tensor] = {}
        self.tokens = _token_map(table, rows)
        self.selected = self.tokens.roles != Role.PAD

    def __repr__(self) -> str:
        return f"StoredPrompts({len(self._rows)} examples, {sum(map(len, self._rows))} rows)"

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def __getitem__(self, name: str) -> Float[Tensor, "example row ..."]:
        if name not in self._values:
            kept = self._readers[name](np.concatenate(self._rows))
            values = kept.new_zeros(*self.selected.shape, *kept.shape[1:])
            values[self.selected] = kept
            self._values[name] = values
        return self._values[name]


def _token_map(table: pd.DataFrame, rows: Sequence[np.ndarray]) -> TokenMap:
    """Rows of the index, an example per line."""
    n_pos = max(map(len, rows))

    def padded(column: Any, value: Any) -> Tensor:
        return torch.stack([_left_padded(torch.as_tensor(column[one]), n_pos, value) for one in rows])

    roles = np.array([int(Role[name.upper()]) for name in table["role"].cat.categories])
    words = table["token"].to_numpy(dtype=object)
    return TokenMap(
        roles=padded(roles[table["role"].cat.codes.to_numpy()], int(Role.PAD)),
        image_index=padded(table["image"].to_numpy(np.int64), -1),
        row=padded(table["row"].to_numpy(np.int64), -1),
        col=padded(table["col"].to_numpy(np.int64), -1),
        box=padded(table[["x0", "y0", "x1", "y1"]].to_numpy(np.float32), float("nan")),
        tile=padded(table["tile"].to_numpy(np.int64), -1),
        image_sizes=((),) * len(rows),
        strings=tuple(("",) * (n_pos - len(one)) + tuple(words[one]) for one in rows),
        prompt_length=n_pos,
    )


def _left_padded(values: Tensor, n: int, value: Any) -> Tensor:
    return torch.cat([values.new_full((n - len(values), *values.shape[1:]), value), values])
