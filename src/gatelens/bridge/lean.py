"""Attention that builds only what is asked for: the arithmetic behind :mod:`.attention`.

Entries that a knockout cuts before the softmax go into the mask of the fused kernel. Entries it sets to zero
after the softmax need the pattern of their own rows, and of no others. Keys that several runs share are
multiplied once, with the rows of all runs side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BLOCK = 64  # rows of a pattern built at once when somebody looks at many


@dataclass(frozen=True)
class Rows:
    """Entries of the rows ``low … high - 1`` of a pass: Bool[batch, 1 or head, high - low, key]."""

    low: int
    high: int
    entries: Bool[Tensor, "batch head row key"]

    def fill(self, tensor: Float[Tensor, "batch head q key"], value: float, low: int = 0) -> Tensor:
        """New scores or a new pattern (its first row being row ``low`` of the pass) with the entries filled."""
        first, last = max(self.low, low), min(self.high, low + tensor.shape[2])
        if first >= last:
            return tensor
        entries = self.entries[:, :, first - self.low : last - self.low]
        tensor = tensor.clone() if tensor.requires_grad else tensor
        tensor[:, :, first - low : last - low].masked_fill_(entries, value)
        return tensor


@dataclass(frozen=True)
class Cut:
    """What one layer leaves out: ``masked`` before the softmax, ``zeroed`` after it."""

    masked: Rows | None = None
    zeroed: Rows | None = None


NOTHING_CUT = Cut()


class Orders(Protocol):
    """What the engine asks of the attention layers during a pass."""

    def cut(self, layer: int, device: torch.device) -> Cut:
        """The entries to leave out in this pass."""

    def prefix(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values that all runs of the pass share, [batch, kv_head, pos, d_head]; None: no such."""

    def rows_looked_at(self, layer: int) -> range | None:
        """Rows whose pattern somebody wants to see; None: nobody does."""

    def look(self, layer: int, pattern: Tensor, low: int) -> None:
        """Show a block of the pattern, Float[batch, head, rows, key], from row ``low`` on."""


def causal(n_q: int, n_k: int, device: torch.device) -> Bool[Tensor, "q k"]:
    """Which keys the last ``n_q`` of ``n_k`` positions may read."""
    rows = torch.arange(n_k - n_q, n_k, device=device)
    return rows[:, None] >= torch.arange(n_k, device=device)[None, :]


def masked(
    scores: Float[Tensor, "batch head q k"], mask: Tensor | None, cut: Rows | None = None, low: int = 0
) -> Float[Tensor, "batch head q k"]:
    """Scores with the lowest number where the mask (None: causal) lets nothing through, −inf where cut.

    ``scores`` are new ones of the rows from ``low`` on, and are overwritten where no gradient forbids it.
    """
    n_q, n_k = scores.shape[-2:]
    fill = scores.masked_fill if scores.requires_grad else scores.masked_fill_
    if mask is None and n_q > 1:
        mask = causal(n_q, n_k, scores.device)
    if mask is not None and mask.dtype == torch.bool:
        scores = fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores if cut is None else cut.fill(scores, float("-inf"), low)


def lean(
    module: Any,
    query: Float[Tensor, "batch head q d"],
    key: Float[Tensor, "batch kv_head k d"],
    value: Float[Tensor, "batch kv_head k d"],
    mask: Tensor | None,
    scaling: float,
    cut: Cut,
    rest: dict[str, Any],
) -> Float[Tensor, "batch q head d"]:
    """Fused attention with the cuts of a layer."""
    n_q, n_k = query.shape[2], key.shape[2]
    if cut.masked is not None:
        mask = _without(mask, cut.masked, n_q, n_k)
    zeroed = cut.zeroed
    if zeroed is not None and (zeroed.low, zeroed.high) == (0, n_q):
        pattern = pattern_of(query, key, mask, scaling, Cut(None, zeroed), 0, n_q)
        return SharedKeys(None, key, value).mix(pattern)
    out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **rest)
    if zeroed is not None:
        pattern = pattern_of(query, key, mask, scaling, Cut(None, zeroed), zeroed.low, zeroed.high)
        out = out.clone() if out.requires_grad else out
        out[:, zeroed.low : zeroed.high] = SharedKeys(None, key, value).mix(pattern)
    return out


def _without(mask: Tensor | None, rows: Rows, n_q: int, n_k: int) -> Tensor:
    """The mask with further entries shut."""
    entries = rows.entries
    if mask is None:
        mask = causal(n_q, n_k, entries.device)[None, None]
    shape = (max(mask.shape[0], entries.shape[0]), max(mask.shape[1], entries.shape[1]), n_q, n_k)
    mask = mask.expand(shape).clone()
    if mask.dtype == torch.bool:
        mask[:, :, rows.low : rows.high] &= ~entries
    else:
        mask[:, :, rows.low : rows.high].masked_fill_(entries, torch.finfo(mask.dtype).min)
    return mask


def pattern_of(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, cut: Cut, low: int, high: int
) -> Float[Tensor, "batch head rows key"]:
    """The pattern of the rows ``low … high - 1`` alone, with the cuts of the layer."""
    n_q, n_k = query.shape[2], key.shape[2]
    scores = SharedKeys(None, key, key).scores(query[:, :, low:high]) * scaling
    if mask is None:
        mask = causal(n_q, n_k, query.device)[None, None]
    scores = masked(scores, mask[:, :, low:high], cut.masked, low)
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return pattern if cut.zeroed is None else cut.zeroed.fill(pattern, 0.0, low)


class SharedKeys:
    """Keys and values of a pass: some shared by all runs (``prefix``), some each run's own.

    The batch is run-major: row ``r * n + b`` is prompt ``b`` of run ``r``, the prefix has ``n`` prompts. Query
    heads of a group read one key-value head; they are multiplied together instead of copying keys.
    """

    def __init__(self, prefix: tuple[Tensor, Tensor] | None, key: Tensor, value: Tensor) -> None:
        self.prefix, self.key, self.value = prefix, key, value

    def scores(self, query: Float[Tensor, "batch head q d"]) -> Float[Tensor, "batch head q k"]:
        """Products of queries and keys, the prefix's first."""
        own = self._product(query, self.key.transpose(2, 3))
        if self.prefix is None:
            return own
        runs = query.shape[0] // self.prefix[0].shape[0]
        shared = _apart(self._product(_beside(query, runs), self.prefix[0].transpose(2, 3)), runs)
        return torch.cat([shared, own], dim=-1)

    def mix(self, pattern: Float[Tensor, "batch head q k"]) -> Float[Tensor, "batch q head d"]:
        """Values weighted by the pattern."""
        if self.prefix is None:
            return self._product(pattern, self.value).transpose(1, 2).contiguous()
        n_shared = self.prefix[1].shape[2]
        runs = pattern.shape[0] // self.prefix[1].shape[0]
        out = self._product(pattern[..., n_shared:], self.value)
        shared = self._product(_beside(pattern[..., :n_shared], runs), self.prefix[1])
        return (out + _apart(shared, runs)).transpose(1, 2).contiguous()

    @staticmethod
    def _product(rows: Float[Tensor, "batch head q x"], matrix: Float[Tensor, "batch kv x y"]) -> Tensor:
        groups = rows.shape[1] // matrix.shape[1]
        if groups == 1:
            return rows @ matrix
        batch, head, n, width = rows.shape
        grouped = rows.reshape(batch, head // groups, groups * n, width) @ matrix
        return grouped.view(batch, head, n, -1)


def _beside(rows: Float[Tensor, "run_batch head q x"], runs: int) -> Float[Tensor, "batch head run_q x"]:
    """The rows of all runs of a prompt one under the other."""
    if runs == 1:
        return rows
    total, head, n, width = rows.shape
    return (
        rows.view(runs, total // runs, head, n, width)
        .permute(1, 2, 0, 3, 4)
        .reshape(-1, head, runs * n, width)
    )


def _apart(rows: Float[Tensor, "batch head run_q x"], runs: int) -> Float[Tensor, "run_batch head q x"]:
    """The inverse of :func:`_beside`."""
    if runs == 1:
        return rows
    batch, head, n, width = rows.shape
    return (
        rows.view(batch, head, runs, n // runs, width)
        .permute(2, 0, 1, 3, 4)
        .reshape(-1, head, n // runs, width)
    )
