"""Knockouts against plain transformers: a 4-D mask, and an attention function that leaves entries out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.errors import InterventionError
from intervention_helpers import cut_of, prompts

CUTS = [
    ("text", "image"),
    ("last", "gate"),
    ("text - gate", "image"),
    ("image - first_image", "first_image | system"),
    ("text | eoi", "(random_image:7 | query) - last"),
]


def close(a: torch.Tensor, b: torch.Tensor, real: torch.Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(a[real], b[real], atol=atol, rtol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), CUTS)
def test_mask_is_a_4d_attention_mask(
    tiny: Any, oracle: Any, batch: Any, real: torch.Tensor, queries: str, keys: str
) -> None:
    tokens = batch.tokens
    allowed = torch.ones(tokens.n_pos, tokens.n_pos).tril().bool() & real[:, None, :]
    allowed = allowed[:, None] & ~cut_of(tokens, queries, keys)[:, :1]
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = oracle(**{**batch.tensors, "attention_mask": mask}).logits
    got = run(tiny, batch, gi.knockout(queries, keys))
    close(got, expected, real)
    assert (got - tiny(batch))[real].abs().max() > 1e-3


@pytest.mark.parametrize("how", ["mask", "zero"])
@pytest.mark.parametrize(("layers", "heads"), [(None, None), ([1], None), (slice(1, None), [0, 3]), (-1, 2)])
@pytest.mark.parametrize(("queries", "keys"), CUTS[:3])
def test_equals_an_attention_function_without_the_entries(
    tiny: Any,
    batch: Any,
    real: Any,
    plain_with_cuts: Any,
    how: Any,
    layers: Any,
    heads: Any,
    queries: str,
    keys: str,
) -> None:
    resolved = {"None": [0, 1, 2], "[1]": [1], "-1": [2]}.get(repr(layers), [1, 2])
    named = [heads] if isinstance(heads, int) else heads
    cut = cut_of(batch.tokens, queries, keys, named)
    expected = plain_with_cuts(batch, {layer: [(cut, how)] for layer in resolved})
    got = run(tiny, batch, gi.knockout(queries, keys, layers=layers, heads=heads, how=how))
    close(got, expected, real)
    assert (got - tiny(batch))[real].abs().max() > 1e-4


@pytest.mark.parametrize("head", range(4))
def test_heads_are_query_heads(tiny: Any, batch: Any, head: int) -> None:
    name = "blocks.0.attn.hook_pattern"
    _, before = tiny.run_with_cache(batch, names_filter=name)
    _, after = tiny.run_with_cache(
        batch,
        names_filter=name,
        fwd_hooks=gi.knockout("text", "image", 0, head).hooks(batch.tokens, tiny.cfg),
    )
    changed = [h for h in range(4) if not torch.equal(before[name][:, h], after[name][:, h])]
    assert changed == [head]


def test_mask_renormalises_and_zero_does_not(tiny: Any, batch: Any, real: torch.Tensor) -> None:
    name, text = "blocks.1.attn.hook_pattern", batch.tokens.mask("text")
    sums = {}
    for how in ("mask", "zero"):
        pairs = gi.knockout("text", "image", layers=1, how=how).hooks(batch.tokens, tiny.cfg)
        _, cache = tiny.run_with_cache(batch, names_filter=name, fwd_hooks=pairs)
        pattern = cache[name]
        cut = cut_of(batch.tokens, "text", "image")
        assert (pattern[cut] == 0).all()
        sums[how] = pattern.sum(-1).transpose(1, 2)[text]
    torch.testing.assert_close(sums["mask"], torch.ones_like(sums["mask"]))
    assert (sums["zero"] < 0.999).all()


def test_blind_text_does_not_depend_on_the_picture(tiny: Any, batch: Any) -> None:
    other = prompts(tiny, seed=9)
    text, blind = batch.tokens.mask("text"), gi.knockout("~image", "image")
    assert (tiny(batch) - tiny(other))[text].abs().max() > 1e-2
    assert torch.equal(run(tiny, batch, blind)[text], run(tiny, other, blind)[text])
    # through the gate alone the picture still comes in
    gate = gi.knockout("text - gate", "image")
    assert (run(tiny, batch, gate) - run(tiny, other, gate))[text].abs().max() > 1e-3


def test_pairs_go_straight_into_transformerlens(tiny: Any, batch: Any) -> None:
    spec = gi.knockout(queries="text", keys="image", layers=range(1, 3))
    pairs = spec.hooks(batch.tokens)  # explicit layers need no config
    assert [name for name, _ in pairs] == ["blocks.1.attn.hook_attn_scores", "blocks.2.attn.hook_attn_scores"]
    rest = {k: v for k, v in batch.tensors.items() if k != "input_ids"}
    with torch.no_grad():
        got = tiny.bridge.run_with_hooks(batch.tensors["input_ids"], fwd_hooks=pairs, **rest)
    assert torch.equal(got, run(tiny, batch, spec))


def test_selectors_may_be_masks_positions_or_text(tiny: Any, batch: Any) -> None:
    tokens = batch.tokens
    by_text = run(tiny, batch, gi.knockout("last", "image"))
    by_mask = run(tiny, batch, gi.knockout(tokens.mask("last"), tokens.mask("image")))
    by_number = run(tiny, batch, gi.knockout([tokens.n_pos - 1], "image"))
    assert torch.equal(by_text, by_mask) and torch.equal(by_text, by_number)


def test_bfloat16_and_padding_give_no_nan(tiny: Any, batch: Any) -> None:
    _, cache = tiny.run_with_cache(
        batch, fwd_hooks=gi.knockout("~pad - pos[0]", "image").hooks(batch.tokens, tiny.cfg)
    )
    assert all(torch.isfinite(value).all() for name, value in cache.items() if "scores" not in name)
    scores = torch.zeros(3, 4, batch.tokens.n_pos, batch.tokens.n_pos, dtype=torch.bfloat16)
    ((_, fn),) = gi.knockout("text", "image", layers=0).hooks(batch.tokens)
    assert fn(scores, hook=None).dtype == torch.bfloat16


def test_the_hook_leaves_its_argument_alone_and_carries_gradients(tiny: Any, batch: Any) -> None:
    n = batch.tokens.n_pos
    scores = torch.randn(3, 4, n, n, requires_grad=True)
    before = scores.detach().clone()
    ((_, fn),) = gi.knockout("text", "image", layers=0, heads=[1]).hooks(batch.tokens)
    fn(scores, hook=None).nan_to_num(neginf=0).sum().backward()
    assert torch.equal(scores.detach(), before)
    assert torch.equal(scores.grad == 0, _full(cut_of(batch.tokens, "text", "image", [1]), batch))


def _full(cut: torch.Tensor, batch: Any) -> torch.Tensor:
    return cut  # keys before queries only: image positions all precede the text of their prompt


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (lambda: gi.knockout("all", "all"), ["layer 0", "example 0", "position", "how='zero'"]),
        (lambda: gi.knockout("all", "all", heads=[2], layers=[1]), ["layer 1", "head 2"]),
        (lambda: gi.knockout("text", "image", layers=[1, 3]), ["layer 3", "3 layers"]),
        (lambda: gi.knockout("text", "image", layers=-4), ["layer -4", "3 layers"]),
        (lambda: gi.knockout("text", "image", heads=4), ["head 4", "4 heads"]),
        (lambda: gi.knockout("text", "image", layers=slice(3, 9)), ["empty", "3 layers"]),
        (lambda: gi.knockout("generated", "image"), ["queries='generated'", "no position"]),
        (lambda: gi.knockout("text", "generated"), ["keys='generated'", "no position"]),
        (lambda: gi.knockout("system", "last"), ["causal", "swapped"]),
    ],
)
def test_what_cannot_act_says_so(tiny: Any, batch: Any, spec: Any, words: list[str]) -> None:
    with pytest.raises(InterventionError) as error:
        run(tiny, batch, spec())
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"how": "drop"}, ["'drop'", "mask"]),
        ({"layers": []}, ["layers is empty"]),
        ({"layers": "1"}, ["layers='1'"]),
        ({"layers": True}, ["layers=True"]),
        ({"heads": [0.5]}, ["heads", "0.5"]),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InterventionError) as error:
        gi.knockout("text", "image", **arguments)
    assert all(word in str(error.value) for word in words)


def test_layers_that_need_the_model_ask_for_its_config(batch: Any) -> None:
    with pytest.raises(InterventionError, match=r"model\.cfg"):
        gi.knockout("text", "image").hooks(batch.tokens)


def test_an_empty_row_is_seen_over_the_union_only_where_it_arises(tiny: Any, batch: Any) -> None:
    last = "last"
    halves = [
        gi.knockout(last, "image | system", layers=[0, 1]),
        gi.knockout(last, "~image - system", layers=[1, 2]),
    ]
    for one in halves:
        run(tiny, batch, one)
    with pytest.raises(InterventionError, match="layer 1, ") as error:
        run(tiny, batch, halves)
    assert f"position {batch.tokens.n_pos - 1}" in str(error.value)
    run(tiny, batch, [halves[0], gi.knockout(last, "~image - system", layers=[1, 2], how="zero")])
    by_head = [
        gi.knockout(last, "image | system", heads=[0, 1]),
        gi.knockout(last, "~image - system", heads=[1, 2]),
    ]
    with pytest.raises(InterventionError, match="head 1,"):
        run(tiny, batch, by_head)
    run(
        tiny,
        batch,
        [gi.knockout(last, "image | system", heads=[0]), gi.knockout(last, "~image - system", heads=[1])],
    )


def test_hooks_of_other_inputs_are_refused(tiny: Any, batch: Any, one_image: Any) -> None:
    pairs = gi.knockout("text", "image", layers=0).hooks(batch.tokens)
    with pytest.raises(InterventionError, match="token map"):
        tiny.run_with_hooks(one_image, fwd_hooks=pairs)


def test_without_an_end_marker_the_error_says_what_the_gate_is(tiny: Any, one_image: Any) -> None:
    said = "this model has no end-of-image token: 'gate' is the first position after the picture"
    for cut in (gi.knockout("text", "eoi"), gi.ablate("eoi", "resid_pre", layers=[0])):
        if one_image.tokens.mask("eoi").any():
            tiny.run(one_image, cut)
        else:
            with pytest.raises(InterventionError, match=said):
                tiny.run(one_image, cut)
    with pytest.raises(InterventionError, match=r"selects no position in any example$"):
        tiny.run(one_image, gi.knockout("text", "row_break"))


def test_repr_reads_like_the_call() -> None:
    assert repr(gi.knockout("text", "eoi", range(4, 8))) == (
        "knockout(queries='text', keys='eoi', how='mask', layers=range(4, 8))"
    )
    mask = torch.zeros(2, 9, dtype=torch.bool)
    assert "Bool[2, 9]" in repr(gi.knockout(mask, "eoi", heads=1))


def test_pixel_masks_are_given_with_the_selectors_that_name_them(tiny: Any, batch: Any) -> None:
    pixels = torch.zeros(16, 16, dtype=torch.bool)
    pixels[:4, 4:12] = True
    masks = {"dog": [pixels] * 3}
    image = batch.tokens.mask("image.mask(dog)", masks=masks)
    assert int(image.sum()) == 3 * 2
    given = [
        gi.knockout("text", "image.mask(dog)", masks=masks),
        gi.ablate("image.mask(dog)", masks=masks, layers=[0]),
        gi.steer(torch.ones(32), "image.mask(dog)", masks=masks, layers=[0]),
        gi.edit(lambda rows, where: 2 * rows, "image.mask(dog)", masks=masks, layers=[0]),
        gi.drop("image.mask(dog)", 1, masks=masks),
    ]
    same = [
        gi.knockout("text", image),
        gi.ablate(image, layers=[0]),
        gi.steer(torch.ones(32), image, layers=[0]),
        gi.edit(lambda rows, where: 2 * rows, image, layers=[0]),
        gi.drop(image, 1),
    ]
    for one, other in zip(given, same, strict=True):
        assert torch.equal(run(tiny, batch, one), run(tiny, batch, other))
