"""The knockouts of the runs of one pass, as entries that attention leaves out while it computes.

As hooks they would make every layer build its whole pattern; as entries they go into the mask of the fused
kernel (``how="mask"``), or need the pattern of their own rows alone (``how="zero"``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gatelens.bridge.attention import HookedAttention
from gatelens.bridge.masked_attention import LayerCuts
from gatelens.interventions.hooks import Span
from gatelens.interventions.knockouts import Knockout, KnockoutEntries, resolve_knockouts

if TYPE_CHECKING:
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap

Look = Callable[[int, Tensor, int], None]


class Cuts:
    """What the attention layers are told during a pass of several runs, stacked run after run in the batch.

    Args:
        runs: the knockouts of each run.
        tokens: who is where, with generated positions when the runs decode.
        cfg: the TransformerLens config.
        span: the absolute positions of the current pass.
        shared: keys and values, by layer, that all runs read before their own.
        rows: rows (of the pass) whose pattern ``look`` is shown, by layer; None shows nothing.
    """

    def __init__(
        self,
        runs: Sequence[Sequence[Knockout]],
        tokens: TokenMap,
        cfg: Any,
        span: Span,
        shared: Sequence[tuple[Tensor, Tensor]] | None = None,
        rows: Callable[[int], range | None] | None = None,
        look: Look | None = None,
    ) -> None:
        self.span, self.shared = span, shared
        self.n_heads = int(cfg.n_heads)
        self.knockouts = KnockoutEntries([resolve_knockouts(run, tokens, cfg) for run in runs], span)
        self._rows, self._look = rows, look

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
        """Hand on a block of the pattern."""
        if self._look is not None and self.shown_rows(layer) is not None:
            self._look(layer, pattern, first_row)


@contextmanager
def conducting(model: HookedVLM, cuts: Cuts) -> Iterator[None]:
    """Let the attention layers follow ``cuts`` while the block lasts, also when it raises."""
    layers: list[HookedAttention] = [block.attn for block in model.bridge.blocks]
    before = [
        layer.cuts for layer in layers
    ]  # of a run that is under way, from within which this one is made
    try:
        for layer in layers:
            layer.cuts = cuts
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            layer.cuts = earlier


def can_conduct(model: HookedVLM) -> bool:
    """Whether every decoder layer's attention is ours, and no switch of TransformerLens takes it over."""
    return all(
        isinstance(block.attn, HookedAttention) and not block.attn.by_transformer_lens
        for block in model.bridge.blocks
    )
