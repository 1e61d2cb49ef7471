"""Attention shares against a plain loop; the accumulator keeps no pattern; positions that stand out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.attention import (
    AttentionShare,
    attention_share,
    image_side_slots,
    slot_place,
    standing_out,
)

IMAGES = [("image", i) for i in range(4)]


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
    assert slots[0].tolist() == [-1, -1, 0, 2, 4, 3, 6, 8, 1, -1, -1, -1]
    assert [slot_place(s) for s in range(6)] == [
        ("boi", -1),
        ("gate", -1),
        ("image", 0),
        ("row_break", 0),
        ("image", 1),
        ("row_break", 1),
    ]


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
                    wanted.append(f[b][slots[b] >= 0])
    table = share.table()
    assert table.groupby("layer")["share"].sum().tolist() == pytest.approx([1, 1])
    mine = table[table.layer == 1].set_index(["kind", "index"])
    mean, per_example = torch.stack(wanted).mean(0), torch.stack(wanted).double()
    in_order = [("boi", -1), *IMAGES[:2], ("row_break", 0), *IMAGES[2:], ("gate", -1)]
    assert mine.share.loc[in_order].tolist() == pytest.approx(mean.tolist(), abs=1e-6)
    se = (per_example.std(0, correction=0) / 2).tolist()
    assert mine.se.loc[in_order].tolist() == pytest.approx(se, abs=1e-6)
    assert set(table.n) == {4} and set(table.held) == {4}
    pattern_size = 2 * 2 * 3 * 11 * 11
    assert sum(t.numel() for t in tensors_in(vars(share))) < pattern_size / 4  # no pattern is kept


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value if isinstance(value, list) else vars(value) if hasattr(value, "__dict__") else value
    inner = inner.values() if isinstance(inner, dict) else inner
    return [t for one in inner for t in tensors_in(one)] if isinstance(inner, Iterable) else []


def hand_worked() -> tuple[Tokens, torch.Tensor]:
    """One head; of three text rows one puts (.1, .2, 0, .1, 0, .2, .1) on the image side, two half of that."""
    tokens = Tokens(1, (1,))
    side = torch.tensor([0.1, 0.2, 0.0, 0.1, 0.0, 0.2, 0.1])  # boi, two tokens, row break, two tokens, gate
    pattern = torch.zeros(1, 1, tokens.n_pos, tokens.n_pos)
    pattern[0, 0, 9, 2:9], pattern[0, 0, 10, 2:9], pattern[0, 0, 11, 2:9] = side, side / 2, side / 2
    pattern[0, 0, :, 0] = 7.0  # attention to what is not the image side counts for nothing
    return tokens, pattern


def test_a_case_worked_by_hand() -> None:
    """The rows add up to 2 x (.1, .2, 0, .1, 0, .2, .1), together 1.4; so f = (1, 2, 0, 1, 0, 2, 1) / 7."""
    tokens, pattern = hand_worked()
    share = AttentionShare(n_layers=1)
    with share.looking(tokens, "query") as see:  # type: ignore[arg-type]
        see(0, pattern[:, :, 9:], 9)
    mine = share.table().set_index(["kind", "index"]).share
    assert {key: round(7 * value, 4) for key, value in mine.items()} == {
        ("boi", -1): 1,
        ("gate", -1): 1,
        ("image", 0): 2,
        ("image", 1): 0,
        ("image", 2): 0,
        ("image", 3): 2,
        ("row_break", 0): 1,
    }
    groups = share.groups(n_boot=10).set_index("group")
    worked = {"gate": 1, "last_image": 2, "internal_image": 2, "row_break": 1, "boi": 1}
    assert {name: round(7 * value, 4) for name, value in groups.share.items()} == worked
    assert groups.positions.to_dict() == {
        "gate": 1,
        "last_image": 1,
        "internal_image": 3,
        "row_break": 1,
        "boi": 1,
    }


def test_pictures_of_several_sizes() -> None:
    """The last image token is each example's own; a position a small picture lacks counts 0 for it."""
    small, big = hand_worked()[0], hand_worked()[0]
    small.rows = [["query" if r in ("row_break", "gate") else r for r in small.rows[0]]]
    small.rows[0][6:9] = ["gate", "query", "query"]  # boi, two image tokens, text, gate, text
    share = AttentionShare(n_layers=1)
    for tokens in (small, big):
        for _, hook in share.hooks(tokens, "query"):  # type: ignore[arg-type]
            torch.manual_seed(3)
            hook(pattern_of(tokens), hook=None)
    table = share.table().set_index(["kind", "index"])
    assert table.held.to_dict() == {
        ("boi", -1): 2,
        ("gate", -1): 2,
        ("image", 0): 2,
        ("image", 1): 2,
        ("image", 2): 1,
        ("image", 3): 1,
        ("row_break", 0): 1,
    }
    torch.manual_seed(3)
    f = attention_share(pattern_of(small), small.mask("query"), image_side_slots(small) >= 0)  # type: ignore[arg-type]
    torch.manual_seed(3)
    g = attention_share(pattern_of(big), big.mask("query"), image_side_slots(big) >= 0)  # type: ignore[arg-type]
    groups = share.groups(n_boot=10).set_index("group")
    assert groups.share["last_image"] == pytest.approx(float(f[0, 4] + g[0, 7]) / 2, abs=1e-6)
    assert groups.share.sum() == pytest.approx(1)
    assert groups.positions["internal_image"] == pytest.approx((1 + 3) / 2)


def test_errors() -> None:
    tokens = Tokens(1, (0,))
    with pytest.raises(DataError, match="example 0 has no query row"):
        attention_share(pattern_of(tokens), torch.zeros(1, tokens.n_pos).bool(), tokens.mask("image"))
    share = AttentionShare(n_layers=2)
    share.hooks(tokens)  # type: ignore[arg-type]
    for table in (share.table, share.groups):
        with pytest.raises(DataError, match=r"layer\(s\) \[0, 1\] never fired"):
            table()


# --- positions that stand out, on tables written by hand


def table_of(shares: dict[tuple[str, int], list[float]], se: float = 0.0, n: int = 100) -> pd.DataFrame:
    rows = [
        (layer, *key, value, se, n, n) for key, values in shares.items() for layer, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["layer", "kind", "index", "share", "se", "n", "held"])


def test_one_of_a_thousand_is_found_whatever_its_index() -> None:
    even = 1 / 1000
    shares = {("image", i): [even, even] for i in range(998)}
    shares |= {("image", 32): [even, 0.05], ("row_break", 7): [0.012, 0.012], ("gate", -1): [0.4, 0.2]}
    listed = standing_out(table_of(shares))
    assert list(zip(listed.kind, listed["index"], strict=True)) == [
        ("gate", -1),
        ("image", 32),
        ("row_break", 7),
    ]
    assert listed.stands_out.all()
    assert listed.layer.tolist() == [0, 1, 0]
    assert listed["mean"].tolist() == pytest.approx([0.3, (even + 0.05) / 2, 0.012])
    assert listed.even.tolist() == pytest.approx([even] * 3)


def test_an_even_share_of_few_positions_does_not_stand_out() -> None:
    shares = {("image", i): [1 / 64] for i in range(62)} | {("image", 62): [0.03], ("gate", -1): [0.04]}
    listed = standing_out(table_of(shares))
    assert len(listed) == 64  # all take more than 1 %
    assert listed[listed.stands_out].kind.tolist() == ["gate"]  # 0.03 is less than two even shares, 0.03125
    assert standing_out(table_of(shares), times=1.9).stands_out.sum() == 2
    assert len(standing_out(table_of(shares), least=0.035)) == 1


def test_noise_does_not_stand_out() -> None:
    shares = {("image", i): [1 / 64] for i in range(63)} | {("gate", -1): [0.04]}
    assert not standing_out(
        table_of(shares, se=0.005)
    ).stands_out.any()  # 0.04 − 1.96 · 0.005 = 0.0302 < 2/64
    assert standing_out(table_of(shares, se=0.004)).stands_out.sum() == 1  # 0.0322


def test_none() -> None:
    listed = standing_out(table_of({("image", i): [1 / 200] for i in range(200)}))
    assert listed.empty and {"kind", "index", "highest", "stands_out"} <= set(listed.columns)
