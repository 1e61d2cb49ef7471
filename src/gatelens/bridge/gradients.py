"""Gradients of activations in a model whose parameters are frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def let_gradients_flow(hf: nn.Module, unembed: nn.Module) -> list[Any]:
    """Let what the model reads ask for gradients, embeddings and pixels, so that every activation has one.

    Returns:
        Handles of torch's hooks; remove them to end it.
    """
    embedding: Any = hf.get_input_embeddings()  # type: ignore[operator]
    while getattr(embedding, "original_component", None) is not None:
        embedding = embedding.original_component
    return [
        embedding.register_forward_hook(lambda module, args, out: _asking(out)),
        hf.register_forward_pre_hook(_pixels_asking, with_kwargs=True),
        # Chameleon writes into its logits, which torch forbids after a hook on their gradient
        unembed.register_forward_hook(lambda module, args, out: out.clone() if out.requires_grad else out),
    ]


def _asking(tensor: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or tensor.requires_grad:
        return tensor
    # a leaf that asks cannot be written to, and some families write features into the embeddings
    return tensor.detach().requires_grad_().clone()


def _pixels_asking(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    pixels = kwargs.get("pixel_values")
    if isinstance(pixels, Tensor) and pixels.is_floating_point():
        kwargs = {**kwargs, "pixel_values": _asking(pixels)}
    return args, kwargs
