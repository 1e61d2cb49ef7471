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
from gatelens.bridge.lean import Cut, Rows
from gatelens.interventions.base import Span
from gatelens.interventions.knockout import Knockout, bind_knockouts
from gatelens.passes import HookedModel
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
        self.batch, self.n_heads = tokens.batch_size, int(cfg.n_heads)
        self.bound = [bind_knockouts(run, tokens, cfg) for run in runs]
        self._shown_rows, self._see = shown_rows, see
        self._built: dict[tuple[Any, ...], Rows | None] = {}
        self._built_for: tuple[int, int] | None = None

    def cut(self, layer: int, device: torch.device) -> Cut:
        """The entries to leave out in this layer."""
        if not any(self.bound):
            return Cut()
        return Cut(self._entries("mask", layer, device), self._entries("zero", layer, device))

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values all runs share."""
        return None if self.shared is None else self.shared[layer]

    def rows_looked_at(self, layer: int) -> range | None:
        """Rows whose pattern is asked for."""
        return None if self._shown_rows is None else self._shown_rows(layer)

    def look(self, layer: int, pattern: Tensor, low: int) -> None:
        """Hand on a block of the pattern, which begins at row ``low`` of the pass."""
        if self._see is not None and self.rows_looked_at(layer) is not None:
            self._see(layer, pattern, self.span.offset + low)

    def _entries(self, how: str, layer: int, device: torch.device) -> Rows | None:
        """Layers that cut the same share one tensor; it is built anew when the pass moves on."""
        span = (self.span.offset, self.span.stop)
        if self._built_for != span:
            self._built_for = span
            self._built.clear()
        members = tuple(
            tuple(i for i, b in enumerate(run) if layer in b.layers and b.spec.how == how)
            for run in self.bound
        )
        key = (how, members, device)
        if key not in self._built:
            self._built[key] = self._build(members, device) if any(members) else None
        return self._built[key]

    def _build(self, members: tuple[tuple[int, ...], ...], device: torch.device) -> Rows | None:
        offset, stop = self.span.offset, self.span.stop
        named = [(r, self.bound[r][i]) for r, chosen in enumerate(members) for i in chosen]
        touched = torch.stack([b.queries[:, offset:stop].any(dim=0) for _, b in named]).any(dim=0).nonzero()
        if not len(touched):
            return None
        low, high = int(touched[0]), int(touched[-1]) + 1
        heads = self.n_heads if any(b.heads is not None for _, b in named) else 1
        out = torch.zeros(len(members), self.batch, heads, high - low, stop, dtype=torch.bool, device=device)
        for run, b in named:
            queries = b.queries[:, offset + low : offset + high].to(device)
            block = queries[:, :, None] & b.keys[:, None, :stop].to(device)
            if b.heads is None:
                out[run] |= block[:, None]
            else:
                out[run, :, list(b.heads)] |= block[:, None]
        return Rows(low, high, out.flatten(0, 1))


@contextmanager
def apply_cuts(model: HookedModel, cuts: Cuts) -> Iterator[None]:
    """Let the attention layers follow ``cuts`` while the block lasts, also when it raises."""
    layers: list[HookedAttention] = [block.attn for block in model.bridge.blocks]
    outer = [layer.orders for layer in layers]  # of a run under way, from within which this one is made
    try:
        for layer in layers:
            layer.orders = cuts
        yield
    finally:
        for layer, orders in zip(layers, outer, strict=True):
            layer.orders = orders


def can_apply_cuts(model: HookedModel) -> bool:
    """Whether every decoder layer's attention is ours, and no switch of TransformerLens takes it over."""
    return all(
        isinstance(block.attn, HookedAttention) and not block.attn.by_transformer_lens
        for block in model.bridge.blocks
    )
