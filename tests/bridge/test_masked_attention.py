"""Runs that share keys, against attention written out for each run alone."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gatelens.bridge import masked_attention
from gatelens.bridge.masked_attention import BlockedEntries, LayerCuts, SharedKeys, fused_after_prefix

PROMPTS, RUNS, HEADS, KV, SHARED, OWN, D = 2, 3, 4, 2, 7, 9, 8


def plainly(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, masked: Tensor, zeroed: Tensor
) -> Tensor:
    """Attention by its definition, with every key of a run in one tensor."""
    key, value = (x.repeat_interleave(HEADS // KV, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~mask | masked, float("-inf"))
    pattern = scores.softmax(dim=-1).masked_fill(zeroed, 0.0)
    return (pattern @ value).transpose(1, 2)


@pytest.mark.parametrize("n_q", [OWN, 4])
@pytest.mark.parametrize("stacked", [None, 1, 2 * OWN, 100])
@pytest.mark.parametrize("cut", ["nothing", "mask", "zero", "both"])
def test_runs_after_shared_keys_equal_each_run_alone(
    n_q: int, stacked: int | None, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stacked is not None:  # as where the kernel does not tell its sums
        monkeypatch.setattr(masked_attention, "can_split", lambda *args: False)
        monkeypatch.setattr(masked_attention, "STACKED_ROWS", stacked)
    monkeypatch.setattr(masked_attention, "CAUSAL_ROWS", 2)
    random = torch.Generator().manual_seed(0)
    total, n_k = PROMPTS * RUNS, SHARED + OWN
    query = torch.randn(total, HEADS, n_q, D, generator=random)
    key, value = (torch.randn(total, KV, OWN, D, generator=random) for _ in range(2))
    prefix = tuple(torch.randn(PROMPTS, KV, SHARED, D, generator=random) for _ in range(2))
    causal = torch.arange(n_k - n_q, n_k)[:, None] >= torch.arange(n_k)[None]
    mask = causal.expand(total, 1, n_q, n_k).clone()
    mask[1::PROMPTS, ..., :3] = False  # the padding of the second prompt
    masked, zeroed = torch.rand(2, total, HEADS, 3, n_k, generator=random) < 0.4
    masked[..., n_k - n_q :] = False  # every row keeps a key
    masked[..., SHARED - 1] = False
    masked[:PROMPTS], zeroed[-PROMPTS:] = False, False  # not in every run
    masked &= cut in ("mask", "both")
    zeroed &= cut in ("zero", "both")
    whole = [torch.zeros(total, HEADS, n_q, n_k, dtype=torch.bool) for _ in range(2)]
    for tensor, entries in zip(whole, (masked, zeroed), strict=True):
        tensor[:, :, 1:4] = entries
    cuts = LayerCuts(
        BlockedEntries(1, 4, masked) if masked.any() else None,
        BlockedEntries(1, 4, zeroed) if zeroed.any() else None,
    )
    module = SimpleNamespace(num_key_value_groups=HEADS // KV)
    got = fused_after_prefix(module, query, SharedKeys((prefix[0], prefix[1]), key, value), mask, 0.3, cuts)
    all_keys, all_values = (
        torch.cat([shared.repeat(RUNS, 1, 1, 1), own], dim=2)
        for shared, own in zip(prefix, (key, value), strict=True)
    )
    want = plainly(query, all_keys, all_values, mask, *whole)
    assert (got - want).abs().max() <= 1e-6
