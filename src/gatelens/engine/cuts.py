"""Knockouts as entries that attention leaves out while it computes.

As hooks they would make every layer build its whole pattern; as entries they go into the mask of the fused
kernel (``how="mask"``), or need the pattern of their own rows alone (``how="zero"``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gatelens.bridge.attention import HookedAttention
from gatelens.bridge.masked_attention import LayerCuts
from gatelens.hooked_model import HookedModel
from gatelens.interventions.hooks import Span
from gatelens.interventions.knockouts import Knockout, KnockoutEntries, resolve_knockouts
from gatelens.tokens import TokenMap

# see(layer, pattern, position): rows of a pattern, Float[batch, head, row, key], the first of them at ``position``
PatternCallback = Callable[[int, Tensor, int], None]


class Cuts:
    """What the attention layers are told during a pass of several runs, stacked run after run in the batch.

    Args:
        runs: the knockouts of each run.
        tokens: who is where, with generated positions when the runs decode.
        cfg: the TransformerLens config.
        span: the absolute positions of the current pass.
        shared: keys and values, by layer, that all runs read before their own.
        shown_rows: rows (of the pass) whose pattern ``see`` is shown, by layer; None shows nothing.
        see: called with the shown rows, a block at a time.
    """

    def __init__(
        self,
        runs: Sequence[Sequence[Knockout]],
        tokens: TokenMap,
        cfg: Any,
        span: Span,
        shared: Sequence[tuple[Tensor, Tensor]] | None = None,
        shown_rows: Callable[[int], range | None] | None = None,
        see: PatternCallback | None = None,
    ) -> None:
        self.span, self.shared = span, shared
        self.n_heads = int(cfg.n_heads)
        self.knockouts = KnockoutEntries([resolve_knockouts(run, tokens, cfg) for run in runs], span)
        self._rows, self._see = shown_rows, see

    def layer_cuts(self, layer: int, device: torch.device) -> LayerCuts:
        """The entries to leave out in this layer."""
        return LayerCuts(
            self.knockouts.blocked("mask", layer, self.n_heads, device),
            self.knockouts.blocked("zero", layer, self.n_heads, device),
        )

    def shared_keys(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values all runs share."""
        return None if self.shared is None else self.shared[layer]

    def shown_rows(self, layer: int) -> range | None:
        """Rows whose pattern is asked for."""
        return None if self._rows is None else self._rows(layer)

    def show(self, layer: int, pattern: Tensor, first_row: int) -> None:
        """Hand on a block of the pattern, which begins at row ``first_row`` of the pass."""
        if self._see is not None and self.shown_rows(layer) is not None:
            self._see(layer, pattern, self.span.offset + first_row)


@contextmanager
def apply_cuts(model: HookedModel, cuts: Cuts) -> Iterator[None]:
    """Let the attention layers follow ``cuts`` while the block lasts, also when it raises; other threads wait."""
    layers: list[HookedAttention] = [block.attn for block in model.bridge.blocks]
    with model.lock:
        outer = [layer.cuts for layer in layers]  # of a run under way, from within which this one is made
        try:
            for layer in layers:
                layer.cuts = cuts
            yield
        finally:
            for layer, before in zip(layers, outer, strict=True):
                layer.cuts = before


def can_apply_cuts(model: HookedModel) -> bool:
    """Whether every decoder layer's attention is ours, and no switch of TransformerLens takes it over."""
    return all(
        isinstance(block.attn, HookedAttention) and not block.attn.by_transformer_lens
        for block in model.bridge.blocks
    )
