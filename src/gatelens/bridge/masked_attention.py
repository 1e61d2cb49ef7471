"""Attention that builds only what is asked for: the arithmetic of :mod:`gatelens.bridge.attention`.

Entries that a knockout blocks before the softmax go into the mask of the fused kernel. Entries it sets to zero
after the softmax need the pattern of their own rows, and of no others. Keys that several runs share stand once,
beside the rows and keys of all runs; a run's own keys are closed to the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gatelens.bridge.split_attention import can_split, split_attention

ROWS_AT_ONCE = 64  # rows of a pattern built at once when many are shown
FUSED_ROWS = 64  # fewer rows after shared keys are cheaper step by step than these keys are copied
STACKED_ROWS = 512  # rows of several runs in one call of the kernel: more, and the closed keys cost too much
CAUSAL_ROWS = (
    128  # rows of one run in one call: the kernel computes what the mask closes, keys after them are cut off
)


@dataclass(frozen=True)
class BlockedEntries:
    """Entries of the rows ``start … stop - 1`` of a pass: Bool[batch, 1 or head, stop - start, key]."""

    start: int
    stop: int
    entries: Bool[Tensor, "batch head row key"]

    @cached_property
    def examples(self) -> list[int]:
        """Which rows of the batch have any."""
        examples: list[int] = self.entries.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        return examples

    def of(self, examples: list[int]) -> BlockedEntries:
        """Those of some rows of the batch."""
        return BlockedEntries(self.start, self.stop, self.entries[examples])

    def first(self, n: int) -> BlockedEntries:
        """Those of the first rows of the batch."""
        return self if n == len(self.entries) else BlockedEntries(self.start, self.stop, self.entries[:n])

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

    def first(self, n: int) -> LayerCuts:
        """Those of the first rows of the batch, where the others have not begun."""
        return LayerCuts(*(one and one.first(n) for one in (self.masked, self.zeroed)))


NO_CUTS = LayerCuts()


class PassCuts(Protocol):
    """What the engine tells the attention layers during a pass."""

    def layer_cuts(self, layer: int, device: torch.device) -> LayerCuts:
        """The entries to leave out in this pass."""

    def shared_keys(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values that all runs of the pass share, [batch, kv_head, pos, d_head]; None without them."""

    def shown_rows(self, layer: int) -> range | None:
        """Rows whose pattern is shown; None for no row."""

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

    def rows(self, query: Float[Tensor, "batch head q d"]) -> int:
        """How many rows of a prompt read the shared keys."""
        prompts = len(query) if self.prefix is None else len(self.prefix[0])
        return len(query) // prompts * query.shape[2]

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


def fused_after_prefix(
    module: Any,
    query: Float[Tensor, "run_batch head q d"],
    keys: SharedKeys,
    mask: Tensor | None,
    scaling: float,
    cuts: LayerCuts,
    dropout: float = 0.0,
) -> Float[Tensor, "run_batch q head d"]:
    """The fused kernel for runs that share a prefix, after which attention is causal."""
    assert keys.prefix is not None
    n_q, n_k = query.shape[2], keys.prefix[0].shape[2] + keys.key.shape[2]
    prompts = len(keys.prefix[0])
    if mask is None:
        mask = causal_mask(n_q, n_k, query.device)[None, None]
    closed = mask if cuts.masked is None else _mask_without(mask, cuts.masked, n_q, n_k)
    if closed.dtype == torch.bool and can_split(query, keys.value, dropout):
        return _in_two_parts(query, keys, closed, scaling, cuts.zeroed)
    closed = closed.expand(len(query), *closed.shape[1:])
    out = query.new_empty(len(query), n_q, query.shape[1], keys.value.shape[3])
    at_once = prompts * max(1, STACKED_ROWS // n_q)
    for begin in range(0, len(query), at_once):
        some = slice(begin, begin + at_once)
        runs = len(query[some]) // prompts
        key, value = (
            torch.cat([shared, _stack_rows(own[some], runs)], dim=2)
            for shared, own in zip(keys.prefix, (keys.key, keys.value), strict=True)
        )
        rows, entries = _stack_rows(query[some], runs), _own_keys_only(closed[some], runs, keys.key.shape[2])
        of_runs = _causal_rows if runs == 1 else _kernel
        mixed = of_runs(module, rows, key, value, entries, scaling, dropout)
        out[some] = _unstack_rows(mixed.transpose(1, 2), runs).transpose(1, 2)
    if cuts.zeroed is not None:
        in_runs = {i // prompts for i in cuts.zeroed.examples}
        zeroed = [i for i in range(len(query)) if i // prompts in in_runs]
        some_keys = SharedKeys(keys.prefix, keys.key[zeroed], keys.value[zeroed])
        scores = masked_scores(some_keys.scores(query[zeroed]) * scaling, closed[zeroed])
        pattern = cuts.zeroed.of(zeroed).fill(softmax_pattern(scores, query.dtype, dropout), 0.0)
        out[zeroed] = some_keys.mix(pattern)
    return out


def _in_two_parts(
    query: Float[Tensor, "run_batch head q d"],
    keys: SharedKeys,
    open_: Bool[Tensor, "run_batch head q k"],
    scaling: float,
    zeroed: BlockedEntries | None,
) -> Float[Tensor, "run_batch q head d"]:
    """Shared and own keys apart. With weights set to zero: attention over the others, times their share of the sum."""
    assert keys.prefix is not None
    own = keys.key, keys.value
    out, sums = split_attention(query, keys.prefix, own, open_, scaling)
    if zeroed is not None:
        prompts = len(keys.prefix[0])
        in_runs = {i // prompts for i in zeroed.examples}
        some = [i for i in range(len(query)) if i // prompts in in_runs]
        n_q, n_k = query.shape[2], open_.shape[-1]
        left = _mask_without(open_.expand(len(query), -1, -1, -1)[some], zeroed.of(some), n_q, n_k)
        kept, kept_sums = split_attention(
            query[some], keys.prefix, (own[0][some], own[1][some]), left, scaling
        )
        out[some] = kept * (kept_sums - sums[some]).exp().to(out.dtype)
    return out


def _kernel(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, dropout: float
) -> Float[Tensor, "batch q head d"]:
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, dropout=dropout)[0]


def _causal_rows(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, dropout: float
) -> Float[Tensor, "batch q head d"]:
    """A few rows at a time, with the keys up to the last of them."""
    n_q, n_k = mask.shape[-2:]
    blocks = []
    for begin in range(0, n_q, CAUSAL_ROWS):
        rows = slice(begin, min(begin + CAUSAL_ROWS, n_q))
        seen = n_k - n_q + rows.stop
        part = key[:, :, :seen], value[:, :, :seen], mask[:, :, rows, :seen]
        blocks.append(_kernel(module, query[:, :, rows], *part, scaling, dropout))
    return torch.cat(blocks, dim=1)


def _own_keys_only(mask: Tensor, runs: int, n_own: int) -> Shaped[Tensor, "batch head run_q key"]:
    """The mask of stacked rows over the shared keys and those of all runs, where a run sees no other's."""
    if runs == 1:
        return mask
    by_run = mask.unflatten(0, (runs, -1))
    prompts, head, n_q, n_k = by_run.shape[1:]
    shared = n_k - n_own
    closed = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    out = mask.new_full((prompts, head, runs, n_q, shared + runs * n_own), closed)
    out[..., :shared] = by_run[..., :shared].permute(1, 2, 0, 3, 4)
    own = out[..., shared:].unflatten(-1, (runs, n_own)).diagonal(dim1=2, dim2=4)
    own.copy_(by_run[..., shared:].permute(1, 2, 3, 4, 0))
    return out.flatten(2, 3)


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
