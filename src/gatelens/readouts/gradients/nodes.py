"""Scores of nodes: attribution patching, with the softmax recomputed for queries and keys, and integrated gradients.

A score is made for each cell of a map: what its patch should gain, to first order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.interventions.base import resolve_indices
from gatelens.interventions.sites import has_heads, head_count
from gatelens.readouts.gradients.contrast import Tap, row_hooks
from gatelens.readouts.gradients.passes import GradientPasses
from gatelens.readouts.map_axes import Cell

OVERFLOW = 600.0  # the largest change of an attention score whose exponential is a number
RowScores = dict[Tap, Float[Tensor, "n head"]]  # one column where a site has no heads


class NodeScores:
    """The scores of cells of one contrast.

    Args:
        passes: of the contrast; nothing is compared yet.
        cells: each of one site and layer.
        method: see :func:`gatelens.attribution_map`.
        steps: of integrated gradients.
    """

    def __init__(self, passes: GradientPasses, cells: Sequence[Cell], method: str, steps: int) -> None:
        self.passes, self.cells, self.steps = passes, cells, steps
        self.taps = list(dict.fromkeys(tap_of(one) for one in cells))
        self.fixed = [tap for tap in self.taps if method == "atp*" and tap[0] in ("q", "k")]
        self.method = method
        ahead = (
            self.taps if method == "ig" else self.fixed
        )  # passes begin at these, so what they hold comes first
        if ahead:
            passes.compare(ahead, sorted({layer for _, layer in ahead}))

    def all(self) -> list[float]:
        """The score of each cell, in order."""
        if self.method == "ig":
            return self._summed(dict(integrated_gradients(self.passes, self.taps, self.steps)))
        rows = attribution_patching(self.passes, [tap for tap in self.taps if tap not in self.fixed])
        softmax: dict[int, float] = {}
        for layer in sorted({layer for _, layer in self.fixed}):
            rows |= self._recomputed(layer, softmax)
        return self._summed(rows, softmax)

    def _summed(self, rows: RowScores, known: dict[int, float] | None = None) -> list[float]:
        """The rows and heads of each cell added up, but for those that are known already."""
        found, row_of = [], self.passes.contrast.row_of
        values = {tap: scores.double().cpu().numpy() for tap, scores in rows.items()}
        for number, one in enumerate(self.cells):
            if known is not None and number in known:
                found.append(known[number])
                continue
            here = values[tap_of(one)][[row_of[position] for position in one.here[0]]]
            if has_heads(one.site):
                here = here[:, list(self._heads(one))]
            found.append(float(here.sum()))
        return found

    def _heads(self, one: Cell) -> tuple[int, ...]:
        return resolve_indices(one.heads, head_count(one.site, self.passes.model.cfg), "heads", one)

    # --- queries and keys

    def _recomputed(self, layer: int, keys: dict[int, float]) -> RowScores:
        """Rows of queries of a layer; the scores of its cells of keys go into ``keys``, by number."""
        pattern, gradient = _pattern_gradient(self.passes, layer)
        before = _attention_scores(self.passes, layer, None)
        rows: RowScores = {}
        if ("q", layer) in self.fixed:
            change = _attention_scores(self.passes, layer, "q") - before
            rows["q", layer] = _of_queries(self.passes, pattern, gradient, change)
        if ("k", layer) in self.fixed:
            change = _attention_scores(self.passes, layer, "k") - before
            n_kv = int(head_count("k", self.passes.model.cfg) or len(pattern))
            parts = KeyParts(pattern, gradient, change, len(pattern) // n_kv)
            for number, one in enumerate(self.cells):
                if tap_of(one) == ("k", layer):
                    keys[number] = parts.patched(one.here[0], self._heads(one))
        return rows


def tap_of(cell: Cell) -> Tap:
    """The site and the one layer of a cell."""
    (layer,) = cell.layers
    return cell.site, layer


def attribution_patching(passes: GradientPasses, taps: Sequence[Tap]) -> RowScores:
    """Gradient of the base run times what the source adds (Nanda 2023; Syed et al. 2023, arXiv 2310.10348)."""
    scores: RowScores = {}

    def take(tap: Tap, grad: Tensor) -> None:
        scores[tap] = _along(grad[0], passes.delta[tap])

    if taps:
        passes.differentiate_base(taps, take)
    return scores


def integrated_gradients(
    passes: GradientPasses, taps: Sequence[Tap], steps: int
) -> Iterator[tuple[Tap, Float[Tensor, "n head"]]]:
    """The mean gradient on the straight way from base to source, of all rows of one site and layer at once.

    Over all rows they sum to what patching them all changes (Sundararajan et al. 2017, arXiv 1703.01365; for
    activations Hanna et al. 2024, arXiv 2403.17806).
    """
    shares, weights = legendre_steps(steps)
    for tap in taps:
        each: list[Tensor] = []

        def take(tap: Tap, grad: Tensor, each: list[Tensor] = each) -> None:
            each.extend(_along(one, passes.delta[tap]) for one in grad)

        passes.differentiate([tap], take, along=tap, shares=shares, start=tap[1])
        yield tap, torch.stack([weight * one for weight, one in zip(weights, each, strict=True)]).sum(0)


def legendre_steps(steps: int) -> tuple[list[float], list[float]]:
    """Where on the way from 0 to 1 the gradient is taken, and the weight of each (Gauss–Legendre quadrature)."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()


def _along(grad: Float[Tensor, "n ..."], delta: Float[Tensor, "n ..."]) -> Float[Tensor, "n head"]:
    scores = (grad.float() * delta.float()).sum(-1)
    return scores[:, None] if scores.ndim == 1 else scores


def _pattern_gradient(
    passes: GradientPasses, layer: int
) -> tuple[Float[Tensor, "head query key"], Float[Tensor, "head query key"]]:
    """The pattern of a layer and its gradient."""
    tap, found = ("pattern", layer), {}
    every = passes.contrast.tokens.mask("all")

    def take(tap: Tap, grad: Tensor) -> None:
        found["pattern"], found["gradient"] = passes.rows.pop(tap)[0], grad[0]

    passes.differentiate([tap], take, masks={"pattern": every}, start=layer, watched=[tap])
    return found["pattern"].transpose(0, 1), found["gradient"].transpose(0, 1)


@torch.no_grad()
def _attention_scores(
    passes: GradientPasses, layer: int, site: str | None
) -> Float[Tensor, "head query key"]:
    """The scores of a layer in the base run, or with the source's queries or keys in it."""
    found: list[Tensor] = []
    model, contrast = passes.model, passes.contrast
    hooks: list[Any] = [
        (f"blocks.{layer}.attn.hook_attn_scores", lambda scores, hook: found.append(scores[0].clone()))
    ]
    if site is not None:

        def to_source(tap: Tap, rows: Tensor) -> Tensor:
            return rows + passes.delta[tap]

        hooks += row_hooks(model, contrast.tokens, {site: contrast.mask}, [(site, layer)], to_source).pairs
    with model.hooks(hooks):
        stream, inputs = passes.streams[layer], contrast.base.inputs
        model(stream, start_at_layer=layer, stop_at_layer=layer + 1, tokens=inputs)
    return found[0]


def _of_queries(
    passes: GradientPasses, pattern: Tensor, gradient: Tensor, change: Tensor
) -> Float[Tensor, "n head"]:
    """What the pattern's change is worth in each row whose query is the source's (Kramár et al. 2024, arXiv 2403.00745,
    the QK fix of AtP*): the softmax is recomputed, all after it is linear."""
    rows = torch.tensor([here for here, _ in passes.contrast.places], device=pattern.device)
    p, g, d = (x[:, rows].double() for x in (pattern, gradient, change))
    moved = p * torch.expm1(d.clamp(max=OVERFLOW))
    mean = (g * p).sum(-1)
    return ((mean + (g * moved).sum(-1)) / (1 + moved.sum(-1)) - mean).T


class KeyParts:
    """The same for keys, several of which may be the source's at once.

    With ``p`` the pattern, ``g`` its gradient and ``d`` the change of scores, a row's softmax becomes ``p e^d`` over
    ``1 + Σ p (e^d − 1)``, with the sum over the keys that change.
    """

    def __init__(self, pattern: Tensor, gradient: Tensor, change: Tensor, shared: int) -> None:
        p, g = pattern.double(), gradient.double()
        self.moved = p * torch.expm1(change.double().clamp(max=OVERFLOW))
        self.weighted = g * self.moved
        self.mean = (g * p).sum(-1)
        self.shared = shared  # query heads that read one key head

    def patched(self, positions: list[int], kv_heads: tuple[int, ...]) -> float:
        """What the metric gains with the source's keys at some positions of some key heads."""
        heads: Int[Tensor, " head"] = torch.tensor(
            [kv * self.shared + i for kv in kv_heads for i in range(self.shared)]
        )
        weighted, moved = (x[heads][:, :, positions].sum(-1) for x in (self.weighted, self.moved))
        mean = self.mean[heads]
        return float(((mean + weighted) / (1 + moved) - mean).sum())
