"""What a model of transformers answers when positions are cut: no hook, engine or intervention of gatelens.

So the truth of plants (:mod:`gatelens.bench`) and of graded organisms (:mod:`gatelens.organisms.graded`) is measured.
Each number is a pass of the model's own code with an attention function written out here. Rows before the answering
one are computed once; what is cut is what the answering row, the last one, reads of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

How = Literal["zero", "mask", "resample"]
# positions that are cut in all layers, or by layer
Positions: TypeAlias = Iterable[int] | Mapping[int, Iterable[int]]
_NAME = "gatelens_plain_runs"


def _attention(
    module: Any,
    query: Float[Tensor, "batch head row d_head"],
    key: Float[Tensor, "batch head pos d_head"],
    value: Float[Tensor, "batch head pos d_head"],
    mask: None,
    scaling: float,
    cut: Mapping[int, list[int]] | None = None,
    how: How = "mask",
    patterns: list[Tensor] | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "batch row head d_head"], None]:
    """Causal attention without padding, as in transformers' eager one; the last row under a cut.

    Args:
        cut: by layer, the positions that the last row does not read.
        how: hidden before the softmax (``mask``) or after it (``zero``).
        patterns: gets the attention of the last row, mean over prompts and heads.
    """
    n_rows, n_keys = query.shape[2], key.shape[2]
    future = torch.ones(n_rows, n_keys, dtype=torch.bool).triu(n_keys - n_rows + 1)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(future, -torch.inf)
    unread = (cut or {}).get(module.layer_idx, [])
    if how == "mask":
        scores[:, :, -1, unread] = -torch.inf
    pattern = scores.softmax(-1)
    if how == "zero":
        pattern[:, :, -1, unread] = 0
    if patterns is not None:
        patterns.append(pattern[:, :, -1].mean((0, 1)))
    return (pattern @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)


def tensors(processor: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """Prompts with a picture each, as the processor makes them; Chameleon's appends nothing for a chat."""
    chat = {"return_for_text_completion": True} if type(processor).__name__ == "ChameleonProcessor" else {}
    made = dict(processor(images=[[one] for one in images], text=list(texts), return_tensors="pt", **chat))
    made.pop("token_type_ids", None)
    return made


class PlainRuns:
    """Forward passes of a model of transformers over prompts of one length, each with a picture.

    Attributes:
        ids: Int[prompt, pos], placeholders where the picture is.
        layers: of the decoder.
        embeddings: Float[prompt, pos, d_model], what enters the first layer.
    """

    def __init__(self, hf: Any, processor: Any, images: Sequence[Any], texts: Sequence[str]) -> None:
        self.hf, self.layers = hf, list(hf.get_decoder().layers)
        made = tensors(processor, images, texts)
        self.ids: Int[Tensor, "prompt pos"] = made["input_ids"]
        self.embeddings: Float[Tensor, "prompt pos d_model"] = _until(
            lambda stop: _before(self.layers[0], stop), partial(hf, **made)
        )

    def logits(
        self, cut: Positions = (), how: How = "mask", partner: Int[Tensor, " prompt"] | None = None
    ) -> Float[Tensor, "prompt d_vocab"]:
        """What the answering row says when it does not read some positions.

        Args:
            how: hidden before the softmax (``mask``), after it (``zero``), or read in the partner's prompt
                (``resample``).
            partner: the number of the prompt that each resamples from.
        """
        by_layer = self._by_layer(cut)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._read):
            if how == "resample" and by_layer[layer]:
                at = by_layer[layer]
                theirs_k, theirs_v = keys[partner], values[partner]
                keys, values = keys.clone(), values.clone()
                keys[:, :, at], values[:, :, at] = theirs_k[:, :, at], theirs_v[:, :, at]
            cache.update(keys, values, layer)
        last = self.ids.shape[1] - 1
        return self._run(
            inputs_embeds=self.embeddings[:, last:],
            past_key_values=cache,
            use_cache=True,
            position_ids=torch.full((len(self.ids), 1), last),
            cut=by_layer,
            how=how,
        )

    def resampled(
        self,
        at: Iterable[int],
        partner: Int[Tensor, " prompt"],
        own: Iterable[int] = (),
        share: float = 1.0,
    ) -> Float[Tensor, "prompt d_vocab"]:
        """What is said with the stream that enters every layer a partner's at some positions, for all rows to read.

        Args:
            own: positions whose stream stays that of the run without a cut.
            share: how much of the way from the own stream to the partner's.
        """
        at, own = list(at), list(own)

        def replaced(clean: Tensor) -> Callable[[Tensor], Tensor]:
            def function(stream: Tensor) -> Tensor:
                stream = stream.clone()
                stream[:, at] = torch.lerp(clean, clean[partner], share)[:, at]
                stream[:, own] = clean[:, own]
                return stream

            return function

        with ExitStack() as hooks:
            for layer, clean in zip(self.layers, self._streams, strict=True):
                hooks.enter_context(_before(layer, replaced(clean)))
            return self._run(inputs_embeds=self.embeddings, use_cache=False)

    def attention(self) -> Float[Tensor, " pos"]:
        """The share of the answering row's attention each position gets: mean over prompts, heads and layers."""
        patterns: list[Tensor] = []
        self._run(inputs_embeds=self.embeddings, use_cache=False, patterns=patterns)
        return torch.stack(patterns).mean(0)

    def seen(self, part: Any, positions: Sequence[int]) -> Float[Tensor, "prompt place d_model"]:
        """What a part of the model gives at some positions."""
        given = _until(
            lambda stop: _closed(part.register_forward_hook(lambda _, __, out: stop(out))),
            partial(self._run, inputs_embeds=self.embeddings, use_cache=False),
        )
        return given[:, list(positions)]

    @torch.inference_mode()
    def _run(self, **inputs: Any) -> Float[Tensor, "prompt d_vocab"]:
        """Logits at the last position, with the attention written here."""
        configs = [self.hf.config, self.hf.config.get_text_config()]
        before = [config._attn_implementation for config in configs]
        try:
            for config in configs:
                config._attn_implementation = _NAME
            return self.hf(**inputs, logits_to_keep=1).logits[:, -1].clone()
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation = name

    def _by_layer(self, cut: Positions) -> dict[int, list[int]]:
        if isinstance(cut, Mapping):
            return {layer: list(cut.get(layer, ())) for layer in range(len(self.layers))}
        everywhere = list(cut)
        return dict.fromkeys(range(len(self.layers)), everywhere)

    @cached_property
    def _read(self) -> list[tuple[Tensor, Tensor]]:
        """By layer, keys and values of all rows before the answering one: Float[prompt, head, pos, d_head]."""
        cache = DynamicCache()
        self._run(inputs_embeds=self.embeddings[:, :-1], past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    @cached_property
    def _streams(self) -> list[Float[Tensor, "prompt pos d_model"]]:
        """What enters each layer."""
        seen: list[Tensor] = []

        def keep(stream: Tensor) -> Tensor:
            seen.append(stream.clone())
            return stream

        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(_before(layer, keep))
            self._run(inputs_embeds=self.embeddings, use_cache=False)
        return seen


@torch.inference_mode()
def _until(
    hooked: Callable[[Callable[[Tensor], Tensor]], AbstractContextManager[None]], run: Callable[[], Any]
) -> Tensor:
    """What a hook is given in a pass, of which no more is computed."""

    def stop(given: Tensor) -> Tensor:
        raise _Enough(given)

    try:
        with hooked(stop):
            run()
    except _Enough as seen:
        return seen.given
    raise AssertionError("the hook never fired")


class _Enough(Exception):
    """Ends a pass that has shown what it was run for."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given


@contextmanager
def _closed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _before(layer: Any, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give a layer what a function makes of the stream that enters it."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (function(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": function(kwargs["hidden_states"])}

    with _closed(layer.register_forward_pre_hook(hook, with_kwargs=True)):
        yield
