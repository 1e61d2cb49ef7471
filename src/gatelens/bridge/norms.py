"""Skip hook overhead on unhooked norms.

TransformerLens' bridge computes scale and normalised activations of every norm for their hooks, beside
transformers' own norm. Where neither has a hook, transformers' norm alone is run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.generalized_components import NormalizationBridge, RMSNormalizationBridge

from gatelens.bridge.hook_points import has_hooks

NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")
QK_NORMS = ("q_norm", "k_norm")


class HookedNorm(NormalizationBridge):
    """A norm whose ``hook_in`` and ``hook_out`` always fire; the inner points cost time only with a hook."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        if self.compatibility_mode or has_hooks(self.hook_normalized, self.hook_scale):
            return super().forward(hidden_states, **kwargs)
        assert self.original_component is not None
        return self.hook_out(self.original_component(self.hook_in(hidden_states)))


@cache
def _hooked_class(kind: type) -> type:
    return type(f"Hooked{kind.__name__}", (HookedNorm, kind), {})


def install_norms(bridge: Any) -> None:
    """Change the decoder's norms in this model."""
    norms = [bridge.ln_final]
    for block in bridge.blocks:
        norms += [getattr(block, name, None) for name in NORMS]
        norms += [getattr(block.attn, name, None) for name in QK_NORMS]
    for norm in norms:
        if type(norm) in (NormalizationBridge, RMSNormalizationBridge):
            kind: Any = type(norm)
            norm.__class__ = _hooked_class(kind)
            norm.use_native_layernorm_autograd = True  # hooked or not, the numbers are transformers'
