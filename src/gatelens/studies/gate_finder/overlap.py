"""Whether the class can be read off the residual stream of each place: its neighbours' classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.measures.overlap import neighbourhood_overlap
from gatelens.studies.gate_finder.patching import CACHE, cached
from gatelens.studies.gate_finder.places import Batch
from gatelens.studies.gate_finder.rows import Rows
from gatelens.studies.gate_finder.setup import Setup

LAYERS = 8  # at which the overlap is measured, at most


def add_overlap(setup: Setup, rows: Rows, k: int) -> None:
    """χ of the residual stream entering a layer with the labels, ``k`` neighbours, at the place's best layer."""
    n_layers, n_places, d = setup.n_layers, len(setup.places.all), int(setup.model.cfg.d_model)
    chosen = sorted({round(x) for x in np.linspace(0, n_layers - 1, min(n_layers, LAYERS))})
    group = max(1, CACHE // (setup.n * n_places * d))
    best: dict[int, tuple[float, int, np.ndarray]] = {}
    has, labels = setup.has(), torch.tensor(setup.labels)
    for start in range(0, len(chosen), group):
        layers = chosen[start : start + group]
        kept = torch.zeros(len(layers), n_places, setup.n, d)
        for batch in setup.batches():
            values = _stream(setup, batch, range(n_places), layers)
            kept[:, :, list(batch.examples)] = values.permute(0, 2, 1, 3)
        for at, layer in enumerate(layers):
            for p in range(n_places):
                mine = torch.tensor(has[:, p])
                if int(mine.sum()) > k:
                    found = neighbourhood_overlap(kept[at, p][mine], labels[mine], k).double().numpy()
                    if p not in best or found.mean() > best[p][0]:
                        best[p] = (float(found.mean()), layer, found)
    for p, (_, layer, found) in best.items():
        rows.add(p, "overlap", found, layer)


def _stream(
    setup: Setup, batch: Batch, places: Iterable[int], layers: Sequence[int]
) -> Float[Tensor, "layer batch place d_model"]:
    """The residual stream entering some layers at some places, 0 where an example lacks one."""
    places = list(places)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    _, cache = cached(setup, batch.inputs, batch.mask(places), names)
    columns = batch.columns[:, places]
    index = columns.clamp_min(0)
    if cache.kept is not None:
        index = cache.kept.place.gather(1, index).clamp_min(0)
    rows = torch.arange(len(columns))[:, None]
    return torch.stack([cache[name].float().cpu()[rows, index] * (columns >= 0)[..., None] for name in names])
