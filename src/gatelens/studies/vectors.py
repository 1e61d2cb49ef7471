"""Vectors of one round as a table, bit for bit, so that the next round reads what was measured and runs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor


def as_table(vectors: Mapping[str, Float[Tensor, "example layer d_model"]]) -> pd.DataFrame:
    """``layer, place, dtype, d_model, vectors`` (bytes): one row per layer and place, in the order of the places."""
    rows = []
    for place, every in vectors.items():
        dtype, width = str(every.dtype).removeprefix("torch."), every.shape[-1]
        for layer in range(every.shape[1]):
            raw = every[:, layer].contiguous().view(torch.uint8).numpy().tobytes()
            rows.append((layer, place, dtype, width, raw))
    return pd.DataFrame(rows, columns=["layer", "place", "dtype", "d_model", "vectors"])


def at_layer(tables: Sequence[pd.DataFrame], layer: int) -> pd.DataFrame:
    """The rows of one layer, of batches whose examples follow on each other."""
    return pd.concat([table[table.layer == layer] for table in tables], ignore_index=True)


def vectors_of(rows: pd.DataFrame) -> dict[str, Float[Tensor, "example d_model"]]:
    """The vectors of each place in the rows of :func:`at_layer`; places that some batch lacks are left out."""
    n_batches = rows.place.value_counts().max()
    out = {}
    for place, part in rows.groupby("place", sort=False):
        if len(part) == n_batches:
            each = [
                torch.frombuffer(bytearray(r.vectors), dtype=getattr(torch, r.dtype)).view(-1, r.d_model)
                for r in part.itertuples()
            ]
            out[str(place)] = torch.cat(each)
    return out
