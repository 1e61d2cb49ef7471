"""What counts as equal: measured on plain transformers, in the model's own dtype and on its device.

Two computations of transformers that should give the same numbers, eager and SDPA attention, differ by rounding. What
gatelens computes may be ``SPREADS`` times as far from the nearer of them, and at least ``ULPS`` roundings of the
largest number. So the rule is the same in float32 and bfloat16, and no number in it belongs to a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SPREADS = 3
ULPS = 4
RULE = (
    f"no further from plain transformers than {SPREADS} times what its own eager and SDPA attention differ by "
    "on the same input (measured to the nearer of the two), or "
    f"{ULPS} roundings (machine epsilon of the dtype times the largest number), whichever is more; for a check on an "
    "edit, the edit must move plain transformers by more than that"
)
_MASKED = 1e30  # beyond it a number stands for minus infinity


def distance(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """The largest difference, infinite where one is NaN; of the positions Bool[batch, pos] ``where``."""
    most = 0.0
    for i in range(len(a)):
        x, y = (
            t[i].to(a.device) if where is None else t[i].to(a.device)[where[i].to(a.device)] for t in (a, b)
        )
        for one, other in zip(x.split(256), y.split(256), strict=True):
            one, other = one.float(), other.float()
            gap = torch.where(one == other, 0.0, (one - other).abs())
            if gap.numel():
                most = max(most, float(gap.nan_to_num(nan=float("inf")).max()))
    return most


def nearest(ways: Sequence[Tensor], got: Tensor, where: Tensor | None = None) -> float:
    """How far from the nearest of plain transformers' computations."""
    return min(distance(way, got, where) for way in ways)


def largest(a: Tensor, where: Tensor | None = None) -> float:
    """The largest number, without those that represent minus infinity."""
    most = 0.0
    for i in range(len(a)):
        x = (a[i] if where is None else a[i][where[i].to(a.device)]).float().abs()
        x = x[x < _MASKED]
        most = max(most, float(x.max()) if x.numel() else 0.0)
    return most


def bound_of(ways: Sequence[Tensor], where: Tensor | None = None) -> float:
    """How far another computation may be from the first of these, which are of the same numbers."""
    first, *others = ways
    spread = max((distance(first, other, where) for other in others), default=0.0)
    return max(SPREADS * spread, ULPS * torch.finfo(first.dtype).eps * largest(first, where))


def worst(pairs: Iterable[tuple[float, float]]) -> tuple[int, float, float]:
    """Of (measured, bound) the number and values of the pair that is nearest to failing."""
    listed = list(pairs)
    ratios = [
        measured / bound if bound else (float("inf") if measured else 0.0) for measured, bound in listed
    ]
    at = max(range(len(listed)), key=ratios.__getitem__)
    return at, *listed[at]
