"""Patching the gate: each clean run reads its own picture, and the patched one equals a hand-made hook."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gatelens as gl
from gatelens.errors import DataError
from gatelens.examples import Labels, prepare
from gatelens.interventions import hook_name
from gatelens.measures.overlap import distribution_overlap
from gatelens.studies import narrow_gate
from gatelens.studies.narrow_gate.patching.section import (
    attention_input_evidence,
    best_layer,
    class_table,
    draw_pairs,
    patch_layers,
    summarise_patching,
)
from study_helpers import TinyData


@pytest.fixture
def pairs() -> list[Any]:
    return draw_pairs(TinyData().examples("class"), 6, seed=0)


def blocks_of(hf: Any) -> list[Any]:
    """The decoder layers of a plain model."""
    return [m for m in hf.modules() if hasattr(m, "self_attn") and hasattr(m.self_attn, "layer_idx")]


def test_pairs_are_seeded_and_of_two_classes() -> None:
    examples = TinyData().examples("class")
    pairs = draw_pairs(examples, 30, seed=4)
    assert all(a.label != b.label for a, b in pairs)
    assert len({(a.id, b.id) for a, b in pairs}) == 30  # none twice
    assert [(a.id, b.id) for a, b in pairs] == [(a.id, b.id) for a, b in draw_pairs(examples, 30, seed=4)]
    assert [(a.id, b.id) for a, b in pairs] != [(a.id, b.id) for a, b in draw_pairs(examples, 30, seed=5)]
    assert len(draw_pairs(examples, 1000, seed=4)) == 12 * 9  # 12 ordered class pairs of 3 pictures each
    with pytest.raises(DataError, match="two classes"):
        draw_pairs(TinyData(classes=("dog",)).examples("class"), 3, seed=0)


def test_class_pairs_take_turns() -> None:
    examples = TinyData().examples("class")
    given = draw_pairs(examples, 8, seed=1, pairs="cat-dog,red-blue")
    names = [(a.label, b.label) for a, b in given]
    assert names == [("cat", "dog"), ("red", "blue")] * 4
    drawn = [(a.label, b.label) for a, b in draw_pairs(examples, 12, seed=1, classes=3)]
    assert len({x for pair in drawn for x in pair}) == 3
    assert sorted(drawn[:6]) == sorted(set(drawn)) == sorted(drawn[6:])
    with pytest.raises(DataError, match="no picture of 'lion'"):
        draw_pairs(examples, 8, seed=1, pairs=[["lion", "dog"]])


def test_base_and_target_are_two_pictures(pairs: list[Any], tiny_llava: Any, hf_llava: Any) -> None:
    """The paper's script read one batch for both: its base was its target."""
    for base, target in pairs:
        assert base.id != target.id
        assert not np.array_equal(np.asarray(base.image), np.asarray(target.image))
    table = patch_layers(tiny_llava, pairs, 0, Labels(tiny_llava))
    unpatched = table[(table.site == "resid_pre") & (table.layer == -1)]
    assert unpatched.base.tolist() == pytest.approx([1] * 6, abs=1e-5)
    assert (unpatched.target < 0.999).all()
    with torch.no_grad():  # both distributions from a plain model, each of its own picture
        p, q = (
            hf_llava(**prepare(tiny_llava, [pair[i] for pair in pairs]).tensors).logits[:, -1].softmax(-1)
            for i in (0, 1)
        )
    assert unpatched.target.tolist() == pytest.approx(torch.minimum(p, q).sum(-1).tolist(), abs=1e-5)
    assert table.base_id.tolist()[:6] == [a.id for a, _ in pairs]
    assert table.target_class.tolist()[:6] == [b.label for _, b in pairs]


def test_against_a_hand_made_hook(tiny_llava: Any, pairs: list[Any]) -> None:
    table = patch_layers(tiny_llava, pairs, 0, Labels(tiny_llava))
    base, target = (prepare(tiny_llava, [p[i] for p in pairs]) for i in (0, 1))
    gate = base.tokens.mask("gate")
    name = "blocks.1.hook_resid_pre"
    logits, cache = tiny_llava.run_with_cache(target, names_filter=name)

    def put(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.where(gate[:, :, None], cache[name], resid)

    patched = tiny_llava.run_with_hooks(base, fwd_hooks=[(name, put)])[:, -1].softmax(-1)
    wanted = distribution_overlap(patched, logits[:, -1].softmax(-1))
    found = table[(table.site == "resid_pre") & (table.layer == 1)]
    assert found.target.tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


def plainly_patched(hf: Any, base: Any, target: Any, gate: torch.Tensor, first: int) -> torch.Tensor:
    """Next-token distribution of a plain model whose attention modules read the target's input at the gate, from
    layer ``first`` on."""
    layers, read = blocks_of(hf)[first:], {}

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        read[module] = kwargs["hidden_states"].clone()

    def put(module: Any, args: Any, kwargs: Any) -> Any:
        mine = torch.where(gate[:, :, None], read[module], kwargs["hidden_states"])
        return args, {**kwargs, "hidden_states": mine}

    with torch.no_grad():
        handles = [b.self_attn.register_forward_pre_hook(keep, with_kwargs=True) for b in layers]
        hf(**target.tensors)
        [h.remove() for h in handles]
        handles = [b.self_attn.register_forward_pre_hook(put, with_kwargs=True) for b in layers]
        logits = hf(**base.tensors).logits[:, -1]
        [h.remove() for h in handles]
    return logits.softmax(-1)


def test_cumulative_patching_equals_torch_hooks_on_the_attention_modules(
    tiny: Any, oracle: Any, pairs: list[Any]
) -> None:
    table = patch_layers(tiny, pairs, 0, Labels(tiny))
    base, target = (prepare(tiny, [p[i] for p in pairs]) for i in (0, 1))
    gate = base.tokens.mask("gate")
    with torch.no_grad():
        clean, other = (oracle(**x.tensors).logits[:, -1].softmax(-1) for x in (base, target))
    for first in range(3):
        patched = plainly_patched(oracle, base, target, gate, first)
        found = table[(table.site == "attn_in") & (table.layer == first)]
        for column, q in (("base", clean), ("target", other)):
            wanted = torch.minimum(patched, q).sum(-1)
            assert found[column].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
        assert (patched - clean).abs().max() > 1e-4  # the hooks did something


def test_what_text_reads_of_the_attention_input_is_keys_and_values(tiny: Any, pairs: list[Any]) -> None:
    base, target = (prepare(tiny, [p[i] for p in pairs]) for i in (0, 1))
    names = [hook_name(site, n) for site in ("attn_in", "k", "v") for n in range(3)]
    _, cache = tiny.run_with_cache(target, names_filter=names)
    for first in range(3):
        layers = range(first, 3)
        whole = tiny.run(base, gl.patch(cache, at="gate", site="attn_in", layers=layers))
        parts = tiny.run(base, [gl.patch(cache, at="gate", site=s, layers=layers) for s in ("k", "v")])
        assert (whole - parts)[:, -1].abs().max() < 1e-4
        assert (whole - tiny(base))[:, -1].abs().max() > 1e-3


def test_a_picture_patched_with_itself_changes_nothing(tiny_llava: Any) -> None:
    example = TinyData().examples("class")[0]
    table = patch_layers(tiny_llava, [(example, example)], 0, Labels(tiny_llava))
    assert table.base.tolist() == pytest.approx([1] * 8, abs=1e-5)  # three layers and none, at two sites
    assert not table.flippable.any() and not table.both_right.any()
    for site in ("resid_pre", "attn_in"):
        summary = summarise_patching(table[table.site == site], 20, 0)
        assert set(summary.measure) == {"base", "target"}  # nothing could flip
        assert summary.n.tolist() == [1] * 8


def test_success_is_of_the_class_not_of_the_clean_prediction(tiny_llava: Any) -> None:
    """Labels made of the model's own answers: right where they are, and counted against plain numbers."""
    examples = TinyData(n=24).examples("class")
    ids = [int(x) for x in tiny_llava(prepare(tiny_llava, examples))[:, -1].argmax(-1)]
    words = tiny_llava.tokenizer.convert_ids_to_tokens(ids)
    kinds = sorted(set(words))
    assert len(kinds) > 1
    named = [
        SimpleNamespace(**{**vars(e), "label": w, "answers": (w,)})
        for e, w in zip(examples, words, strict=True)
    ]
    pairs = draw_pairs(named, 8, seed=0)  # type: ignore[arg-type]
    table = patch_layers(tiny_llava, pairs, 0, Labels(tiny_llava))
    assert table.both_right.all() and table.flippable.all()
    assert (table.success == table.flipped).all()  # here the label is the clean prediction
    wrong = [(a, SimpleNamespace(**{**vars(b), "answers": ("yes",), "label": "yes"})) for a, b in pairs]
    other = patch_layers(tiny_llava, wrong, 0, Labels(tiny_llava))  # type: ignore[arg-type]
    assert not other.target_right.any() and not other.both_right.any()
    assert (other.flipped.to_numpy() == table.flipped.to_numpy()).all()
    same = [(a, SimpleNamespace(**{**vars(b), "answers": (b.label, a.label)})) for a, b in pairs]
    table = patch_layers(tiny_llava, same, 0, Labels(tiny_llava))  # type: ignore[arg-type]
    assert not table.both_right.any()  # a label of one is a label of the other: no success could be told


def test_tables_by_hand() -> None:
    rows = [  # pair, base class, target class, layer, flippable, flipped, both right, success
        (0, "a", "b", 0, True, False, True, False),
        (1, "a", "b", 0, True, True, True, True),
        (2, "b", "a", 0, False, True, True, True),
        (3, "b", "c", 0, True, True, False, True),
        (0, "a", "b", 1, True, True, True, True),
        (1, "a", "b", 1, True, True, True, True),
        (2, "b", "a", 1, False, True, True, False),
        (3, "b", "c", 1, True, False, False, True),
    ]
    names = ["pair", "base_class", "target_class", "layer", "flippable", "flipped", "both_right", "success"]
    pairs = pd.DataFrame(rows, columns=names).assign(base=0.5, target=0.25)
    table = summarise_patching(pairs, 50, 0).set_index(["measure", "layer"])
    assert table.loc[("flipped", 0), "mean"] == pytest.approx(2 / 3)
    assert table.loc[("success", 0), "mean"] == pytest.approx(2 / 3)
    assert table.loc[("success", 1), "mean"] == pytest.approx(2 / 3)
    assert table.loc[("flipped", 1), "n"] == 3 == table.loc[("success", 1), "n"]
    assert best_layer(table.reset_index()) == 0  # the first of equals
    assert best_layer(table.reset_index(), "nothing") is None
    classes = class_table(pairs, 1, 50, 0)
    assert [tuple(r) for r in classes[["base_class", "target_class", "mean", "n"]].to_numpy()] == [
        ("a", "b", 1.0, 2),
        ("b", "a", 0.0, 1),
        ("a", "any", 1.0, 2),  # pooled by whose prompt it is
        ("b", "any", 0.0, 1),
        ("any", "a", 0.0, 1),  # and by whose gate
        ("any", "b", 1.0, 2),
    ]


@pytest.mark.parametrize(
    "low, high, n, says",
    [
        (0.9, 1.0, 50, "narrow"),
        (0.0, 0.1, 50, "distributed"),
        (0.3, 0.6, 50, "mixed"),
        (0.9, 1.0, 5, "inconclusive"),
    ],
)
def test_evidence_of_the_attention_input(low: float, high: float, n: int, says: str) -> None:
    table = pd.DataFrame(
        [(0, "success", (low + high) / 2, low, high, n)],
        columns=["layer", "measure", "mean", "low", "high", "n"],
    )
    assert attention_input_evidence(table)[0]["says"] == says
    assert attention_input_evidence(table[table.measure == "x"])[0]["says"] == "inconclusive"


def test_in_a_run_with_given_pairs(tiny_llava: Any) -> None:
    options = {"patching": {"n_pairs": 6, "pairs": "cat-dog,red-blue", "every": 2}}
    run = narrow_gate(
        tiny_llava, TinyData(tasks=("class",)), None, sections=options, n_boot=20, progress=False
    )
    rows = run.table("patching_pairs")
    assert set(zip(rows.base_class, rows.target_class, strict=True)) == {("cat", "dog"), ("red", "blue")}
    assert sorted(set(rows.layer)) == [-1, 0, 2]
    columns = ["layer", "measure", "mean", "low", "high", "n"]
    assert list(run.table("patching").columns) == columns == list(run.table("patching_attention").columns)
    with pytest.raises(DataError, match="'lion'"):
        narrow_gate(
            tiny_llava,
            TinyData(tasks=("class",)),
            None,
            sections={"patching": {"pairs": "lion-dog"}},
            progress=False,
        )
