"""Interventions written once more, by torch hooks on plain transformers: nothing of gatelens computes here.

An operation is described by plain values (:class:`Cut`, :class:`Change`); :class:`Oracle` runs a list of them. What
it does is read off the documentation: knockouts are a union, ``mask`` before and ``zero`` after the softmax; edits act
in the order in which the network computes, and at one site in the order of the list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

HEAD_SITES = ("q", "k", "v", "z", "rot_q", "rot_k", "pattern")


@dataclass(frozen=True)
class Cut:
    """Attention from ``queries`` to ``keys`` (Bool[batch, pos]) taken away."""

    queries: Tensor
    keys: Tensor
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    how: str


@dataclass(frozen=True)
class Change:
    """Rows ``at`` (Bool[batch, pos]) of a site replaced: ``new(old, layer, whole activation) -> rows``."""

    site: str
    at: Tensor
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    new: Callable[[Tensor, int, Tensor], Tensor]


Operation = Cut | Change


@dataclass
class Seen:
    """What a run showed: activations by (site, layer) and, by layer, which keys each query may read."""

    sites: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    visible: dict[int, Tensor] = field(default_factory=dict)


class Oracle:
    """A plain transformers model, run under operations."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain
        self.config = plain.config.get_text_config()
        self.layers = [
            m for m in plain.modules() if hasattr(m, "self_attn") and hasattr(m.self_attn, "layer_idx")
        ]
        self.n_heads = int(self.config.num_attention_heads)
        self.cuts: Sequence[Cut] = ()
        self.edits: dict[tuple[str, int], list[Change]] = {}
        self.seen = Seen()
        self.name = f"oracle-{id(self)}"  # transformers finds attention functions by name
        AttentionInterface.register(self.name, self.attention)
        AttentionMaskInterface.register(self.name, eager_mask)

    def run(self, tensors: dict[str, Tensor], operations: Sequence[Operation] = ()) -> tuple[Tensor, Seen]:
        """Logits of one forward pass without a cache, and what was seen in it."""
        self.cuts = [one for one in operations if isinstance(one, Cut)]
        self.seen = Seen()
        self.edits = defaultdict(list)
        for one in operations:
            if isinstance(one, Change):
                for layer in one.layers:
                    self.edits[one.site, layer].append(one)
        before, self.config._attn_implementation = self.config._attn_implementation, self.name
        try:
            with torch.no_grad(), self.hooked():
                return self.plain(**tensors, use_cache=False).logits, self.seen
        finally:
            self.config._attn_implementation = before

    def apply(self, site: str, layer: int, value: Tensor) -> Tensor:
        """What the edits of a site make of its activation, Tensor[batch, pos, ...]."""
        for change in self.edits[site, layer]:
            value = changed(change, value, layer)
        self.seen.sites[site, layer] = value
        return value

    def attention(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scaling: float | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attention entry by entry, as the papers write it."""
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer = module.layer_idx
        query, key = (
            self.apply(site, layer, x.transpose(1, 2)).transpose(1, 2)
            for site, x in (("rot_q", query), ("rot_k", key))
        )
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        self.seen.visible[layer] = mask[:, 0] > -1e9
        scores = scores + mask
        for cut in self.cuts_of(layer, "mask"):
            scores = scores.masked_fill(self.entries(cut), float("-inf"))
        pattern = scores.softmax(-1)
        for cut in self.cuts_of(layer, "zero"):
            pattern = pattern.masked_fill(self.entries(cut), 0.0)
        pattern = self.apply("pattern", layer, pattern.transpose(1, 2)).transpose(1, 2)
        return torch.einsum("bhqk,bhkd->bqhd", pattern, value).contiguous(), pattern

    def cuts_of(self, layer: int, how: str) -> list[Cut]:
        return [cut for cut in self.cuts if layer in cut.layers and cut.how == how]

    def entries(self, cut: Cut) -> Tensor:
        """Bool[batch, head, query, key]."""
        pairs = cut.queries[:, :, None] & cut.keys[:, None, :]
        named = torch.tensor([cut.heads is None or h in cut.heads for h in range(self.n_heads)])
        return pairs[:, None] & named[None, :, None, None]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles: list[Any] = []
        try:
            for i, layer in enumerate(self.layers):
                handles += self.layer_hooks(layer, i)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layer_hooks(self, layer: Any, i: int) -> list[Any]:
        attn, stream = layer.self_attn, {}

        def apply(site: str, value: Tensor) -> Tensor:
            return self.apply(site, i, value)

        def first(site: str) -> Callable[..., Any]:
            """A hook on what a module reads."""

            def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if "hidden_states" in kwargs:
                    kwargs = kwargs | {"hidden_states": apply(site, kwargs["hidden_states"])}
                else:
                    args = (apply(site, args[0]), *args[1:])
                if site == "resid_pre":
                    stream["in"] = kwargs.get("hidden_states", args[0] if args else None)
                return args, kwargs

            return hook

        def by_head(site: str, value: Tensor) -> Tensor:
            heads = value.view(*value.shape[:2], -1, attn.head_dim)
            return apply(site, heads).reshape(value.shape)

        def after_attention(module: Any, args: Any, out: Any) -> Any:
            added = apply("attn_out", out[0] if isinstance(out, tuple) else out)
            middle = stream["in"] + added
            new = apply("resid_mid", middle)
            # so written that a stream set to zero is exactly zero: the norm that reads it divides by its size
            added = torch.where(new == middle, added, new - stream["in"])
            return (added, *out[1:]) if isinstance(out, tuple) else added

        def leaving(module: Any, args: Any, out: Any) -> Any:
            return (
                (apply("resid_post", out[0]), *out[1:])
                if isinstance(out, tuple)
                else apply("resid_post", out)
            )

        behind_attention, behind_mlp = behind(layer)
        return [
            layer.register_forward_pre_hook(first("resid_pre"), with_kwargs=True),
            attn.register_forward_pre_hook(first("attn_in"), with_kwargs=True),
            *(
                getattr(attn, f"{s}_proj").register_forward_hook(lambda m, a, out, s=s: by_head(s, out))
                for s in "qkv"
            ),
            attn.o_proj.register_forward_pre_hook(lambda m, args: (by_head("z", args[0]), *args[1:])),
            behind_attention.register_forward_hook(after_attention),
            layer.mlp.register_forward_pre_hook(first("mlp_in"), with_kwargs=True),
            layer.mlp.down_proj.register_forward_pre_hook(first("neuron"), with_kwargs=True),
            behind_mlp.register_forward_hook(lambda m, a, out: apply("mlp_out", out)),
            layer.register_forward_hook(leaving),
        ]


def behind(layer: Any) -> tuple[Any, Any]:
    """The modules whose outputs are added to the stream: attention and MLP, or the norms that follow them."""
    if hasattr(layer, "post_self_attn_layernorm"):  # GLM-4V
        return layer.post_self_attn_layernorm, layer.post_mlp_layernorm
    if hasattr(layer, "post_feedforward_layernorm"):  # Gemma 2 and 3, OLMo 2
        return layer.post_attention_layernorm, layer.post_feedforward_layernorm
    if "Swin" in type(layer).__name__:  # Chameleon 34B
        return layer.input_layernorm, layer.post_attention_layernorm
    return layer.self_attn, layer.mlp


def changed(change: Change, value: Tensor, layer: int) -> Tensor:
    """The activation with its rows replaced, in the chosen heads only."""
    new = value.clone()
    rows = change.new(value[change.at], layer, value)
    if change.heads is not None:
        kept = value[change.at].clone()
        kept[:, list(change.heads)] = rows[:, list(change.heads)]
        rows = kept
    new[change.at] = rows
    return new


def must_refuse(operations: Sequence[Operation], seen: Seen, real: Tensor) -> str | None:
    """Why a list cannot be run, by the documentation: None where it can. ``seen`` is of the clean run."""
    for one in operations:
        if isinstance(one, Change):
            if not one.at.any():
                return "selects nothing"
            continue
        pairs = one.queries[:, :, None] & one.keys[:, None, :]
        if not any((pairs & seen.visible[layer]).any() for layer in one.layers):
            return "nothing to cut"
    masks = [one for one in operations if isinstance(one, Cut) and one.how == "mask"]
    heads = {h for one in masks for h in one.heads or ()} | {-1}  # -1: a head that no cut names
    for layer, visible in seen.visible.items():
        for head in heads:
            left = visible.clone()
            for one in masks:
                if layer in one.layers and (one.heads is None or head in one.heads):
                    left &= ~(one.queries[:, :, None] & one.keys[:, None, :])
            if (real & ~left.any(-1) & visible.any(-1)).any():
                return "an empty row"
    return None
