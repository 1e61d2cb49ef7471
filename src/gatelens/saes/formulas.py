"""What the architectures of sparse autoencoders compute, as SAELens defines them.

Sources: standard, Bricken et al. 2023 (Towards Monosemanticity); gated, Rajamanoharan et al. arXiv 2404.16014;
jumprelu, Rajamanoharan et al. arXiv 2407.14435; topk, Gao et al. arXiv 2406.04093.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Weights: TypeAlias = Mapping[str, Tensor]
Input: TypeAlias = Float[Tensor, "row d_in"]
Features: TypeAlias = Float[Tensor, "row d_sae"]

# what a file holds beside W_enc, W_dec and b_dec
FURTHER = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")


def _standard(x: Input, w: Weights, config: Mapping[str, Any]) -> Features:
    return torch.relu(x @ w["W_enc"] + w["b_enc"])


def _topk(x: Input, w: Weights, config: Mapping[str, Any]) -> Features:
    before = x @ w["W_enc"] + w["b_enc"]
    if config.get("rescale_acts_by_decoder_norm"):
        before = before * w["W_dec"].norm(dim=-1)
    values, which = before.topk(int(config["k"]), dim=-1)
    return torch.zeros_like(before).scatter(-1, which, values.relu())


def _jumprelu(x: Input, w: Weights, config: Mapping[str, Any]) -> Features:
    before = x @ w["W_enc"] + w["b_enc"]
    return torch.relu(before) * (before > w["threshold"])


def _gated(x: Input, w: Weights, config: Mapping[str, Any]) -> Features:
    gate, magnitude = x @ w["W_enc"] + w["b_gate"], x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]
    return torch.relu(magnitude) * (gate > 0)


ENCODERS: dict[str, Callable[[Input, Weights, Mapping[str, Any]], Features]] = {
    "standard": _standard,
    "topk": _topk,
    "jumprelu": _jumprelu,
    "gated": _gated,
}


def decoded(features: Features, w: Weights, config: Mapping[str, Any]) -> Input:
    """The input as the features give it."""
    if config.get("rescale_acts_by_decoder_norm"):
        features = features / w["W_dec"].norm(dim=-1)
    return features @ w["W_dec"] + w["b_dec"]


def normalized(x: Input, how: str) -> tuple[Input, Callable[[Input], Input]]:
    """The input as the encoder takes it, and the inverse."""
    if how == "layer_norm":
        mean, spread = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        return (x - mean) / (spread + 1e-5), lambda y: y * spread + mean
    if how == "constant_norm_rescale":
        factor = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
        return x * factor, lambda y: y / factor
    return x, lambda y: y
