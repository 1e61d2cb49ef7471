"""What can be read of a class at a place and layer, example by example, and the means of it; for section *meaning*."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.measures.overlap import neighbourhood_overlap, overlap_by_chance, representation_overlap
from gatelens.measures.probe import linear_probe
from gatelens.measures.stats import SHARE, Bounds, mean_interval

GATE = "gate"
OVERLAP, PROBE, WITH_GATE = "overlap", "probe", "overlap with the gate"
BOUNDS: Mapping[str, Bounds | None] = {OVERLAP: None, PROBE: SHARE, WITH_GATE: None}
TOLERANCE = 1e-4  # of the probe's gradient: predictions do not change below it


def neighbours_at_most(n: int, k: int) -> int:
    """k, or a tenth of the examples: with more neighbours than a class has examples no overlap comes near 1."""
    return max(1, min(k, n // 10, n - 1))


def untied(x: Float[Tensor, "example d_model"], seed: int) -> Float[Tensor, "example d_model"]:
    """The points moved apart by a part in 10⁷ of their size, in float64: of equal ones (a token before it has read
    anything) the nearest is then drawn, not the first in the list."""
    x = x.double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = x.square().mean().sqrt()
    return x + 1e-7 * (size if float(size) > 0 else 1.0) * noise


@dataclass(frozen=True)
class Reading:
    """One measure at one place and layer, example by example; ``examples`` are their numbers.

    ``chance`` is the overlap of neighbours drawn at random, of the probe the share of the commonest class; ``most``
    the highest value there can be (a class of fewer than k + 1 examples cannot fill a neighbourhood).
    """

    place: str
    layer: int
    measure: str
    values: Float[np.ndarray, " example"]
    examples: Int[np.ndarray, " example"]
    chance: float
    most: float
    k: int


def readings(
    stream: Mapping[str, Float[Tensor, "example layer d_model"]],
    labels: Int[Tensor, " example"],
    k: int,
    folds: int,
    probed: Sequence[int],
    seed: int,
) -> list[Reading]:
    """Every measure at every place and layer.

    Classes with fewer examples than ``folds`` are left out of the probe, which is measured in the layers ``probed``.
    """
    found: list[Reading] = []
    k = neighbours_at_most(len(labels), k)
    chance = overlap_by_chance(labels)
    count = labels.bincount()
    most = float((count[labels] - 1).clamp(max=k).double().mean() / k)
    usable = count[labels] >= folds
    can_probe = int((count >= folds).sum()) >= 2
    names = list(stream)
    for layer in range(stream[names[0]].shape[1]):
        points = {name: untied(x[:, layer], seed + i) for i, (name, x) in enumerate(stream.items())}
        for name, x in points.items():
            values = {OVERLAP: (neighbourhood_overlap(x, labels, k), chance, most)}
            if name != GATE and GATE in points:
                common = representation_overlap(x, points[GATE], k)
                values[WITH_GATE] = (common, k / (len(labels) - 1), 1.0)
            for what, (share, by_chance, at_most) in values.items():
                numbers = share.double().numpy()
                found.append(
                    Reading(name, layer, what, numbers, np.arange(len(numbers)), by_chance, at_most, k)
                )
            if can_probe and layer in probed:
                # as they are: scaled to one size, the differences that part ties would be features
                x = stream[name][:, layer]
                p = linear_probe(x[usable], labels[usable], folds, seed=seed, tolerance=TOLERANCE)
                right, examples = p.correct.double().numpy(), usable.nonzero()[:, 0].numpy()
                found.append(Reading(name, layer, PROBE, right, examples, p.majority, 1.0, 0))
    return found


def averaged(found: Sequence[Reading], n_boot: int, seed: int) -> pd.DataFrame:
    """``place, layer, measure, mean, low, high, n, chance, most, k``; intervals are over examples."""
    rows = []
    for r in found:
        low, high = mean_interval(r.values, BOUNDS[r.measure], n_boot=n_boot, seed=seed)
        numbers = (r.values.mean(), low, high, len(r.values), r.chance, r.most, r.k)
        rows.append((r.place, r.layer, r.measure, *numbers))
    columns = ["place", "layer", "measure", "mean", "low", "high", "n", "chance", "most", "k"]
    return pd.DataFrame(rows, columns=columns)
