"""Linear maps that step aside where nobody looks.

A decoding step calls some fifty of the bridge's linear components, each with two hook points and a context of
its own around one small product. Where no hook stands on a component, the wrapped map is called alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.generalized_components import LinearBridge


class HookedLinear(LinearBridge):
    """A linear map of the decoder; its hooks fire as TransformerLens' do."""

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        modules = self._modules
        looked_at = (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._suppress_next_hook_in
            or any(_has_hooks(modules[name]) for name in ("hook_in", "hook_out"))
        )
        wrapped = modules["_original_component"]
        if looked_at or wrapped is None:
            return super().__call__(input, *args, **kwargs)
        object.__setattr__(self, "_fired_hook_out", True)  # what TransformerLens' containers ask about
        return wrapped(input, *args, **kwargs)


def _has_hooks(point: Any) -> bool:
    return bool(point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point.bwd_hooks)


def install(bridge: Any) -> None:
    """Change the linear maps of the decoder's blocks in this model."""
    for block in bridge.blocks:
        for module in block.modules():
            if type(module) is LinearBridge:
                module.__class__ = HookedLinear
