"""How much attention each place gets from those behind the picture that can read it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from gatelens.engine import look
from gatelens.studies.gate_finder.places import Batch
from gatelens.studies.gate_finder.rows import Rows
from gatelens.studies.gate_finder.setup import Setup


def add_attention(setup: Setup, rows: Rows) -> None:
    """The mean attention a place gets (NG's f_j, averaged over the rows that can read it), all heads, as a share
    of what all candidates get, mean over layers; ``layer`` is where it is largest."""
    n_layers, n_places = setup.n_layers, len(setup.places.all)
    share = np.zeros((setup.n, n_layers, n_places))
    for batch in setup.batches():
        behind = batch.behind
        readers = torch.stack([_readers(batch, p).sum(1) for p in range(n_places)], dim=1)
        mass = torch.zeros(len(behind), n_layers, behind.shape[1])

        def see(layer: int, pattern: Tensor, low: int, behind: Tensor = behind, mass: Tensor = mass) -> None:
            few = slice(low, low + pattern.shape[2])
            mean = pattern.float().mean(1).cpu() * behind[:, few, None]
            own = torch.arange(few.start, few.stop)
            # a position's reading of itself is no passing on
            mean[:, torch.arange(mean.shape[1]), own] = 0
            mass[:, layer] += mean.sum(1)

        look(setup.model, batch.inputs, behind, see)
        index = batch.columns.clamp_min(0)[:, None].expand(-1, n_layers, -1)
        got = mass.gather(2, index) * (batch.columns >= 0)[:, None] / readers.clamp_min(1)[:, None]
        total = got.sum(-1, keepdim=True)
        share[list(batch.examples)] = torch.where(total > 0, got / total.clamp_min(1e-30), got).numpy()
    has = setup.has()
    for p in range(n_places):
        mine = share[has[:, p], :, p]
        rows.add(p, "attention", mine.mean(1), int(mine.mean(0).argmax()))


def _readers(batch: Batch, place: int) -> Bool[Tensor, "batch pos"]:
    """The positions behind the picture that can read a place: those after it, or of its two-way block."""
    from gatelens.interventions.visibility import visible_keys

    key = batch.mask([place])
    return batch.behind & ~key & visible_keys(key, batch.inputs.tokens).bool()
