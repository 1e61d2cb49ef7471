"""Attention shares against a plain loop; the accumulator keeps no pattern."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.attention import AttentionShare, attention_share, image_side_slots


class Tokens:
    """The part of a TokenMap the accumulator reads: left padding, a marker, four image tokens, a gate,
    text."""

    layout: ClassVar = [
        "pad",
        "system",
        "boi",
        "image",
        "image",
        "row_break",
        "image",
        "image",
        "gate",
        "query",
        "query",
    ]

    def __init__(self, batch: int, pads: tuple[int, ...]) -> None:
        self.batch_size = batch
        self.rows = [["pad"] * p + self.layout[1:] + ["query"] * (2 - p) for p in pads]
        self.n_pos = len(self.rows[0])

    def mask(self, name: str) -> torch.Tensor:
        name = {"text - gate": "query"}.get(name, name)
        return torch.tensor([[r == name for r in row] for row in self.rows])


def pattern_of(tokens: Tokens, heads: int = 3) -> torch.Tensor:
    scores = torch.randn(tokens.batch_size, heads, tokens.n_pos, tokens.n_pos)
    future = torch.ones(tokens.n_pos, tokens.n_pos).triu(1).bool()
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def test_share_equals_a_loop() -> None:
    torch.manual_seed(0)
    tokens = Tokens(2, (0, 2))
    pattern, queries = pattern_of(tokens), tokens.mask("query")
    keys = image_side_slots(tokens) >= 0  # type: ignore[arg-type]
    got = attention_share(pattern, queries, keys)
    for b in range(2):
        f = torch.zeros(tokens.n_pos)
        for j in range(tokens.n_pos):
            if keys[b, j]:
                f[j] = sum(
                    float(pattern[b, h, i, j]) for h in range(3) for i in range(tokens.n_pos) if queries[b, i]
                )
        torch.testing.assert_close(got[b], f / f.sum(), atol=1e-6, rtol=1e-5)


def test_slots() -> None:
    slots = image_side_slots(Tokens(1, (1,)))  # type: ignore[arg-type]
    assert slots[0].tolist() == [-1, -1, 0, 3, 4, 1, 5, 6, 2, -1, -1, -1]


def test_accumulator_equals_the_mean_of_shares_and_returns_none() -> None:
    torch.manual_seed(1)
    share = AttentionShare(n_layers=2)
    wanted: list[torch.Tensor] = []
    for pads in ((0, 2), (1, 1)):
        tokens = Tokens(2, pads)
        slots = image_side_slots(tokens)  # type: ignore[arg-type]
        for layer, (name, hook) in enumerate(share.hooks(tokens)):  # type: ignore[arg-type]
            assert name == f"blocks.{layer}.attn.hook_pattern"
            pattern = pattern_of(tokens)
            before = pattern.clone()
            assert hook(pattern, hook=None) is None
            assert torch.equal(pattern, before)
            if layer == 1:
                f = attention_share(pattern, tokens.mask("query"), slots >= 0)
                for b in range(2):
                    wanted.append(torch.zeros(7).index_add_(0, slots[b][slots[b] >= 0], f[b][slots[b] >= 0]))
    table = share.table()
    assert table.groupby("layer")["share"].sum().tolist() == pytest.approx([1, 1])
    got = table[table.layer == 1].share.to_numpy()
    assert got == pytest.approx(torch.stack(wanted).mean(0).numpy(), abs=1e-6)
    gate = torch.stack(wanted)[:, 2].double()
    se = table[(table.layer == 1) & (table.kind == "gate")].se.item()
    assert se == pytest.approx(float(gate.std(correction=0)) / 2, abs=1e-6)
    assert set(table.n) == {4}
    held = sum(t.numel() for t in vars(share).values() if isinstance(t, torch.Tensor))
    assert held < 50  # sums only: no pattern is kept


def test_errors() -> None:
    tokens = Tokens(1, (0,))
    with pytest.raises(DataError, match="example 0 has no query row"):
        attention_share(pattern_of(tokens), torch.zeros(1, tokens.n_pos).bool(), tokens.mask("image"))
    share = AttentionShare(n_layers=2)
    share.hooks(tokens)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"layer\(s\) \[0, 1\] never fired"):
        share.table()
