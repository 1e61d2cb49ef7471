"""What a native organism answers when positions are cut, in plain transformers: no hook or engine of gatelens.

Each number is a forward pass of the model's own code, with an attention function written out here. Rows before the
answering one are computed once; what is cut is what the answering row reads of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

How = Literal["mask", "zero", "resample"]
_NAME = "gatelens_plain_cuts"


@dataclass(frozen=True)
class Cut:
    """Positions that the answering row does not read, in some layers.

    Attributes:
        how: hidden before the softmax (``mask``) or after it (``zero``), or read in the partner's prompt
            (``resample``).
    """

    positions: tuple[int, ...]
    how: How
    layers: tuple[int, ...]


def _attention(
    module: Any,
    query: Float[Tensor, "batch head row d_head"],
    key: Float[Tensor, "batch head pos d_head"],
    value: Float[Tensor, "batch head pos d_head"],
    mask: None,
    scaling: float,
    cut: Cut | None = None,
    patterns: list[Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch row head d_head"], None]:
    """Causal attention; the last row under a cut."""
    n_rows, n_keys = query.shape[2], key.shape[2]
    future = torch.ones(n_rows, n_keys, dtype=torch.bool).triu(n_keys - n_rows + 1)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(future, -torch.inf)
    cut_here = cut is not None and module.layer_idx in cut.layers
    if cut is not None and cut_here and cut.how == "mask":
        scores[:, :, -1, list(cut.positions)] = -torch.inf
    pattern = scores.softmax(-1)
    if cut is not None and cut_here and cut.how == "zero":
        pattern[:, :, -1, list(cut.positions)] = 0
    if patterns is not None:
        patterns.append(pattern[:, :, -1].mean((0, 1)))
    return (pattern @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)


class PlainRuns:
    """Forward passes of a Chameleon over prompts of one length, each with a picture and a partner.

    Attributes:
        ids: Int[prompt, pos], the picture's tokens in place.
        partner: Int[prompt], the number of the prompt that activations are resampled from.
        n_layers: of the decoder.
    """

    def __init__(
        self,
        hf: Any,
        processor: Any,
        images: Sequence[Any],
        texts: Sequence[str],
        partner: Int[Tensor, " prompt"],
    ) -> None:
        self.hf, self.partner = hf, partner
        made = processor(
            images=[[one] for one in images],
            text=list(texts),
            return_tensors="pt",
            return_for_text_completion=True,
        )
        ids: Int[Tensor, "prompt pos"] = made["input_ids"]
        with torch.inference_mode():
            tokens = hf.model.get_image_tokens(made["pixel_values"])
        self.ids = ids.masked_scatter(ids == hf.config.image_token_id, tokens.to(ids))
        self.n_layers = len(hf.model.layers)

    @torch.inference_mode()
    def _run(self, ids: Int[Tensor, "prompt row"], **options: Any) -> Any:
        before = self.hf.config._attn_implementation
        self.hf.set_attn_implementation(_NAME)
        try:
            return self.hf(input_ids=ids, logits_to_keep=1, **options)
        finally:
            self.hf.set_attn_implementation(before)

    @cached_property
    def _read(self) -> list[tuple[Tensor, Tensor]]:
        """By layer, the keys and values of all rows before the answering one: Float[prompt, head, pos, d_head]."""
        cache = DynamicCache()
        self._run(self.ids[:, :-1], past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def logits(self, cut: Cut | None = None) -> Float[Tensor, "prompt d_vocab"]:
        """What the answering row says under a cut."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._read):
            if cut is not None and cut.how == "resample" and layer in cut.layers:
                at = list(cut.positions)
                keys, values = keys.clone(), values.clone()
                keys[:, :, at], values[:, :, at] = (one[self.partner][:, :, at] for one in self._read[layer])
            cache.update(keys, values, layer)
        last = self.ids.shape[1] - 1
        position = torch.full((len(self.ids), 1), last)
        made = self._run(
            self.ids[:, -1:], past_key_values=cache, use_cache=True, position_ids=position, cut=cut
        )
        return made.logits[:, -1]

    def attention(self) -> Float[Tensor, " pos"]:
        """The share of the answering row's attention each position gets: mean over prompts, heads and layers."""
        patterns: list[Tensor] = []
        self._run(self.ids, use_cache=False, patterns=patterns)
        return torch.stack(patterns).mean(0)

    def resampled(self, at: Iterable[int], own: Iterable[int] = ()) -> Float[Tensor, "prompt d_vocab"]:
        """What is said with the stream that enters every layer a partner's at some positions, for all rows to read.

        Args:
            own: positions whose stream stays that of the run without interventions.
        """
        clean = self._streams
        at, own = list(at), list(own)

        def replace(layer: int) -> Any:
            def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                stream = args[0].clone()
                stream[:, at] = clean[layer][self.partner][:, at]
                stream[:, own] = clean[layer][:, own]
                return (stream, *args[1:])

            return hook

        with ExitStack() as hooks:
            for layer in range(self.n_layers):
                handle = self.hf.model.layers[layer].register_forward_pre_hook(replace(layer))
                hooks.callback(handle.remove)
            return self._run(self.ids, use_cache=False).logits[:, -1]

    @cached_property
    def _streams(self) -> list[Float[Tensor, "prompt pos d_model"]]:
        """What enters each layer."""
        seen: list[Tensor] = []
        with ExitStack() as hooks:
            for layer in self.hf.model.layers:
                handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
                hooks.callback(handle.remove)
            self._run(self.ids, use_cache=False)
        return seen
