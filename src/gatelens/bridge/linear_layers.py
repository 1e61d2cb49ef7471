"""Skip hook overhead on unhooked linear layers.

A decoding step calls some fifty of the bridge's linear components, each with two hook points and a context of
its own around one small product. Where a component has no hook, the wrapped layer is called alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.generalized_components import LinearBridge

from gatelens.bridge.hook_points import has_hooks


class HookedLinear(LinearBridge):
    """A linear layer of the decoder; its hooks fire as TransformerLens' do."""

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        modules = self._modules
        hooked = (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._suppress_next_hook_in
            or has_hooks(modules["hook_in"], modules["hook_out"])
        )
        wrapped = modules["_original_component"]
        if hooked or wrapped is None:
            return super().__call__(input, *args, **kwargs)
        object.__setattr__(self, "_fired_hook_out", True)  # what TransformerLens' containers ask about
        return wrapped(input, *args, **kwargs)


def install_linear_layers(bridge: Any) -> None:
    """Change the linear layers of the decoder's blocks in this model."""
    for block in bridge.blocks:
        for module in block.modules():
            if type(module) is LinearBridge:
                module.__class__ = HookedLinear
