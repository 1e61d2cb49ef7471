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
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.position_embeddings_attention import (
    PositionEmbeddingsAttentionBridge,
)
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ...errors import InterventionError, ModelError

IMPLEMENTATION = "gatelens"
WAYS = ("fused", "stepwise")
_SWITCHES = ("use_split_qkv_input", "use_attn_in", "use_attn_result")


class HookedAttention(AttentionBridge):
    """An attention layer of the decoder whose hooks fire where transformers computes.

    Mixed into TransformerLens' bridge of that layer by :func:`install`.
    """

    way = "fused"
    norm_after_transpose = False  # whether the family norms queries as [batch, head, pos, d_head]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.compatibility_mode or any(getattr(self.config, flag, False) for flag in _SWITCHES):
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
        inside = self.way == "stepwise" or watched(self.hook_attn_scores, self.hook_pattern)
        if not inside and softcap is None:
            return sdpa_attention_forward(
                self.original_component, query, key, value, mask, scaling=scaling, **rest
            )
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = self.hook_attn_scores(masked(scores, mask))
        pattern = self.hook_pattern(torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype))
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    def _rotated(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Fire the hooks on rotated queries and keys; an edited key is also what the cache keeps."""
        if getattr(self, "hook_rot_q", None) is not None:
            query = self.hook_rot_q(query)
        point = getattr(self, "hook_rot_k", None)
        if point is not None and watched(point):
            new = key[:, :, -query.shape[2] :]
            edited = point(new)
            if edited is not new and torch.is_grad_enabled():
                key = torch.cat([key[:, :, : -query.shape[2]], edited], dim=2)
            elif edited is not new:
                new.copy_(edited)  # the cache holds this very memory
        return query, key


def watched(*points: HookPoint) -> bool:
    """Whether a hook stands on any of these points."""
    return any(point.fwd_hooks or point.bwd_hooks for point in points)


def masked(scores: Float[Tensor, "batch head q k"], mask: Tensor | None) -> Float[Tensor, "batch head q k"]:
    """Scores with the lowest number where the mask (None: causal) lets nothing through."""
    n_q, n_k = scores.shape[-2:]
    if mask is None:
        mask = causal(n_q, n_k, scores.device)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask.to(scores.dtype)


def causal(n_q: int, n_k: int, device: torch.device) -> Bool[Tensor, "q k"]:
    """Which keys the last ``n_q`` of ``n_k`` positions may read."""
    rows = torch.arange(n_k - n_q, n_k, device=device)
    return rows[:, None] >= torch.arange(n_k, device=device)[None, :]


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
