"""Attention that builds only what is asked for: the arithmetic behind :mod:`gatelens.bridge.attention`.

Entries that a knockout blocks before the softmax go into the mask of the fused kernel. Entries it sets to zero
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

ROWS_AT_ONCE = 64  # rows of a pattern built at once when many are shown


@dataclass(frozen=True)
class BlockedEntries:
    """Entries of the rows ``start … stop - 1`` of a pass: Bool[batch, 1 or head, stop - start, key]."""

    start: int
    stop: int
    entries: Bool[Tensor, "batch head row key"]

    def fill(
        self, tensor: Float[Tensor, "batch head q key"], value: float, first_row: int = 0
    ) -> Float[Tensor, "batch head q key"]:
        """Scores or a pattern, from row ``first_row`` of the pass on, with the entries set to ``value``.

        The tensor is overwritten where no gradient forbids it.
        """
        start, stop = max(self.start, first_row), min(self.stop, first_row + tensor.shape[2])
        if start >= stop:
            return tensor
        entries = self.entries[:, :, start - self.start : stop - self.start]
        tensor = tensor.clone() if tensor.requires_grad else tensor
        tensor[:, :, start - first_row : stop - first_row].masked_fill_(entries, value)
        return tensor


@dataclass(frozen=True)
class LayerCuts:
    """What one layer leaves out: ``masked`` before the softmax, ``zeroed`` after it."""

    masked: BlockedEntries | None = None
    zeroed: BlockedEntries | None = None


NO_CUTS = LayerCuts()


class PassCuts(Protocol):
    """What the engine tells the attention layers during a pass."""

    def layer_cuts(self, layer: int, device: torch.device) -> LayerCuts:
        """The entries to leave out in this pass."""

    def shared_keys(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values that all runs of the pass share, [batch, kv_head, pos, d_head]; None without them."""

    def shown_rows(self, layer: int) -> range | None:
        """Rows whose pattern is to be shown; None for no row."""

    def show(self, layer: int, pattern: Tensor, first_row: int) -> None:
        """Takes a block of the pattern, Float[batch, head, rows, key], from row ``first_row`` on."""


def causal_mask(n_q: int, n_k: int, device: torch.device) -> Bool[Tensor, "q k"]:
    """Which keys the last ``n_q`` of ``n_k`` positions may read."""
    rows = torch.arange(n_k - n_q, n_k, device=device)
    return rows[:, None] >= torch.arange(n_k, device=device)[None, :]


def masked_scores(
    scores: Float[Tensor, "batch head q k"],
    mask: Tensor | None,
    blocked: BlockedEntries | None = None,
    first_row: int = 0,
) -> Float[Tensor, "batch head q k"]:
    """Scores with the lowest number where the mask (None: causal) lets nothing through, −inf where blocked.

    ``scores`` are new ones of the rows from ``first_row`` on, and are overwritten where no gradient forbids it.
    """
    n_q, n_k = scores.shape[-2:]
    fill = scores.masked_fill if scores.requires_grad else scores.masked_fill_
    if mask is None and n_q > 1:
        mask = causal_mask(n_q, n_k, scores.device)
    if mask is not None and mask.dtype == torch.bool:
        scores = fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores if blocked is None else blocked.fill(scores, float("-inf"), first_row)


def softmax_pattern(
    scores: Float[Tensor, "batch head q k"], dtype: torch.dtype, dropout: float = 0.0
) -> Float[Tensor, "batch head q k"]:
    """The softmax over keys, computed in float32, and then dropout, as transformers does."""
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    return torch.nn.functional.dropout(pattern, dropout) if dropout else pattern


def fused_attention(
    module: Any,
    query: Float[Tensor, "batch head q d"],
    key: Float[Tensor, "batch kv_head k d"],
    value: Float[Tensor, "batch kv_head k d"],
    mask: Tensor | None,
    scaling: float,
    cuts: LayerCuts,
    rest: dict[str, Any],
) -> Float[Tensor, "batch q head d"]:
    """The fused kernel with the cuts of a layer."""
    n_q, n_k = query.shape[2], key.shape[2]
    if cuts.masked is not None:
        mask = _mask_without(mask, cuts.masked, n_q, n_k)
    zeroed = cuts.zeroed
    if zeroed is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **rest)[0]
    pattern = pattern_rows(
        query,
        key,
        mask,
        scaling,
        LayerCuts(None, zeroed),
        zeroed.start,
        zeroed.stop,
        rest.get("dropout", 0.0),
    )
    mixed = SharedKeys(None, key, value).mix(pattern)
    if (zeroed.start, zeroed.stop) == (0, n_q):
        return mixed
    out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **rest)
    out = out.clone() if out.requires_grad else out
    out[:, zeroed.start : zeroed.stop] = mixed
    return out


def _mask_without(mask: Tensor | None, blocked: BlockedEntries, n_q: int, n_k: int) -> Tensor:
    """The mask with further entries closed."""
    entries = blocked.entries
    if mask is None:
        mask = causal_mask(n_q, n_k, entries.device)[None, None]
    shape = (max(mask.shape[0], entries.shape[0]), max(mask.shape[1], entries.shape[1]), n_q, n_k)
    mask = mask.expand(shape).clone()
    if mask.dtype == torch.bool:
        mask[:, :, blocked.start : blocked.stop] &= ~entries
    else:
        mask[:, :, blocked.start : blocked.stop].masked_fill_(entries, torch.finfo(mask.dtype).min)
    return mask


def pattern_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    cuts: LayerCuts,
    start: int,
    stop: int,
    dropout: float = 0.0,
) -> Float[Tensor, "batch head rows key"]:
    """The pattern of the rows ``start … stop - 1`` alone, with the cuts of the layer."""
    n_q, n_k = query.shape[2], key.shape[2]
    scores = SharedKeys(None, key, key).scores(query[:, :, start:stop]) * scaling
    if mask is None:
        mask = causal_mask(n_q, n_k, query.device)[None, None]
    scores = masked_scores(scores, mask[:, :, start:stop], cuts.masked, start)
    pattern = softmax_pattern(scores, query.dtype, dropout)
    return pattern if cuts.zeroed is None else cuts.zeroed.fill(pattern, 0.0, start)


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
        shared = self._product(_stack_rows(query, runs), self.prefix[0].transpose(2, 3))
        return torch.cat([_unstack_rows(shared, runs), own], dim=-1)

    def mix(self, pattern: Float[Tensor, "batch head q k"]) -> Float[Tensor, "batch q head d"]:
        """Values weighted by the pattern."""
        if self.prefix is None:
            return self._product(pattern, self.value).transpose(1, 2).contiguous()
        n_shared = self.prefix[1].shape[2]
        runs = pattern.shape[0] // self.prefix[1].shape[0]
        out = self._product(pattern[..., n_shared:], self.value)
        shared = self._product(_stack_rows(pattern[..., :n_shared], runs), self.prefix[1])
        return (out + _unstack_rows(shared, runs)).transpose(1, 2).contiguous()

    @staticmethod
    def _product(rows: Float[Tensor, "batch head q x"], matrix: Float[Tensor, "batch kv x y"]) -> Tensor:
        groups = rows.shape[1] // matrix.shape[1]
        if groups == 1:
            return rows @ matrix
        batch, head, n, width = rows.shape
        grouped = rows.reshape(batch, head // groups, groups * n, width) @ matrix
        return grouped.view(batch, head, n, -1)


def _stack_rows(rows: Float[Tensor, "run_batch head q x"], runs: int) -> Float[Tensor, "batch head run_q x"]:
    """The rows that all runs have for a prompt, one under the other."""
    if runs == 1:
        return rows
    total, head, n, width = rows.shape
    by_run = rows.view(runs, total // runs, head, n, width)
    return by_run.permute(1, 2, 0, 3, 4).reshape(-1, head, runs * n, width)


def _unstack_rows(
    rows: Float[Tensor, "batch head run_q x"], runs: int
) -> Float[Tensor, "run_batch head q x"]:
    """The inverse of :func:`_stack_rows`."""
    if runs == 1:
        return rows
    batch, head, n, width = rows.shape
    by_run = rows.view(batch, head, runs, n // runs, width)
    return by_run.permute(2, 0, 1, 3, 4).reshape(-1, head, n // runs, width)
