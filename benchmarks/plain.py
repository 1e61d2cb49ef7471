"""Plain TransformerLens: its own bridge, its own attention, nothing of gatelens but the adapter of the family."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.sources import build_bridge_from_module

from gatelens.bridge.attention import HookedAttention


def make_plain(hf: Any) -> Any:
    """A TransformerBridge on an untouched model whose attention is eager, as TransformerLens asks for.

    Raises RuntimeError when gatelens' own attention is found in it: then the comparison would be with itself.
    """
    hf.set_attn_implementation("eager")
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)
    if any(isinstance(block.attn, HookedAttention) for block in bridge.blocks):
        raise RuntimeError("this bridge runs gatelens' attention: build it on a model gatelens never touched")
    return bridge


def run_plain(bridge: Any, ids: Tensor, pairs: list[Any]) -> Tensor:
    """Logits under plain hooks, Float[batch, pos, d_vocab]."""
    return bridge.run_with_hooks(ids, fwd_hooks=pairs)
