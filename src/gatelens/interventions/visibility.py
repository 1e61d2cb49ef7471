"""What a row of attention can read: every key before it, its own two-way block, and no further than a window."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gatelens.tokens import Role, TokenMap


def window_of(cfg: Any, layer: int) -> int | None:
    """How many positions a layer looks back, itself included; None is all of them."""
    windows = getattr(cfg, "attention_windows", None)
    return windows[layer] if windows is not None and layer < len(windows) else None


def visible_keys(
    keys: Bool[Tensor, "batch pos"], tokens: TokenMap, window: int | None = None
) -> Int[Tensor, "batch pos"]:
    """How many of the keys each row can read.

    A row reads the keys at and before it, and those of its two-way block after it. A window ends its view to
    the left; where the block is the whole prompt, only rows after the prompt have one (as transformers masks).
    """
    block, begin = tokens.two_way.cpu(), _begin(tokens, window)
    before = torch.nn.functional.pad(keys.long().cumsum(dim=1), (1, 0))
    seen = before[:, 1:] - before.gather(1, begin)
    for number in block[block >= 0].unique().tolist():
        mine = block == number
        theirs = (keys & mine).long()
        seen += torch.where(mine, theirs.sum(dim=1, keepdim=True) - theirs.cumsum(dim=1), 0)
    return seen


def readable(
    tokens: TokenMap,
    example: Int[Tensor, " n"],
    position: Int[Tensor, " n"],
    n_keys: int,
    window: int | None = None,
) -> Bool[Tensor, "n key"]:
    """Which of the first ``n_keys`` positions the rows at these positions read; padding never."""
    block, real = tokens.two_way.cpu(), tokens.roles.cpu() != Role.PAD
    key, row = torch.arange(n_keys), position[:, None]
    seen = (key <= row) & (key >= _begin(tokens, window)[example, position][:, None])
    mine = block[example, position][:, None]
    ahead = (key > row) & (mine >= 0) & (block[example, :n_keys] == mine)
    return (seen | ahead) & real[example, :n_keys]


def _begin(tokens: TokenMap, window: int | None) -> Int[Tensor, "batch pos"]:
    """The first key each row reads."""
    block = tokens.two_way.cpu()
    begin = torch.zeros_like(block)
    if window is not None:
        whole_prompt = (block == 0) & (tokens.image_index.cpu() < 0)
        begin = (torch.arange(block.shape[1]) - window + 1).clamp_min(0).expand_as(block).clone()
        begin[(block >= 0) & whole_prompt.any(dim=1, keepdim=True)] = 0
    return begin
