"""Patching the gate: each clean run reads its own picture, and the patched one equals a hand-made hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.overlap import distribution_overlap
from gatelens.studies.common import Labels, prepare
from gatelens.studies.narrow_gate.patching import draw_pairs, patch_layers, summarise_patching
from study_helpers import TinyData


def test_pairs_are_seeded_and_of_two_classes() -> None:
    examples = TinyData().examples("class")
    pairs = draw_pairs(examples, 30, seed=4)
    assert all(a.label != b.label for a, b in pairs)
    assert [(a.id, b.id) for a, b in pairs] == [(a.id, b.id) for a, b in draw_pairs(examples, 30, seed=4)]
    assert [(a.id, b.id) for a, b in pairs] != [(a.id, b.id) for a, b in draw_pairs(examples, 30, seed=5)]
    with pytest.raises(DataError, match="two classes"):
        draw_pairs(TinyData(classes=("dog",)).examples("class"), 3, seed=0)


def test_against_a_hand_made_hook(tiny_llava: Any) -> None:
    pairs = draw_pairs(TinyData().examples("class"), 6, seed=0)
    table = patch_layers(tiny_llava, pairs, 0, Labels(tiny_llava))
    unpatched = table[table.layer == -1]
    assert unpatched.base.tolist() == pytest.approx([1] * 6, abs=1e-5)
    assert (unpatched.target < 0.999).all()  # base and target are two pictures
    base, target = (prepare(tiny_llava, [p[i] for p in pairs]) for i in (0, 1))
    gate = base.tokens.mask("gate")
    name = "blocks.1.hook_resid_pre"
    logits, cache = tiny_llava.run_with_cache(target, names_filter=name)

    def put(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.where(gate[:, :, None], cache[name], resid)

    patched = tiny_llava.run_with_hooks(base, fwd_hooks=[(name, put)])[:, -1].softmax(-1)
    wanted = distribution_overlap(patched, logits[:, -1].softmax(-1))
    assert table[table.layer == 1].target.tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


def test_a_picture_patched_with_itself_changes_nothing(tiny_llava: Any) -> None:
    example = TinyData().examples("class")[0]
    table = patch_layers(tiny_llava, [(example, example)], 0, Labels(tiny_llava))
    assert table.base.tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert not table.flippable.any()
    summary = summarise_patching(table, 20, 0)
    assert set(summary.measure) == {"base", "target"}  # nothing could flip
    assert summary.n.tolist() == [1] * 8
