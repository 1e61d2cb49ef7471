"""What a plant does, measured by brute force with plain transformers: no hook, engine or intervention of gatelens.

The answering row reads only some positions, or all but some; or their stream is another picture's. Each is one forward
pass of the model's own code, with an attention function written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface

from gatelens.data import Example

How = Literal["zero", "mask"]
_NAME = "gatelens_bench"
# keys that the last row does not read in each layer, and what not reading means
_hidden: ContextVar[tuple[Bool[Tensor, "layer key"], How] | None] = ContextVar("hidden", default=None)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention of a whole prompt without padding, as in transformers' eager one, with keys hidden."""
    n = query.shape[2]
    assert key.shape[2] == n, "whole prompts only"
    scores = query @ key.transpose(2, 3) * scaling
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    hidden = _hidden.get()
    if hidden is not None and hidden[1] == "mask":
        scores[:, :, -1, hidden[0][module.layer_idx]] = -torch.inf
    pattern = scores.softmax(-1)
    if hidden is not None and hidden[1] == "zero":
        pattern[:, :, -1, hidden[0][module.layer_idx]] = 0
    return (pattern @ value).transpose(1, 2), None


AttentionInterface.register(_NAME, _attention)


def tensors(processor: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Prompts with their pictures, as the processor makes them; Chameleon's appends nothing for a chat."""
    chat = {"return_for_text_completion": True} if type(processor).__name__ == "ChameleonProcessor" else {}
    images, text = [[e.image] for e in examples], [e.prompt for e in examples]
    made = dict(processor(images=images, text=text, return_tensors="pt", **chat))
    made.pop("token_type_ids", None)
    return made


class PlainRuns:
    """Forward passes of a model of transformers over the pictures of one question.

    Attributes:
        ids: Int[picture, pos], all of one length.
        embeddings: Float[picture, pos, d_model], what enters the first layer.
    """

    def __init__(self, hf: Any, layers: Any, processor: Any, examples: Sequence[Example]) -> None:
        self.hf, self.layers = hf, list(layers)
        made = tensors(processor, examples)
        self.ids: Int[Tensor, "picture pos"] = made["input_ids"]
        self.embeddings: Float[Tensor, "picture pos d_model"] = self._until(
            lambda stop: _before(self.layers[0], stop), **made
        )

    @torch.inference_mode()
    def _logits(self, **inputs: Any) -> Float[Tensor, "picture d_vocab"]:
        """At the last position, with the attention written here."""
        configs = [self.hf.config, self.hf.config.get_text_config()]
        before = [config._attn_implementation for config in configs]
        try:
            for config in configs:
                config._attn_implementation = _NAME
            return self.hf(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].clone()
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation = name

    def logits(
        self, hide: Iterable[int] | Mapping[int, Iterable[int]] = (), how: How = "mask"
    ) -> Float[Tensor, "picture d_vocab"]:
        """With some positions hidden from the last row: in all layers and heads, or by layer where given so."""
        by_layer = hide
        if not isinstance(by_layer, Mapping):
            everywhere = list(by_layer)
            by_layer = dict.fromkeys(range(len(self.layers)), everywhere)
        hidden = torch.zeros(len(self.layers), self.ids.shape[1], dtype=torch.bool)
        for layer, places in by_layer.items():
            hidden[layer, list(places)] = True
        token = _hidden.set((hidden, how))
        try:
            return self._logits(inputs_embeds=self.embeddings)
        finally:
            _hidden.reset(token)

    def resampled(
        self,
        other: Iterable[int],
        partner: Int[Tensor, " picture"],
        own: Iterable[int] = (),
        share: float = 1.0,
    ) -> Float[Tensor, "picture d_vocab"]:
        """With the stream entering every layer at ``other`` positions a partner's, and at ``own`` its own clean one.

        Args:
            share: how much of the way from its own stream to the partner's.
        """
        streams: list[Tensor] = []
        with _all_before(self.layers, _kept_in(streams)):
            self._logits(inputs_embeds=self.embeddings)
        other, own = list(other), list(own)
        number = iter(range(len(streams)))

        def replaced(stream: Tensor) -> Tensor:
            clean, stream = streams[next(number)], stream.clone()
            stream[:, other] = torch.lerp(clean, clean[partner], share)[:, other]
            stream[:, own] = clean[:, own]
            return stream

        with _all_before(self.layers, replaced):
            return self._logits(inputs_embeds=self.embeddings)

    def seen(self, part: Any, positions: Sequence[int]) -> Float[Tensor, "picture place d_model"]:
        """What a part of the model gives at some positions."""
        given = self._until(
            lambda stop: _closed(part.register_forward_hook(lambda _, __, out: stop(out))),
            inputs_embeds=self.embeddings,
        )
        return given[:, list(positions)]

    def _until(
        self, hooked: Callable[[Callable[[Tensor], Tensor]], AbstractContextManager[None]], **inputs: Any
    ) -> Tensor:
        """What a hook is given, with no more of the pass computed."""

        def stop(given: Tensor) -> Tensor:
            raise _Enough(given)

        try:
            with hooked(stop):
                self._logits(**inputs)
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


def _kept_in(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(stream: Tensor) -> Tensor:
        kept.append(stream)
        return stream

    return keep


@contextmanager
def _before(layer: Any, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give a layer what a function makes of the stream that enters it."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (function(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": function(kwargs["hidden_states"])}

    with _closed(layer.register_forward_pre_hook(hook, with_kwargs=True)):
        yield


@contextmanager
def _all_before(layers: Sequence[Any], function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    if not layers:
        yield
        return
    with _before(layers[0], function), _all_before(layers[1:], function):
        yield
