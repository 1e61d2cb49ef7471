"""Attention over two sets of keys, those that runs share and each run's own, by the fused kernel on the CPU.

Each set is attended to by itself, and the two results are weighted by the sums of their softmax (arXiv 1805.02867,
arXiv 2112.05682). So shared keys are never copied, no run computes scores of another's keys, and no mask is built
where causal order is all there is.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

KeyValues = tuple[Tensor, Tensor]


def can_split(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether the kernel that tells its sums runs here: on the CPU, without dropout or gradients."""
    return (
        query.device.type == "cpu"
        and not dropout
        and query.shape[-1] == value.shape[-1]
        and not (torch.is_grad_enabled() and query.requires_grad)
    )


def split_attention(
    query: Float[Tensor, "run_batch head q d"],
    shared: KeyValues,
    own: KeyValues,
    open_: Bool[Tensor, "run_batch head q key"],
    scaling: float,
) -> tuple[Float[Tensor, "run_batch q head d"], Float[Tensor, "run_batch q head 1"]]:
    """Attention of runs stacked run after run in the batch, and the logarithm of each row's sum of exponentials.

    Args:
        query: of all runs.
        shared: keys and values that all runs read, [batch, kv_head, pos, d].
        own: the runs' own keys and values, [run_batch, kv_head, pos, d].
        open_: which keys a row reads, the shared ones first; 1 where all runs, or all heads, read the same.
        scaling: what scores are multiplied by.
    """
    n_shared, runs = shared[0].shape[2], len(query) // len(shared[0])
    before, after = open_[..., :n_shared], open_[..., n_shared:]
    all_before = bool(before.all())
    if runs > 1 and not all_before:
        before = _under_each_other(before.expand(len(query), -1, -1, -1), runs)
    n_own = after.shape[-1]
    causal = query.shape[2] == n_own and torch.equal(after, _lower(n_own).expand_as(after))
    rows = _under_each_other(query, runs)
    first, first_sum = (
        x.unflatten(1, (runs, -1)).transpose(0, 1).flatten(0, 1)
        for x in _kernel(rows, *shared, None if all_before else before, scaling)
    )
    second, second_sum = _kernel(query, *own, None if causal else after, scaling, causal)
    weight = torch.sigmoid(second_sum - first_sum).to(query.dtype)
    return torch.lerp(first, second, weight), torch.logaddexp(first_sum, second_sum)


def _under_each_other(
    rows: Shaped[Tensor, "run_batch head q x"], runs: int
) -> Shaped[Tensor, "batch head run_q x"]:
    """The rows that all runs have for a prompt."""
    return rows.unflatten(0, (runs, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _lower(n: int) -> Bool[Tensor, "n n"]:
    return torch.ones(n, n, dtype=torch.bool).tril()


def _kernel(
    query: Float[Tensor, "batch head q d"],
    key: Float[Tensor, "batch kv_head key d"],
    value: Float[Tensor, "batch kv_head key d"],
    open_: Bool[Tensor, "batch head q key"] | None,
    scaling: float,
    causal: bool = False,
) -> tuple[Float[Tensor, "batch q head d"], Float[Tensor, "batch q head 1"]]:
    """The output and the logarithm of the sum of exponentials; all weights are equal in a row that reads nothing."""
    mask = None
    if open_ is not None and not bool(open_.all()):
        # not −inf: a row without a key has then a sum too, next to which every other one is all there is
        closed = torch.finfo(query.dtype).min
        mask = query.new_zeros(open_.shape).masked_fill_(~open_, closed).expand(len(query), -1, -1, -1)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scaling
    )
    return out.transpose(1, 2), sums.transpose(1, 2).unsqueeze(-1)
