"""Shares by type of token: against a plain loop, with padding and ended examples, and on a real model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gatelens.engine import generate
from gatelens.errors import DataError
from gatelens.measures.token_types import TOKEN_KINDS, TokenTypeShare, by_kind, kind_of
from gatelens.model import HookedVLM
from gatelens.tokens import Role, TokenMap

PROMPTS = [
    [Role.PAD, Role.PAD, Role.SYSTEM, Role.IMAGE, Role.IMAGE, Role.EOI, Role.QUERY, Role.QUERY],
    [
        Role.SYSTEM,
        Role.BOI,
        Role.IMAGE,
        Role.ROW_BREAK,
        Role.IMAGE,
        Role.EOI,
        Role.QUERY,
        Role.QUERY,
    ],
]


def token_map() -> TokenMap:
    roles = torch.tensor([[int(r) for r in row] for row in PROMPTS])
    flat = torch.full_like(roles, -1)
    box = torch.full((*roles.shape, 4), float("nan"))
    return TokenMap(roles, flat, flat, flat, box, ((), ()), (("",) * 8,) * 2, 8)


def ended(tokens: TokenMap, new: int, ends: list[int]) -> TokenMap:
    """The generation's map: example b writes its end-of-sequence token as number ``ends[b]``."""
    grown = tokens.extend(new)
    roles = grown.roles.clone()
    for b, end in enumerate(ends):
        roles[b, tokens.n_pos + end + 1 :] = Role.PAD
    return dataclasses.replace(grown, roles=roles)


def pattern(tokens: TokenMap, row: int, heads: int = 3) -> torch.Tensor:
    """Attention of one row over all keys so far; padding gets none."""
    n = tokens.n_pos + row
    scores = torch.randn(tokens.batch_size, heads, 1, n)
    pad = torch.cat([tokens.roles == Role.PAD, torch.zeros(2, row, dtype=torch.bool)], 1)
    return scores.masked_fill(pad[:, None, None], -torch.inf).softmax(-1)


@pytest.mark.parametrize("first", [False, True])
def test_against_a_plain_loop(first: bool) -> None:
    torch.manual_seed(0)
    tokens, new, ends = token_map(), 5, [2, 9]
    share = TokenTypeShare(2, first=first)
    see = share.see(tokens)
    kept: dict[tuple[int, int], torch.Tensor] = {}
    for row in range(new):
        for layer in range(2):
            kept[layer, row] = pattern(tokens, row)
            see(layer, kept[layer, row], tokens.n_pos - 1 + row)
    share.add(ended(tokens, new, ends))
    table = share.table()
    for layer in range(2):
        pictures = []
        for b in range(2):
            rows = []
            for row in range(0 if first else 1, min(new, ends[b] + 1)):
                sums = dict.fromkeys(TOKEN_KINDS, 0.0)
                roles = PROMPTS[b] + [Role.GENERATED] * row
                for key, role in enumerate(roles):
                    for kind, members in TOKEN_KINDS.items():
                        if role in members:
                            sums[kind] += float(kept[layer, row][b, :, 0, key].mean())
                rows.append([sums[k] for k in TOKEN_KINDS])
            pictures.append(np.mean(rows, axis=0))
        each = share.by_picture()
        each = each[each.layer == layer].pivot(index="picture", columns="kind", values="share")
        np.testing.assert_allclose(each[list(TOKEN_KINDS)], pictures, atol=1e-6)
        mine = table[table.layer == layer]
        np.testing.assert_allclose(mine.share, np.mean(pictures, axis=0), atol=1e-6)
        np.testing.assert_allclose(mine.se, np.std(pictures, axis=0) / np.sqrt(2), atol=1e-6)
        assert mine.share.sum() == pytest.approx(1, abs=1e-12)
        assert mine.even.sum() == pytest.approx(1, abs=1e-12)
        assert mine.mass.iloc[0] == pytest.approx(1, abs=1e-6)
        assert set(mine.n) == {2} and set(mine.n_rows) == {2 + 4 + 2 * first}


def test_rows_of_ended_examples_never_count() -> None:
    """What is seen after an end may be anything: the table is the same."""
    tables = []
    for rubbish in (0.0, 7.0):
        torch.manual_seed(0)
        tokens = token_map()
        share = TokenTypeShare(1)
        see = share.see(tokens)
        for row in range(4):
            weights = pattern(tokens, row)
            if row > 1:  # example 0 wrote its end as token 1, in row 1
                weights[0] = rubbish
            see(0, weights, tokens.n_pos - 1 + row)
        share.add(ended(tokens, 4, [1, 9]))
        tables.append(share.table())
    assert tables[0].equals(tables[1])
    assert set(tables[0].n_rows) == {1 + 3}


def test_an_example_without_a_row_is_left_out() -> None:
    tokens = token_map()
    share = TokenTypeShare(1)
    see = share.see(tokens)
    for row in range(3):
        see(0, pattern(tokens, row), tokens.n_pos - 1 + row)
    share.add(ended(tokens, 3, [0, 9]))
    assert set(share.table().n) == {1}


def test_even_attention_is_the_even_share_and_zero_knockouts_are_divided_out() -> None:
    tokens = token_map()
    share = TokenTypeShare(1)
    see = share.see(tokens)
    for row in range(4):
        alive = torch.cat([tokens.roles != Role.PAD, torch.ones(2, row, dtype=torch.bool)], 1).float()
        even = alive / alive.sum(-1, keepdim=True)
        see(0, 0.5 * even[:, None, None].expand(-1, 2, 1, -1), tokens.n_pos - 1 + row)
    share.add(ended(tokens, 4, [9, 9]))
    table = share.table()
    np.testing.assert_allclose(table.share, table.even, atol=1e-6)
    assert table.mass.iloc[0] == pytest.approx(0.5)


def test_batches_add_up() -> None:
    torch.manual_seed(1)
    tokens = token_map()
    patterns = [[pattern(tokens, row) for row in range(3)] for _ in range(2)]
    both, single = TokenTypeShare(1), []
    for batch in patterns:
        alone = TokenTypeShare(1)
        for share in (both, alone):
            see = share.see(tokens)
            for row, weights in enumerate(batch):
                see(0, weights, tokens.n_pos - 1 + row)
            share.add(ended(tokens, 3, [9, 9]))
        single.append(alone.table().share.to_numpy())
    np.testing.assert_allclose(both.table().share, np.mean(single, axis=0), atol=1e-12)
    assert set(both.table().n) == {4}
    assert set(both.by_picture().picture) == {0, 1, 2, 3}


def test_misuse_is_named() -> None:
    tokens = token_map()
    share = TokenTypeShare(1)
    with pytest.raises(DataError, match="no attention was seen"):
        share.add(tokens.extend(1))
    see = share.see(tokens)
    see(0, pattern(tokens, 0), tokens.n_pos - 1)
    for call in (lambda: share.see(tokens), share.table):
        with pytest.raises(DataError, match="seen but not added"):
            call()
    with pytest.raises(DataError, match="attention of 1 written tokens was seen, but the map holds 0"):
        share.add(tokens)
    with pytest.raises(DataError, match="another batch"):
        share.add(tokens.select([0]).extend(1))
    share.add(tokens.extend(1))
    with pytest.raises(DataError, match=r"layer\(s\) \[0\] have no row of a generated token"):
        share.table()


def test_every_role_but_padding_has_one_kind() -> None:
    members = [role for roles in TOKEN_KINDS.values() for role in roles]
    assert sorted(members) == sorted(set(Role) - {Role.PAD})
    kinds = kind_of(token_map())
    assert (kinds < 0).sum() == 2
    assert by_kind(torch.ones(2, 10), kinds).sum(-1).tolist() == [8, 10]


def test_on_a_model(tiny: HookedVLM) -> None:
    """Through ``generate``, in a padded batch: shares sum to 1 and are the same as one by one."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pictures, texts = [Image.fromarray(p) for p in pixels], ["this <image> animal is a", "<image> what"]
    n_layers = int(tiny.cfg.n_layers)

    def table(batches: list[Any]) -> Any:
        share = TokenTypeShare(n_layers)
        for inputs in batches:
            generation = generate(tiny, inputs, max_new_tokens=4, see=share.see(inputs.tokens))
            share.add(generation.tokens)
        return share.table()

    together = table([tiny.prepare(pictures, texts)])
    alone = table([tiny.prepare(p, t) for p, t in zip(pictures, texts, strict=True)])
    np.testing.assert_allclose(together.share, alone.share, atol=1e-5)
    np.testing.assert_allclose(together.groupby("layer").share.sum(), 1, atol=1e-12)
    np.testing.assert_allclose(together.mass, 1, atol=1e-5)
    assert (together.share > 0).sum() >= 3 * n_layers
