"""The rows an edit changes, and attention patterns made for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.interventions.sites import EditedPositions
from gatelens.interventions.visibility import readable, window_of
from gatelens.tokens import Role, TokenMap


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of a pass are edited.

    Attributes:
        example: of the batch, for each row.
        position: of each row in its example, counted from the first position of the batch, padding included.
        layer: the block.
        n_keys: how many positions attention reads in this pass: those of the prompt, and those generated so far.
        tokens, cfg: who is where, and the model's config.

    Example:
        >>> seen = []
        >>> def watch(rows, where):
        ...     seen.append((where.layer, where.position.tolist()))
        ...     return rows
        >>> logits = model.run(inputs, gl.edit(watch, at="last", site="resid_post", layers=[2]))
        >>> seen, inputs.tokens.n_pos
        ([(2, [69])], 70)
    """

    example: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    layer: int
    n_keys: int
    tokens: TokenMap = field(repr=False)
    cfg: Any = field(repr=False)

    @staticmethod
    def of(edited: EditedPositions, layer: int, tokens: TokenMap, cfg: Any) -> Rows:
        """The edited positions of a pass in a layer."""
        return Rows(edited.example, edited.absolute, layer, edited.span.stop, tokens, cfg)

    @property
    def readable(self) -> Bool[Tensor, "n key"]:
        """Which positions attention lets each row read in this layer; knockouts are not counted."""
        example, position, window = self.example.cpu(), self.position.cpu(), window_of(self.cfg, self.layer)
        return readable(self.tokens, example, position, self.n_keys, window).to(self.example.device)


def uniform_pattern(rows: Rows, n_heads: int) -> Float[Tensor, "n head key"]:
    """The same weight for every key a row can read."""
    weights = rows.readable.float()
    return (weights / weights.sum(dim=-1, keepdim=True))[:, None, :].expand(-1, n_heads, -1)


def random_pattern(rows: Rows, n_heads: int, seed: int) -> Float[Tensor, "n head key"]:
    """Weights drawn evenly from all that sum to one over the keys a row can read.

    The draw is that of (seed, layer, example, row); the row is counted from the prompt's first token, so that
    padding does not change it.
    """
    open_ = rows.readable.cpu()
    weights = torch.zeros(len(open_), n_heads, open_.shape[1])
    n_pad = (rows.tokens.roles == Role.PAD).long().cumprod(dim=1).sum(dim=1).tolist()
    for i, (example, position) in enumerate(zip(rows.example.tolist(), rows.position.tolist(), strict=True)):
        number = rows.tokens.example_ids[example]
        rng = np.random.default_rng([seed, rows.layer, number, position - n_pad[example]])
        draws = rng.exponential(size=(n_heads, int(open_[i].sum())))
        weights[i, :, open_[i]] = torch.as_tensor(draws / draws.sum(axis=1, keepdims=True)).float()
    return weights
