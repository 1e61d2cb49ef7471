"""Scores of nodes: attribution patching, with the softmax recomputed for queries and keys, and integrated gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.readouts.gradients.cells import Cells
from gatelens.readouts.gradients.contrast import Tap, row_hooks
from gatelens.readouts.gradients.passes import GradientPasses

Scores = dict[Tap, Float[Tensor, "pair group head"]]


def attribution_patching(passes: GradientPasses, cells: Cells, taps: Sequence[Tap] | None = None) -> Scores:
    """Gradient of the base run times what the source adds (Nanda 2023; Syed et al. 2023, arXiv 2310.10348)."""
    scores: Scores = {}

    def take(tap: Tap, rows: Tensor, grad: Tensor) -> None:
        scores[tap] = cells.summed((grad[0].float() * passes.delta[tap].float()).sum(-1), passes.contrast)

    taps = cells.taps if taps is None else taps
    if taps:
        passes.differentiate(taps, take)
    return scores


def integrated_gradients(passes: GradientPasses, cells: Cells, steps: int) -> Scores:
    """The mean gradient on the straight way from base to source, of all rows of one site and layer at once.

    Over all rows they sum to what patching them all changes (Sundararajan et al. 2017, arXiv 1703.01365; for
    activations Hanna et al. 2024, arXiv 2403.17806). The steps are those of Gauss and Legendre.
    """
    shares, weights = even_steps(steps)
    scores: Scores = {}
    for tap in cells.taps:
        each: list[Tensor] = []

        def take(tap: Tap, rows: Tensor, grad: Tensor, each: list[Tensor] = each) -> None:
            each.extend((one.float() * passes.delta[tap].float()).sum(-1) for one in grad)

        start = 0 if tap[1] not in passes.streams else tap[1]
        passes.differentiate([tap], take, along=tap, shares=shares, start=start)
        mean = sum(weight * one for weight, one in zip(weights, each, strict=True))
        scores[tap] = cells.summed(torch.as_tensor(mean), passes.contrast)
    return scores


def even_steps(steps: int) -> tuple[list[float], list[float]]:
    """Where on the way from 0 to 1 the gradient is taken, and the weight of each (Gauss–Legendre quadrature)."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()


def with_query_key_fix(passes: GradientPasses, cells: Cells) -> Scores:
    """Attribution patching that recomputes the softmax with the source's queries or keys (Kramár et al. 2024, arXiv
    2403.00745, the QK fix of AtP*; without its GradDrop) and is linear from the pattern on.

    Several keys of one cell are recomputed together. Other sites are as in attribution patching.
    """
    scores = attribution_patching(passes, cells, [tap for tap in cells.taps if tap[0] not in ("q", "k")])
    sites = [site for site in cells.sites if site in ("q", "k")]
    for layer in cells.layers if sites else ():
        pattern, gradient = _pattern_gradient(passes, layer)
        before = _attention_scores(passes, layer, None)
        for site in sites:
            change = _attention_scores(passes, layer, site) - before
            effect = _of_queries if site == "q" else _of_keys
            scores[site, layer] = effect(passes, cells, pattern, gradient, change)
    return scores


def _pattern_gradient(passes: GradientPasses, layer: int) -> tuple[Tensor, Tensor]:
    """The pattern of a layer and its gradient, Float[batch, head, query, key]; 0 in the rows of padding."""
    real = passes.contrast.base.tokens.mask("all")
    found: list[Tensor] = []

    def take(tap: Tap, rows: Tensor, grad: Tensor) -> None:
        example, position = (index.to(rows.device) for index in real.nonzero(as_tuple=True))
        for each in (rows, grad[0]):
            full = each.new_zeros(*real.shape, *each.shape[1:])
            full[example, position] = each
            found.append(full.transpose(1, 2))

    passes.differentiate([("pattern", layer)], take, masks={"pattern": real}, start=layer)
    return found[0], found[1]


@torch.no_grad()
def _attention_scores(
    passes: GradientPasses, layer: int, site: str | None
) -> Float[Tensor, "batch head query key"]:
    """The scores of a layer in the base run, or with the source's queries or keys in it."""
    found: list[Tensor] = []
    hooks: list[Any] = [
        (f"blocks.{layer}.attn.hook_attn_scores", lambda scores, hook: found.append(scores.clone()))
    ]
    model, contrast = passes.model, passes.contrast
    if site is not None:
        masks = {site: contrast.mask}
        compiled = row_hooks(
            model, contrast.base.tokens, masks, [(site, layer)], lambda tap, rows: rows + passes.delta[tap]
        )
        hooks += compiled.pairs
    with model.hooks(hooks):
        model(passes.streams[layer], start_at_layer=layer, stop_at_layer=layer + 1, tokens=contrast.base)
    return found[0]


def _of_queries(
    passes: GradientPasses, cells: Cells, pattern: Tensor, gradient: Tensor, change: Tensor
) -> Float[Tensor, "pair group head"]:
    contrast = passes.contrast
    rows = []
    for example, position in zip(contrast.example.tolist(), contrast.position.tolist(), strict=True):
        p, g, d = (x[example, :, position].double() for x in (pattern, gradient, change))
        moved = p * torch.expm1(d.clamp(max=600))
        mean = (g * p).sum(-1)
        rows.append((mean + (g * moved).sum(-1)) / (1 + moved.sum(-1)) - mean)
    return cells.summed(torch.stack(rows), contrast)


def _of_keys(
    passes: GradientPasses, cells: Cells, pattern: Tensor, gradient: Tensor, change: Tensor
) -> Float[Tensor, "pair group kv_head"]:
    contrast, cfg = passes.contrast, passes.model.cfg
    batch, n_heads = pattern.shape[:2]
    n_groups, group = len(cells.groups), cells.group_of(contrast)
    out = torch.zeros(batch, n_groups, n_heads, dtype=torch.float64, device=pattern.device)
    for example in range(batch):
        mine = contrast.example == example
        keys, into = contrast.position[mine].to(pattern.device), group[mine].to(pattern.device)
        for head in range(n_heads):
            p, g, d = (x[example, head].double() for x in (pattern, gradient, change))
            moved = p[:, keys] * torch.expm1(d[:, keys].clamp(max=600))
            total = moved.new_zeros(len(p), n_groups).index_add_(1, into, moved)
            weighted = moved.new_zeros(len(p), n_groups).index_add_(1, into, moved * g[:, keys])
            mean = (g * p).sum(-1, keepdim=True)
            out[example, :, head] = ((mean + weighted) / (1 + total) - mean).sum(0)
    kv = int(getattr(cfg, "n_key_value_heads", None) or n_heads)
    shared = out.unflatten(-1, (kv, -1)).sum(-1)  # query heads of a key-value head get its key together
    return shared if cells.heads else shared.sum(-1, keepdim=True)
