"""Attention patterns of one prompt: taken from a cache, and their rows and keys grouped as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.errors import DataError
from gatelens.views.prompts import Prompt


def patterns_of(
    cache: Any, layer: int | None, layers: Sequence[int] | None, prompt: Prompt
) -> dict[int, Float[Tensor, "head query key"]]:
    """The pattern of the prompt by layer.

    Raises:
        DataError: the cache has none, or one of another shape.
    """
    if layer is not None and layers is not None:
        raise DataError(f"heads: layer={layer} and layers={list(layers)}: give one of them")
    if isinstance(cache, Tensor):
        found = {0 if layer is None else int(layer): cache}
    else:
        wanted = [layer] if layer is not None else layers
        if wanted is None:
            wanted = sorted(int(name.split(".")[1]) for name in cache if _is_pattern(name))
            if not wanted:
                raise DataError(
                    "heads: the cache has no attention patterns; keep them in run_with_cache(inputs)"
                )
        found = {int(at): _pattern(cache, int(at)) for at in wanted}
    n, out = prompt.tokens.n_pos, {}
    for at, pattern in found.items():
        if pattern.ndim == 3 and prompt.tokens.batch_size == 1:  # of a cache without a batch dimension
            pattern = pattern[None]
        if (
            pattern.ndim != 4
            or tuple(pattern.shape[2:]) != (n, n)
            or pattern.shape[0] != prompt.tokens.batch_size
        ):
            raise DataError(
                f"heads: the pattern of layer {at} is {tuple(pattern.shape)}, where "
                f"({prompt.tokens.batch_size}, heads, {n}, {n}) is due for these tokens"
            )
        out[at] = pattern[prompt.example]
    return out


def _is_pattern(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".attn.hook_pattern")


def _pattern(cache: Mapping[str, Tensor], layer: int) -> Tensor:
    name = f"blocks.{layer}.attn.hook_pattern"
    try:
        return cache[name]
    except KeyError:
        raise DataError(
            f"heads: the cache has no {name!r}; run_with_cache(inputs, names_filter={name!r}) keeps it"
        ) from None


def text_side(
    prompt: Prompt, patterns: Mapping[int, Float[Tensor, "head query key"]]
) -> tuple[Float[Tensor, "head query key"], tuple[str, ...]]:
    """All words, and one position per picture: its queries averaged, its keys summed; rows still sum to 1."""
    index = prompt.tokens.image_index[prompt.example].tolist()
    words = set(prompt.words)  # markers of a picture have its number too
    groups: list[list[int]] = []
    labels: list[str] = []
    for item in prompt.stretches():
        groups.append(
            [p for p, i in enumerate(index) if i == item[0] and p not in words]
            if isinstance(item, tuple)
            else [item]
        )
        labels.append(f"[picture {item[0] + 1}]" if isinstance(item, tuple) else prompt.word(item))
    parts = []
    for pattern in patterns.values():
        whole = pattern.detach().float().cpu()
        keys = torch.stack([whole[:, :, group].sum(-1) for group in groups], dim=-1)
        parts.append(torch.stack([keys[:, group].mean(1) for group in groups], dim=1))
    return torch.cat(parts), tuple(labels)


def query_rows(
    patterns: Mapping[int, Float[Tensor, "head query key"]], groups: Sequence[Sequence[int]]
) -> Float[Tensor, "layer head group key"]:
    """The attention of groups of queries, each the mean of its rows."""

    def of(pattern: Float[Tensor, "head query key"]) -> Float[Tensor, "head group key"]:
        return torch.stack([pattern[:, group].detach().float().cpu().mean(1) for group in groups], dim=1)

    return torch.stack([of(pattern) for pattern in patterns.values()])
