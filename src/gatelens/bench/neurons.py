"""Neurons written into MLPs: steps, past which nothing changes, and products.

A gated MLP computes ``silu(gate) · up``. The difference of two steep ones is a ramp between two constants, and
``silu(x) · y - silu(-x) · y`` is exactly ``x · y``. ``up`` and all thresholds are read from the coordinate of a
position's kind, so that a neuron is 0 at positions of other kinds, and the norm before the MLP scales both equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.bench.circuits import KIND_AT

_STEEP = 8.0  # of a ramp's half width: how much of it silu bends


@dataclass(frozen=True)
class Steps:
    """In one layer, at positions of some kinds: coordinates that become 0 or a constant.

    Attributes:
        moves: ``source coordinate, sign, target coordinate, size``: the target gains ``size`` where the signed source
            is past the threshold.
        threshold: as a share of what the largest of the signed sources is on average.
        width: half of the ramp, as a share of the threshold.
    """

    layer: int
    at: frozenset[str]
    moves: Sequence[tuple[int, int, int, float]]
    threshold: float
    width: float


@dataclass(frozen=True)
class Product:
    """In one layer: the product of two coordinates is added to a third."""

    layer: int
    factors: tuple[int, int]
    target: int
    size: float


@torch.no_grad()
def write_steps(mlp: Any, steps: Steps, seen: Float[Tensor, "picture place d_model"]) -> None:
    """Write them into the first neurons.

    Args:
        seen: what the MLP reads at those positions, to fit the threshold on.
    """
    kinds = [KIND_AT[kind] for kind in steps.at]
    constant = float(seen[..., kinds].sum(-1).mean())
    signed = torch.stack([sign * seen[..., source] for source, sign, _, _ in steps.moves])
    threshold = steps.threshold * float(signed.amax(0).mean())
    half = steps.width * threshold
    steep = _STEEP / half
    neuron = 0
    for source, sign, target, size in steps.moves:
        for side in (1, -1):  # from 0 to the size between half a width before the threshold and one after it
            _clear(mlp, neuron)
            mlp.gate_proj.weight[neuron, source] = sign * steep
            mlp.gate_proj.weight[neuron, kinds] = steep * (side * half - threshold) / constant
            mlp.up_proj.weight[neuron, kinds] = 1 / constant
            mlp.down_proj.weight[target, neuron] = side * size / (2 * half * steep)
            neuron += 1


@torch.no_grad()
def write_product(mlp: Any, product: Product, start: int = 0) -> None:
    """Write it into two neurons from ``start`` on. Positions without the sources get nothing."""
    first, second = product.factors
    for neuron, side in enumerate((1, -1), start=start):
        _clear(mlp, neuron)
        mlp.gate_proj.weight[neuron, first] = side
        mlp.up_proj.weight[neuron, second] = side
        mlp.down_proj.weight[product.target, neuron] = product.size


def _clear(mlp: Any, neuron: int) -> None:
    mlp.gate_proj.weight[neuron] = 0
    mlp.up_proj.weight[neuron] = 0
    mlp.down_proj.weight[:, neuron] = 0
