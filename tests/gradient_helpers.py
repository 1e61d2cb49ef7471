"""Gradients of activations by plain torch autograd on plain transformers in float64; nothing of gatelens computes."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attack.oracle import Change, Oracle, Seen

Metric = Callable[[Tensor], Tensor]
Place = tuple[str, int]  # a site and a layer


class Differentiated(Oracle):
    """Plain transformers whose activations are taken with the gradient of a metric by each."""

    def __init__(self, plain: Any, metric: Metric) -> None:
        super().__init__(copy.deepcopy(plain).double().requires_grad_(False))
        self.metric = metric
        self.zeros: dict[Place, Tensor] = {}

    def gradients(
        self, tensors: dict[str, Tensor], operations: Sequence[Change] = ()
    ) -> tuple[dict[Place, Tensor], Tensor]:
        """The gradient of the metric by every activation, as edits leave it, and the metric."""
        self.cuts, self.edits, self.zeros, self.seen = (), defaultdict(list), {}, Seen()
        for one in operations:
            for layer in one.layers:
                self.edits[one.site, layer].append(one)
        before, self.config._attn_implementation = self.config._attn_implementation, self.name
        try:
            with torch.enable_grad(), self.hooked():
                value = self.metric(self.plain(**tensors, use_cache=False).logits)
                grads = torch.autograd.grad(value.sum(), list(self.zeros.values()))
        finally:
            self.config._attn_implementation = before
        found = dict(zip(self.zeros, grads, strict=True))
        # a unit that attention adds is a unit of the stream after it
        found |= {("resid_mid", layer): grad for (site, layer), grad in found.items() if site == "attn_out"}
        return found, value.detach()

    def apply(self, site: str, layer: int, value: Tensor) -> Tensor:
        value = super().apply(site, layer, value)
        if torch.is_grad_enabled() and site != "resid_mid":
            self.zeros[site, layer] = torch.zeros_like(value, requires_grad=True)
            value = value + self.zeros[site, layer]
        return value


class PlainRuns:
    """Two runs of plain transformers: the base, its gradients, and the source it is moved towards.

    Attributes:
        base, source: activations by (site, layer), Tensor[batch, pos, ...].
        grads: of the metric in the base run, by the same.
        base_value, source_value: the metric, Float[batch].
    """

    def __init__(self, plain: Any, clean: Any, corrupt: Any, metric: Metric) -> None:
        self.metric, self.oracle = metric, Differentiated(plain, metric)
        self.tensors = wide(corrupt.tensors)
        logits, seen = self.oracle.run(wide(clean.tensors))
        self.source, self.source_value = seen.sites, metric(logits)
        logits, seen = self.oracle.run(self.tensors)
        self.base, self.base_value = seen.sites, metric(logits)
        self.grads, value = self.oracle.gradients(self.tensors)
        torch.testing.assert_close(value, self.base_value, rtol=1e-6, atol=1e-6)

    @property
    def way(self) -> Tensor:
        """What the source's metric is beyond the base's."""
        return self.source_value - self.base_value

    def delta(self, site: str, layer: int) -> Tensor:
        """What the source's activation is beyond the base's."""
        return self.source[site, layer] - self.base[site, layer]

    def slope(self, site: str, layer: int) -> Tensor:
        """The gradient along the difference, Float[batch, pos], or [batch, pos, head] at sites with heads."""
        return (self.grads[site, layer] * self.delta(site, layer)).sum(-1)

    def moved(self, site: str, layer: int, added: Tensor) -> Change:
        """The edit that adds to every row of an activation."""
        at = torch.ones(added.shape[:2], dtype=torch.bool)
        return Change(site, at, (layer,), None, lambda rows, layer, whole: rows + added[at])

    def patched(
        self, site: str, layer: int, position: int | None, head: int | None = None, share: float = 1.0
    ) -> Tensor:
        """What the metric gains when the cell is moved by a share of the difference."""
        delta = self.delta(site, layer)
        at = torch.zeros(delta.shape[:2], dtype=torch.bool)
        at[:, slice(None) if position is None else position] = True

        def new(rows: Tensor, layer: int, whole: Tensor) -> Tensor:
            return rows + share * delta[at]

        change = Change(site, at, (layer,), None if head is None else (head,), new)
        return self.metric(self.oracle.run(self.tensors, [change])[0]) - self.base_value

    def mean_slope(self, site: str, layer: int, shares: Sequence[float], weights: Sequence[float]) -> Tensor:
        """The weighted gradient at shares of the way of all rows, along the difference."""
        total = torch.zeros_like(self.grads[site, layer])
        for share, weight in zip(shares, weights, strict=True):
            change = self.moved(site, layer, share * self.delta(site, layer))
            total += weight * self.oracle.gradients(self.tensors, [change])[0][site, layer]
        return (total * self.delta(site, layer)).sum(-1)

    def edges(self, added: Tensor, layer: int, stream: str, h: float = 5e-3) -> dict[str, Tensor]:
        """The slope of the metric when one receiver of a layer alone reads a bit of ``added`` beside the stream.

        By a difference of what the receiver reads, whatever norms come before it: q, k and v, Float[batch, head],
        beside resid_pre; mlp_in, Float[batch], beside resid_mid.
        """
        up, down = (
            self.oracle.run(self.tensors, [self.moved(stream, layer, step * added)])[1].sites
            for step in (h, -h)
        )
        receivers = ("mlp_in",) if stream == "resid_mid" else ("q", "k", "v")
        slopes = {site: (up[site, layer] - down[site, layer]) / (2 * h) for site in receivers}
        return {site: (self.grads[site, layer] * one).sum(-1).sum(1) for site, one in slopes.items()}


def wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a prompt in float64."""
    return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}
