"""Rows of attention shown a block at a time are the rows of the whole pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens.interventions as gi
from gatelens.bridge import attention
from gatelens.engine import generate, last_logits, look
from gatelens.interventions.compile import compile_hooks
from gatelens.measures.attention import AttentionShare
from intervention_helpers import prompts


@pytest.mark.parametrize("how", ["mask", "zero", None])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_shown_rows_are_the_pattern(
    tiny: Any, batch: Any, real: Tensor, how: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "ROWS_AT_ONCE", block)
    specs = [gi.knockout("text - gate", "last_image", [1], how=how)] if how else []
    _, cache = tiny.run_with_cache(
        batch,
        lambda name: name.endswith("attn.hook_pattern") and name.startswith("blocks."),
        fwd_hooks=compile_hooks(specs, batch.tokens, tiny.cfg).pairs,
    )
    seen: dict[tuple[int, int], Tensor] = {}

    def see(layer: int, pattern: Tensor, low: int) -> None:
        assert pattern.shape[2] <= block
        for i in range(pattern.shape[2]):
            seen[layer, low + i] = pattern[:, :, i].clone()

    logits = look(tiny, batch, "text", see, layers=[0, 1], interventions=specs)
    columns = batch.tokens.mask("text").any(0).nonzero()
    assert {row for _, row in seen} == set(range(int(columns[0]), int(columns[-1]) + 1))
    assert {layer for layer, _ in seen} == {0, 1}
    for (layer, row), pattern in seen.items():
        mine = real[:, row]
        torch.testing.assert_close(
            pattern[mine], cache["pattern", layer][mine][:, :, row], atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(logits, last_logits(tiny, batch, [specs])[0], atol=1e-5, rtol=1e-4)


def test_attention_shares_need_no_whole_pattern(
    tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = AttentionShare(3)
    tiny.run_with_hooks(batch, whole.hooks(batch.tokens))
    monkeypatch.setattr(attention, "ROWS_AT_ONCE", 2)
    lean = AttentionShare(3)
    with lean.looking(batch.tokens) as see:
        look(tiny, batch, "text - gate", see)
    for column in ("share", "se", "image_side_mass", "n"):
        torch.testing.assert_close(
            torch.tensor(lean.table()[column].to_numpy(float)),
            torch.tensor(whole.table()[column].to_numpy(float)),
            atol=1e-6,
            rtol=1e-5,
            equal_nan=True,
        )


@pytest.mark.parametrize("how", ["mask", "zero", None])
def test_the_rows_that_write_are_shown_while_decoding(tiny_chameleon: Any, how: Any) -> None:
    """In the family that never writes a placeholder, whose picture a full run would then miss."""
    specs = [gi.knockout("text", "last_image", [1], how=how)] if how else []
    batch, tiny = prompts(tiny_chameleon), tiny_chameleon
    seen: dict[tuple[int, int], Tensor] = {}
    out = generate(
        tiny,
        batch,
        specs,
        max_new_tokens=3,
        stop_at_eos=False,
        see=lambda n, p, at: seen.update({(n, at): p.clone()}),
    )
    n_pos = batch.tokens.n_pos
    assert {at for _, at in seen} == {n_pos - 1, n_pos, n_pos + 1}
    tensors = dict(batch.tensors)
    tensors["input_ids"] = torch.cat([tensors["input_ids"], out.token_ids[:, :2]], 1)
    tensors["attention_mask"] = torch.cat([tensors["attention_mask"], torch.ones(3, 2, dtype=torch.long)], 1)
    del tensors["position_ids"]
    tokens = batch.tokens.extend(2)
    found: dict[int, Tensor] = {}
    hooks = [
        (f"blocks.{n}.attn.hook_pattern", lambda t, hook, n=n: found.update({n: t.clone()})) for n in range(3)
    ]
    tiny.forward_step(tensors, [*compile_hooks(specs, tokens, tiny.cfg).pairs, *hooks])
    for (layer, at), pattern in seen.items():
        want = found[layer][:, :, at : at + 1, : pattern.shape[-1]]
        torch.testing.assert_close(pattern, want, atol=1e-5, rtol=1e-4)
