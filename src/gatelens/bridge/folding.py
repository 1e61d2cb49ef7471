"""The final norm's weight moved into the unembedding, which TransformerLens calls folding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gatelens.bridge.residual import readable
from gatelens.errors import ModelError


@torch.no_grad()
def fold_final_norm(bridge: Any) -> None:
    """Multiply the unembedding by the weight of the final norm, whose own becomes the identity.

    The model computes what it did, to rounding. An unembedding tied to the embedding is untied.

    Raises:
        ModelError: the final norm has a bias, the unembedding is not a linear layer, or weights are quantised or not
            in memory.
    """
    norm, head = _wrapped(bridge.ln_final), _wrapped(bridge.unembed)
    if getattr(norm, "bias", None) is not None or not isinstance(head, nn.Linear):
        raise ModelError(f"the final {type(norm).__name__} cannot be folded into a {type(head).__name__}")
    offset = float(getattr(bridge.cfg, "rmsnorm_uses_offset", False))
    for module in (head, norm):
        readable(module.weight, module)
    weight = head.weight * (norm.weight + offset).to(head.weight)
    head.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
    norm.weight.fill_(1 - offset)


def _wrapped(module: Any) -> Any:
    while getattr(module, "original_component", None) is not None:
        module = module.original_component
    return module
