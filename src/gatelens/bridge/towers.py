"""Vision towers: edits at their hook points take effect on the picture's features, or are refused.

Three obstacles in TransformerLens' bridges of CLIP and SigLIP:

- transformers records a layer's output before the bridge fires ``hook_out``, so a decoder fed from recorded
  states (LLaVA) never sees the edit: here the hook fires in the wrapped module, before the recorder.
- Attention scores and patterns are shown for reading only: here the tower's attention is taken apart as the
  decoder's is.
- Some points come after the layer the features are taken from: an edit there is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import (
    CLIPVisionEncoderBridge,
    CLIPVisionEncoderLayerBridge,
    SiglipVisionEncoderBridge,
    SiglipVisionEncoderLayerBridge,
)
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from gatelens.bridge.attention import HookedAttention, is_exchangeable, take_over
from gatelens.bridge.hook_points import has_hooks
from gatelens.errors import InterventionError

_DECODER = ("blocks", "embed", "unembed", "ln_final", "rotary_emb", "pos_embed")
_LAYERS = (CLIPVisionEncoderLayerBridge, SiglipVisionEncoderLayerBridge)
_TOWERS = (CLIPVisionEncoderBridge, SiglipVisionEncoderBridge)


class TowerAttention(HookedAttention):
    """Attention of a vision tower: no mask means that every patch reads every patch."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *args: Any, **rest: Any
    ) -> Any:
        stepwise = self.mode == "stepwise" or has_hooks(self.hook_attn_scores, self.hook_pattern)
        if mask is None and stepwise:
            mask = query.new_ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
        return super().attend(query, key, value, mask, *args, **rest)


class InnerHookOut(GeneralizedComponent):
    """A component whose ``hook_out`` fires where the wrapped module returns, before transformers records it.

    Mixed into TransformerLens' bridge, whose own forward fires it later; that call then only hands on.
    """

    @property
    def hook_out(self) -> Any:
        return _same if self.__dict__.get("_forwarding") else self._modules["hook_out"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["_forwarding"] = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.__dict__["_forwarding"] = False

    def fire(self, module: Any, args: Any, output: Any) -> Any:
        """The forward hook of the wrapped module."""
        point: Any = self._modules["hook_out"]
        if isinstance(output, tuple):
            return (point(output[0]), *output[1:])
        if isinstance(output, Tensor):
            return point(output)
        before = output.last_hidden_state
        output.last_hidden_state = point(before)
        states = output.get("hidden_states")
        if states and states[-1] is before:  # the last recorded state is the output itself
            output.hidden_states = (*states[:-1], output.last_hidden_state)
        return output


def _same(value: Any) -> Any:
    return value


def tower_points(bridge: Any) -> dict[str, Any]:
    """The hook points of a bridge outside the decoder, by name."""
    return {
        name: point
        for name, point in bridge.hook_dict.items()
        if "." in name and name.split(".")[0] not in _DECODER
    }


def install_towers(bridge: Any) -> None:
    """Make edits of the tower's layers, output, scores and patterns reach what the decoder reads."""
    for component in tower_components(bridge):
        if isinstance(component, (*_LAYERS, *_TOWERS)):
            _fire_inside(component)
        elif type(component) is AttentionBridge and is_exchangeable(component.original_component):
            component.__class__ = TowerAttention
            take_over(component.original_component, component)


def tower_components(bridge: Any) -> Iterator[Any]:
    """TransformerLens' components that are not part of the decoder."""
    for name, child in bridge.named_children():
        if name not in _DECODER and isinstance(child, GeneralizedComponent):
            yield from (m for m in child.modules() if isinstance(m, GeneralizedComponent))


def _fire_inside(component: Any) -> None:
    kind = type(component)
    component.__class__ = type(f"InnerHookOut{kind.__name__}", (InnerHookOut, kind), {})
    component.original_component.register_forward_hook(component.fire, prepend=True)


def set_tower_mode(bridge: Any, mode: str) -> None:
    """Let the towers compute attention in the mode of the decoder."""
    for component in tower_components(bridge):
        if isinstance(component, TowerAttention):
            component.mode = mode


def unread_points(bridge: Any, config: Any) -> dict[str, str]:
    """Hook points after the layer that features are taken from, with the reason in words.

    ``config.vision_feature_layer`` counts recorded states: 0 is the embedding, k what layer k - 1 gives.
    """
    chosen = getattr(config, "vision_feature_layer", None)
    tower = getattr(bridge, "vision_encoder", None)
    layers = getattr(tower, "encoder_layers", None)
    if chosen is None or layers is None or not isinstance(tower, _TOWERS):
        return {}
    n_layers = len(layers)
    taken = [i if i >= 0 else n_layers + 1 + i for i in ([chosen] if isinstance(chosen, int) else chosen)]
    why = f"features are taken after layer {max(taken)} of {n_layers} of the vision tower"
    unread = {}
    for name in tower_points(bridge):
        first, *rest = name.split(".")
        if first != "vision_encoder" or not rest:
            continue
        after = rest[0] == "encoder_layers" and int(rest[1]) >= max(taken)
        if after or rest[0] in ("post_layernorm", "hook_out", "hook_vision_out"):
            unread[name] = why
    return unread


def read_only(fn: Callable[..., Any], name: str, why: str) -> Callable[..., Any]:
    """The hook function, which may read but not edit. Raises InterventionError when it edits."""

    def read(tensor: Any, hook: Any) -> Any:
        version = getattr(tensor, "_version", None)
        out = fn(tensor, hook=hook)
        if (out is not None and out is not tensor) or getattr(tensor, "_version", None) != version:
            raise InterventionError(f"an edit at '{name}' would change nothing: {why}; edit an earlier point")
        return out

    return read


@contextmanager
def must_fire(fwd_hooks: Iterable[tuple[Any, Any]], names: dict[str, Any]) -> Iterator[list[tuple[Any, Any]]]:
    """The hooks; those given by one of the names must fire before the block ends, else InterventionError."""
    fired: set[str] = set()

    def noting(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def note(tensor: Any, hook: Any) -> Any:
            fired.add(name)
            return fn(tensor, hook=hook)

        return note

    hooks = list(fwd_hooks)
    wanted = {name for name, _ in hooks if isinstance(name, str) and name in names}
    yield [(name, noting(name, fn) if name in wanted else fn) for name, fn in hooks]
    if silent := sorted(wanted - fired):
        raise InterventionError(
            f"hook '{silent[0]}' did not fire: this tower never calls it, or the prompt has no picture"
        )
