"""One attention for every family: transformers' own, with TransformerLens' hook points inside it.

transformers computes queries, keys and values (norms, rotary angles of one or three streams, scaling) and
then calls whichever attention function its config names. That function is ours: it fires ``hook_rot_q`` and
``hook_rot_k``, and, where ``hook_attn_scores`` or ``hook_pattern`` has a hook, takes attention apart
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

from gatelens.bridge.hook_points import has_hooks
from gatelens.bridge.last_rows import KeysDone
from gatelens.bridge.masked_attention import (
    FUSED_ROWS,
    NO_CUTS,
    ROWS_AT_ONCE,
    LayerCuts,
    PassCuts,
    SharedKeys,
    fused_after_prefix,
    fused_attention,
    masked_scores,
    pattern_rows,
    softmax_pattern,
)
from gatelens.errors import InterventionError, ModelError

IMPLEMENTATION = "gatelens"
MODES = ("fused", "stepwise")
_SWITCHES = ("use_split_qkv_input", "use_attn_in", "use_attn_result")


class StrictAttention(AttentionBridge):
    """Attention whose hooks cannot edit in vain.

    Some of TransformerLens' bridges let the wrapped module compute the attention and fire the hooks afterwards, for
    reading only; an edit there is a warning.
    """

    def _fire_post_hoc_hook(self, hook: HookPoint, tensor: Tensor, hook_label: str) -> Tensor:
        result = hook(tensor)
        if isinstance(result, Tensor) and result is not tensor and not _equal(result, tensor):
            raise InterventionError(
                f"this model discards the edit (a hook on {self.name}.{hook_label}): its bridge lets the wrapped "
                "module compute attention; patch, steer or ablate v or z there instead"
            )
        return result


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


class HookedAttention(StrictAttention):
    """An attention layer of the decoder whose hooks fire where transformers computes.

    Mixed into TransformerLens' bridge of that layer by :func:`install_attention`.
    """

    mode = "fused"
    cuts: PassCuts | None = None  # what the engine asks of this layer in the pass that is running
    keys_alone = False  # whether a pass ends here, with its keys and values in the cache
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
        if self.keys_alone:
            raise KeysDone
        query, key = self._rotated(query, key)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer, cuts = self._layer_idx, self.cuts
        layer_cuts = NO_CUTS if cuts is None else cuts.layer_cuts(layer, query.device).first(len(query))
        prefix = None if cuts is None else cuts.shared_keys(layer)
        inside = self.mode == "stepwise" or has_hooks(self.hook_attn_scores, self.hook_pattern)
        if prefix is None and not inside and softcap is None:
            out = fused_attention(self.original_component, query, key, value, mask, scaling, layer_cuts, rest)
            self._show_rows(query, key, mask, scaling, layer_cuts)
            return out, None
        heads = SharedKeys(prefix, key, value)
        shown = None if cuts is None else cuts.shown_rows(layer)
        plain = not inside and softcap is None and shown is None
        if plain and heads.rows(query) >= FUSED_ROWS:
            dropout = rest.get("dropout", 0.0)
            out = fused_after_prefix(
                self.original_component, query, heads, mask, scaling, layer_cuts, dropout
            )
            return out, None
        scores = masked_scores(capped(heads.scores(query) * scaling, softcap), mask, layer_cuts.masked)
        scores = self.hook_attn_scores(scores)
        pattern = softmax_pattern(scores, query.dtype, rest.get("dropout", 0.0))  # 0 but while training
        if layer_cuts.zeroed is not None:
            pattern = layer_cuts.zeroed.fill(pattern, 0.0)
        pattern = self.hook_pattern(pattern)
        if cuts is not None and shown is not None:
            cuts.show(layer, pattern[:, :, shown.start : shown.stop], shown.start)
        return heads.mix(pattern), pattern

    def _show_rows(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, layer_cuts: LayerCuts
    ) -> None:
        """Build the pattern only of the rows to be shown, a block at a time; without dropout."""
        cuts, layer = self.cuts, self._layer_idx
        shown = None if cuts is None else cuts.shown_rows(layer)
        if cuts is None or shown is None:
            return
        for start in range(shown.start, shown.stop, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, shown.stop)
            cuts.show(layer, pattern_rows(query, key, mask, scaling, layer_cuts, start, stop), start)

    def _rotated(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Fire the hooks on rotated queries and keys; an edited key is also what the cache keeps."""
        if getattr(self, "hook_rot_q", None) is not None:
            query = self.hook_rot_q(query)
        point = getattr(self, "hook_rot_k", None)
        if point is not None and has_hooks(point):
            new = key[:, :, -query.shape[2] :]
            edited = point(new.clone())  # hooks may keep what they are shown
            if torch.is_grad_enabled() and (key.requires_grad or edited.requires_grad):
                key = torch.cat([key[:, :, : -query.shape[2]], edited], dim=2)
            else:
                new.copy_(edited)  # the cache holds this memory
        return query, key


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


def install_attention(bridge: Any, hf: Any, mode: str) -> None:
    """Let the decoder's attention run ``fused`` where no hook is inside it, or ``stepwise`` everywhere; an edit that
    would be discarded is an InterventionError.

    Changes this model alone, not TransformerLens' adapters.

    Raises:
        ModelError: another word, or a decoder whose attention does not call an exchangeable function.
    """
    if mode not in MODES:
        raise ModelError(f"attention '{mode}': write {' or '.join(MODES)}")
    for block in bridge.blocks:
        if type(block.attn) in (AttentionBridge, PositionEmbeddingsAttentionBridge):
            _hook_inside(block.attn)
        if isinstance(block.attn, HookedAttention):
            block.attn.mode = mode
    ours = all(isinstance(block.attn, HookedAttention) for block in bridge.blocks)
    # a fused projection of queries, keys and values is left to TransformerLens, which computes it step by step
    hf.config.get_text_config()._attn_implementation = IMPLEMENTATION if ours else "eager"
    refuse_discarded_edits(bridge)


def attention_windows(config: Any, n_layers: int) -> tuple[int | None, ...]:
    """How many positions each decoder layer looks back, itself included; None where it sees everything."""
    size = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)


def refuse_discarded_edits(bridge: Any) -> None:
    """Make an edit that TransformerLens would discard an InterventionError, in this model."""
    for component in bridge.modules():
        if isinstance(component, AttentionBridge) and not isinstance(component, StrictAttention):
            kind: Any = type(component)
            component.__class__ = _strict_class(kind)


def position_limit(config: Any) -> int | None:
    """How many positions the decoder's config allows; None where it names no limit, as with ALiBi.

    A window is no limit. Rotary angles stretched by a factor (linear, dynamic, YaRN) reach that much further than the
    positions of the pretraining, in the layers that have them; the layers with the least count.
    """
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    return min(_stretched(int(most), one) for one in by_layer)


def _stretched(most: int, rope: dict[str, Any]) -> int:
    kind, factor = rope.get("rope_type"), rope.get("factor") or 1
    if kind in ("linear", "dynamic"):
        return max(most, int(most * factor))
    if kind == "yarn":  # of other kinds max_position_embeddings is the stretched number
        return max(most, int((rope.get("original_max_position_embeddings") or most) * factor))
    return most


@cache
def _strict_class(kind: type) -> type:
    return type(f"Strict{kind.__name__}", (StrictAttention, kind), {})


@cache
def _hooked_class(kind: type) -> type:
    return type(f"Hooked{kind.__name__}", (HookedAttention, kind), {})


def take_over(inner: Any, attention: HookedAttention) -> None:
    """Let transformers call ``attention`` in place of the attention function of the module ``inner``."""
    # not by setattr, which would make the bridge a submodule of its own submodule
    inner.__dict__["_gatelens"] = attention
    inner.config._attn_implementation = IMPLEMENTATION


def is_exchangeable(inner: Any) -> bool:
    """Whether transformers calls an attention function by name in this module."""
    return hasattr(getattr(inner, "config", None), "_attn_implementation")


def _hook_inside(attention: Any) -> None:
    inner = attention.original_component
    if not is_exchangeable(inner):
        raise ModelError(
            f"the attention of {type(inner).__name__} cannot be exchanged in transformers: "
            "this decoder is not supported"
        )
    kind: Any = type(attention)
    attention.__class__ = _hooked_class(kind)
    take_over(inner, attention)
    for norm, point in (("q_norm", "hook_q_normed"), ("k_norm", "hook_k_normed")):
        if getattr(attention, norm, None) is not None and getattr(attention, point, None) is not None:
            getattr(attention, norm).register_forward_hook(_fire_normed(attention, point))


def _fire_normed(attention: HookedAttention, point: str) -> Any:
    """Fires ``hook_q_normed`` as [batch, pos, head, d_head] whatever shape the family norms in."""

    def fire(module: Any, args: Any, out: Tensor) -> Tensor | None:
        hook: HookPoint = getattr(attention, point)
        if not has_hooks(hook):
            return None
        if out.ndim == 4 and attention.norm_after_transpose:
            return hook(out.transpose(1, 2)).transpose(1, 2)
        if out.ndim == 4:
            return hook(out)
        batch, pos = attention.__dict__["_shape"]
        d_head = attention.original_component.head_dim
        return hook(out.reshape(batch, pos, -1, d_head)).reshape(out.shape)

    return fire
