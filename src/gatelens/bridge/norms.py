"""Norms that only take themselves apart where somebody looks inside.

TransformerLens' bridge computes scale and normalised activations of every norm for their hooks, beside
transformers' own norm. Where no hook stands on them, transformers' norm alone is run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.generalized_components import NormalizationBridge, RMSNormalizationBridge

NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")
QK_NORMS = ("q_norm", "k_norm")


class HookedNorm(NormalizationBridge):
    """A norm whose ``hook_in`` and ``hook_out`` always fire, the inner ones where they are watched."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        inner = (self.hook_normalized, self.hook_scale)
        if self.compatibility_mode or any(p.fwd_hooks or p.bwd_hooks for p in inner):
            return super().forward(hidden_states, **kwargs)
        assert self.original_component is not None
        return self.hook_out(self.original_component(self.hook_in(hidden_states)))


@cache
def _hooked(kind: type) -> type:
    return type(f"Hooked{kind.__name__}", (HookedNorm, kind), {})


def install(bridge: Any) -> None:
    """Change the decoder's norms in this model."""
    found = [bridge.ln_final]
    for block in bridge.blocks:
        found += [getattr(block, name, None) for name in NORMS]
        found += [getattr(block.attn, name, None) for name in QK_NORMS]
    for norm in found:
        if type(norm) in (NormalizationBridge, RMSNormalizationBridge):
            kind: Any = type(norm)
            norm.__class__ = _hooked(kind)
            norm.use_native_layernorm_autograd = True  # watched or not, the numbers are transformers'
