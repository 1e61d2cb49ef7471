"""Each family's layout read off its config and processor, and the registry."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from gatelens.errors import ModelError
from gatelens.families import Family, Layout, all_families, family_of, register
from gatelens.families.chameleon import layout as chameleon_layout
from gatelens.model import HookedVLM
from tiny_models import VOCABULARY, make_chameleon, make_llava, make_llava_processor, make_picture


def test_registry_names_what_is_supported() -> None:
    assert {"chameleon", "llava"} <= {family.name for family in all_families()}
    assert family_of("ChameleonForConditionalGeneration").name == "chameleon"
    with pytest.raises(ModelError, match="'NoSuchModel': supported are Chameleon"):
        family_of("NoSuchModel")


def test_chameleon_layout(tiny_chameleon: HookedVLM) -> None:
    layout = tiny_chameleon.layout
    assert (layout.plan.rows, layout.plan.cols, layout.plan.n_leading) == (4, 4, 0)
    assert layout.boi_id == VOCABULARY["<racm3:break>"] and layout.eoi_id == VOCABULARY["<eoss>"]
    assert layout.drawn.ids == frozenset(range(8, 24))
    assert layout.plan.geometry.shortest == 16 and layout.plan.geometry.crop == (16, 16)


def test_chameleon_layout_needs_no_processor(tiny_chameleon: HookedVLM) -> None:
    bare = chameleon_layout(tiny_chameleon.hf.config)
    assert (bare.boi_id, bare.eoi_id) == (tiny_chameleon.layout.boi_id, tiny_chameleon.layout.eoi_id)
    config = copy.deepcopy(tiny_chameleon.hf.config)
    config.vocabulary_map = None
    with pytest.raises(ModelError, match="vocabulary_map"):
        chameleon_layout(config)


def test_chameleon_prompt_gets_no_separator(tiny_chameleon: HookedVLM) -> None:
    inputs = tiny_chameleon.prepare(make_picture(), "<image> is a")
    assert inputs.tokens.strings[0][-1] == "a"
    assert inputs.tokens.positions("boi") == [1] and inputs.tokens.positions("eoi") == [18]


def test_chameleon_knows_a_picture_written_as_codes(tiny_chameleon: HookedVLM) -> None:
    made = tiny_chameleon.prepare(make_picture(), "this <image> is a")
    codes = tiny_chameleon.hf.model.get_image_tokens(made.tensors["pixel_values"]).flatten().long()
    ids = made.tensors["input_ids"].clone()
    ids[made.tokens.mask("image")] = codes
    drawn = tiny_chameleon.inputs(input_ids=ids)
    assert torch.equal(drawn.tokens.roles, made.tokens.roles)
    assert torch.equal(drawn.tokens.row, made.tokens.row)
    assert (tiny_chameleon(drawn) - tiny_chameleon(made)).abs().max() <= 1e-5


@pytest.mark.parametrize("strategy, n_tokens", [("default", 16), ("full", 17)])
def test_llava_with_and_without_class_token(strategy: str, n_tokens: int) -> None:
    plain = make_llava(strategy)
    model = HookedVLM.from_module(copy.deepcopy(plain), make_llava_processor(strategy))
    inputs = model.prepare(make_picture(), "<image> is a")
    assert inputs.tokens.mask("image").sum() == n_tokens == model.layout.plan.n_tokens
    assert inputs.tokens.mask("image.box(0,0,16,16)").sum() == 16
    assert not inputs.tokens.mask("boi | eoi").any()
    assert inputs.tokens.positions("gate") == [n_tokens + 1]
    assert (model(inputs) - plain(**inputs.tensors).logits).abs().max() <= 1e-5


def test_chameleon_with_post_norms_equals_transformers() -> None:
    plain = make_chameleon(swin_norm=True)
    model = HookedVLM.from_module(copy.deepcopy(plain), None)
    ids = torch.tensor([[1, 30, 31, 32, 33]])
    assert (model(model.inputs(input_ids=ids)) - plain(input_ids=ids).logits).abs().max() <= 1e-5
    _, cache = model.run_with_cache(model.inputs(input_ids=ids))
    for layer in range(3):
        pre, attn, mid = (cache[f"blocks.{layer}.hook_{n}"] for n in ("resid_pre", "attn_out", "resid_mid"))
        mlp, post = (cache[f"blocks.{layer}.hook_{n}"] for n in ("mlp_out", "resid_post"))
        torch.testing.assert_close(pre + attn, mid)
        torch.testing.assert_close(mid + mlp, post)


def test_a_new_family_is_one_declaration(tiny_llava: HookedVLM) -> None:
    known = family_of("LlavaForConditionalGeneration")
    try:
        register(dataclasses.replace(known, name="mine"))
        assert family_of("LlavaForConditionalGeneration").name == "mine"
    finally:
        register(known)
    assert isinstance(known, Family) and isinstance(tiny_llava.layout, Layout)
