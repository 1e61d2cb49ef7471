"""A cache of some positions holds those rows, and interventions find them again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gatelens as gl
from gatelens.errors import InputError, InterventionError
from intervention_helpers import batch, real, stepwise  # noqa: F401  (fixtures)


def test_kept_rows_are_rows_of_the_whole_cache(tiny: Any, batch: Any) -> None:  # noqa: F811
    _, whole = tiny.run_with_cache(batch)
    _, lean = tiny.run_with_cache(batch, positions="gate | last", dtype="bfloat16")
    mask = batch.tokens.mask("gate | last")
    assert set(lean.keys()) == set(whole.keys())
    for name in (
        "blocks.1.hook_resid_pre",
        "blocks.2.attn.hook_q",
        "blocks.0.attn.hook_k",
        "ln_final.hook_out",
    ):
        assert lean[name].dtype == torch.bfloat16 and lean[name].shape[:2] == (3, 2)
        want = whole[name][mask].view(lean[name].shape)
        torch.testing.assert_close(lean[name].float(), want, atol=0.02, rtol=0.02)
    pattern = lean["pattern", 1]
    assert pattern.shape == (3, 4, 2, batch.tokens.n_pos)
    for b in range(3):
        want = whole["pattern", 1][b][:, mask[b]]
        torch.testing.assert_close(pattern[b].float(), want, atol=0.02, rtol=0.02)


def test_a_patch_from_kept_rows_is_the_patch(tiny: Any, batch: Any) -> None:  # noqa: F811
    other = batch.select([1, 2, 0])
    _, whole = tiny.run_with_cache(other, "blocks.1.hook_resid_pre")
    _, lean = tiny.run_with_cache(other, "blocks.1.hook_resid_pre", positions="gate | last")
    for at in ("gate", "last", "gate | last"):
        want = tiny.run(batch, gl.patch(whole, at, layers=1))
        assert torch.equal(tiny.run(batch, gl.patch(lean, at, layers=1)), want)
        mean = [
            tiny.run(batch, gl.ablate("last", layers=1, with_="mean", over=at, reference=c))
            for c in (whole, lean)
        ]
        torch.testing.assert_close(*mean)
    with pytest.raises(InterventionError, match=r"keeps only positions='gate \| last', position \d+ is not"):
        tiny.run(batch, gl.patch(lean, "last_image", layers=1))


def test_examples_must_keep_alike(tiny: Any, batch: Any) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"selects \[\d+, \d+, \d+\] positions in the examples"):
        tiny.run_with_cache(batch, positions="query")
    with pytest.raises(InputError, match=r"positions='generated' selects \[0, 0, 0\]"):
        tiny.run_with_cache(batch, positions="generated")
