"""One attention for every family: transformers' own, with TransformerLens' hook points standing inside it.

transformers computes queries, keys and values (norms, rotary angles of one or three streams, scaling) and
then calls whichever attention function its config names. That function is ours: it fires ``hook_rot_q`` and
``hook_rot_k``, and, where a hook stands on ``hook_attn_scores`` or ``hook_pattern``, takes attention apart
step by step; elsewhere it calls the fused kernel, equal to rounding in a fraction of time and memory. So an
edit takes effect in every family, also where TransformerLens' bridge would let it pass and discard it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.position_embeddings_attention import (
    PositionEmbeddingsAttentionBridge,
)
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from gatelens.bridge.lean import BLOCK, NOTHING_CUT, Cut, Orders, SharedKeys, lean, masked, pattern_of
from gatelens.errors import InterventionError, ModelError

IMPLEMENTATION = "gatelens"
WAYS = ("fused", "stepwise")
_SWITCHES = ("use_split_qkv_input", "use_attn_in", "use_attn_result")


class HookedAttention(AttentionBridge):
    """An attention layer of the decoder whose hooks fire where transformers computes.

    Mixed into TransformerLens' bridge of that layer by :func:`install`.
    """

    way = "fused"
    orders: Orders | None = None  # what the engine asks of this layer in the pass that is running
    norm_after_transpose = False  # whether the family norms queries as [batch, head, pos, d_head]

    @property
    def by_transformer_lens(self) -> bool:
        """Whether a switch of the bridge is on that only TransformerLens' own computation honours."""
        return self.compatibility_mode or any(getattr(self.config, flag, False) for flag in _SWITCHES)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.by_transformer_lens:
            return self._by_transformer_lens(*args, **kwargs)
        if "hidden_states" in kwargs:
            hidden = kwargs["hidden_states"] = self.hook_in(kwargs["hidden_states"])
        else:
            hidden = self.hook_in(args[0])
            args = (hidden, *args[1:])
        self.__dict__["_shape"] = hidden.shape[:2]
        assert self.original_component is not None
        out, *rest = self.original_component(*args, **kwargs)
        return (self.hook_out(out), *rest)

    def _by_transformer_lens(self, *args: Any, **kwargs: Any) -> Any:
        """What users switched on in the bridge (split inputs, per-head results) only TransformerLens computes."""
        if not isinstance(self, PositionEmbeddingsAttentionBridge):
            raise InterventionError(
                "TransformerLens offers no split inputs and no per-head results in this family: "
                "switch them off, and edit q, k, v or z per head instead"
            )
        return super().forward(*args, **kwargs)

    def attend(
        self,
        query: Float[Tensor, "batch head q_pos d_head"],
        key: Float[Tensor, "batch kv_head k_pos d_head"],
        value: Float[Tensor, "batch kv_head k_pos d_head"],
        mask: Tensor | None,
        scaling: float | None,
        softcap: float | None,
        **rest: Any,
    ) -> tuple[Float[Tensor, "batch q_pos head d_head"], Tensor | None]:
        """Attention of one pass; keys and values hold the cache and the new positions."""
        query, key = self._rotated(query, key)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        orders = self.orders
        cut = orders.cut(self._layer_idx, query.device) if orders is not None else NOTHING_CUT
        prefix = orders.prefix(self._layer_idx) if orders is not None else None
        inside = self.way == "stepwise" or watched(self.hook_attn_scores, self.hook_pattern)
        if prefix is None and not inside and softcap is None:
            out = lean(self.original_component, query, key, value, mask, scaling, cut, rest)
            if orders is not None:
                self._show(orders, query, key, mask, scaling, cut)
            return out, None
        heads = SharedKeys(prefix, key, value)
        scores = masked(capped(heads.scores(query) * scaling, softcap), mask, cut.masked)
        scores = self.hook_attn_scores(scores)
        pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        if cut.zeroed is not None:
            pattern = cut.zeroed.fill(pattern, 0.0)
        pattern = self.hook_pattern(pattern)
        wanted = orders.rows_looked_at(self._layer_idx) if orders is not None else None
        if orders is not None and wanted is not None:
            orders.look(self._layer_idx, pattern[:, :, wanted.start : wanted.stop], wanted.start)
        return heads.mix(pattern), pattern

    def _show(
        self, orders: Orders, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, cut: Cut
    ) -> None:
        """Build the pattern only of the rows somebody looks at, a block at a time."""
        wanted = orders.rows_looked_at(self._layer_idx)
        if wanted is None:
            return
        for low in range(wanted.start, wanted.stop, BLOCK):
            high = min(low + BLOCK, wanted.stop)
            orders.look(self._layer_idx, pattern_of(query, key, mask, scaling, cut, low, high), low)

    def _rotated(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Fire the hooks on rotated queries and keys; an edited key is also what the cache keeps."""
        if getattr(self, "hook_rot_q", None) is not None:
            query = self.hook_rot_q(query)
        point = getattr(self, "hook_rot_k", None)
        if point is not None and watched(point):
            new = key[:, :, -query.shape[2] :]
            edited = point(new.clone())  # hooks may keep what they are shown
            if torch.is_grad_enabled() and (key.requires_grad or edited.requires_grad):
                key = torch.cat([key[:, :, : -query.shape[2]], edited], dim=2)
            else:
                new.copy_(edited)  # the cache holds this very memory
        return query, key


def watched(*points: HookPoint) -> bool:
    """Whether a hook stands on any of these points."""
    return any(point.fwd_hooks or point.bwd_hooks for point in points)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores squeezed into (-softcap, softcap), as Gemma 2 does."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in place of its own attention function."""
    owner: HookedAttention = module.__dict__["_gatelens"]
    return owner.attend(query, key, value, attention_mask, scaling, softcap, **rest)


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def install(bridge: Any, hf: Any, way: str) -> None:
    """Let the decoder's attention run ``fused`` where no hook looks inside, or ``stepwise`` everywhere.

    Changes this model alone, not TransformerLens' adapters. Raises ModelError for another word, or for a
    decoder whose attention does not call an exchangeable function.
    """
    if way not in WAYS:
        raise ModelError(f"attention '{way}': write {' or '.join(WAYS)}")
    for block in bridge.blocks:
        if type(block.attn) in (AttentionBridge, PositionEmbeddingsAttentionBridge):
            _adopt(block.attn)
        if isinstance(block.attn, HookedAttention):
            block.attn.way = way
    ours = all(isinstance(block.attn, HookedAttention) for block in bridge.blocks)
    # a fused projection of queries, keys and values is left to TransformerLens, which computes it step by step
    hf.config.get_text_config()._attn_implementation = IMPLEMENTATION if ours else "eager"


def windows(config: Any, n_layers: int) -> tuple[int | None, ...]:
    """How many positions each decoder layer looks back, itself included; None where it sees everything."""
    size = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)


@cache
def _hooked(kind: type) -> type:
    return type(f"Hooked{kind.__name__}", (HookedAttention, kind), {})


def _adopt(attention: Any) -> None:
    inner = attention.original_component
    if not hasattr(getattr(inner, "config", None), "_attn_implementation"):
        raise ModelError(
            f"the attention of {type(inner).__name__} is none that transformers lets exchange: "
            "this decoder is not supported"
        )
    kind: Any = type(attention)
    attention.__class__ = _hooked(kind)
    # not by setattr, which would make the bridge a submodule of its own submodule
    inner.__dict__["_gatelens"] = attention
    inner.config._attn_implementation = IMPLEMENTATION
    for norm, point in (("q_norm", "hook_q_normed"), ("k_norm", "hook_k_normed")):
        if getattr(attention, norm, None) is not None and getattr(attention, point, None) is not None:
            getattr(attention, norm).register_forward_hook(_normed(attention, point))


def _normed(attention: HookedAttention, point: str) -> Any:
    """Fires ``hook_q_normed`` as [batch, pos, head, d_head] whatever shape the family norms in."""

    def fire(module: Any, args: Any, out: Tensor) -> Tensor | None:
        hook: HookPoint = getattr(attention, point)
        if not watched(hook):
            return None
        if out.ndim == 4 and attention.norm_after_transpose:
            return hook(out.transpose(1, 2)).transpose(1, 2)
        if out.ndim == 4:
            return hook(out)
        batch, pos = attention.__dict__["_shape"]
        d_head = attention.original_component.head_dim
        return hook(out.reshape(batch, pos, -1, d_head)).reshape(out.shape)

    return fire
