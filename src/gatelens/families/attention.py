"""Attention that is only taken apart where somebody looks inside.

TransformerLens' bridge computes scores, mask, softmax and values one by one in every layer, so that hooks
can stand between them. Where no hook does, transformers' own fused attention gives the same output (to
rounding) in a fraction of the time and memory; only what padding rows hold differs. ``hook_q``, ``hook_k``,
``hook_v``, ``hook_z`` and ``hook_attn_out`` sit on modules that the fused way calls as well.
"""

from __future__ import annotations

from typing import Any

from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.position_embeddings_attention import (
    PositionEmbeddingsAttentionBridge,
)

from ..errors import ModelError

# children whose hooks fire either way, in the same shapes
_OUTSIDE = frozenset({"hook_in", "hook_out", "q", "k", "v", "o", "_original_component"})
WAYS = ("fused", "stepwise")


class FusedAttentionBridge(PositionEmbeddingsAttentionBridge):
    """TransformerLens' attention, delegating to transformers' own while no hook stands inside it."""

    fused = True

    def _inside(self) -> list[HookPoint]:
        points: list[HookPoint] | None = self.__dict__.get("_inside_points")
        if points is None:
            children = [child for name, child in self.named_children() if name not in _OUTSIDE]
            points = [m for child in children for m in child.modules() if isinstance(m, HookPoint)]
            self.__dict__["_inside_points"] = points
        return points

    def _must_step(self) -> bool:
        c = self.config
        split = any(
            getattr(c, flag, False) for flag in ("use_split_qkv_input", "use_attn_in", "use_attn_result")
        )
        return split or self.compatibility_mode or any(p.fwd_hooks or p.bwd_hooks for p in self._inside())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.fused or self._must_step():
            return super().forward(*args, **kwargs)
        if "hidden_states" in kwargs:
            kwargs["hidden_states"] = self.hook_in(kwargs["hidden_states"])
        else:
            args = (self.hook_in(args[0]), *args[1:])
        assert self.original_component is not None
        out, *rest = self.original_component(*args, **kwargs)
        return (self.hook_out(out), *rest)


def install(bridge: Any, hf: Any, way: str) -> None:
    """Let the decoder's attention run ``fused`` where it can, or ``stepwise`` everywhere.

    Changes this model alone, not TransformerLens' adapters. Raises ModelError for another word.
    """
    if way not in WAYS:
        raise ModelError(f"attention '{way}': write {' or '.join(WAYS)}")
    ours = [
        b.attn
        for b in bridge.blocks
        if type(b.attn) in (PositionEmbeddingsAttentionBridge, FusedAttentionBridge)
    ]
    for attention in ours:
        attention.__class__ = FusedAttentionBridge
        attention.fused = way == "fused"
    # the mask transformers builds, and the kernel it calls, follow the config of the decoder alone
    if ours:
        hf.config.get_text_config()._attn_implementation = "sdpa" if way == "fused" else "eager"
