"""Pixtral's rows and Idefics3's tiles: what a prompt says of them, where they lie, and what is refused."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from case import Case, cases
from cases.idefics3 import VOCABULARY, idefics3_processor, smolvlm_processor
from cases.pixtral import full_mistral3, full_pixtral
from transformers import LlavaConfig

from gatelens.errors import InputError, ModelError
from gatelens.families import all_families, family_of
from gatelens.families.idefics3 import process, written
from gatelens.model import HookedVLM
from gatelens.tokens import Role

LLAVA = "LlavaForConditionalGeneration"


@cache
def built(name: str) -> tuple[Case, Any, HookedVLM]:
    case = cases()[name]
    plain = case.model()
    return case, plain, HookedVLM.from_module(copy.deepcopy(plain), case.processor())


def test_the_tower_tells_pixtral_from_llava() -> None:
    assert family_of(LLAVA, full_pixtral()).name == "pixtral"
    assert family_of(LLAVA, LlavaConfig()).name == family_of(LLAVA).name == "llava"
    assert {"llava", "pixtral"} <= {family.name for family in all_families()}
    assert built("pixtral")[2].family.name == "pixtral"


def test_mistral_markers_are_known_without_a_tokenizer() -> None:
    for config, name in ((full_pixtral(), LLAVA), (full_mistral3(), "Mistral3ForConditionalGeneration")):
        layout = family_of(name, config).layout(config, None)
        assert (layout.placeholder_id, layout.inner_ids, layout.eoi_ids) == (10, {12}, {13})
    config.image_token_index = 7
    with pytest.raises(ModelError, match=r"no ids for \[IMG_BREAK\]"):
        family_of(name, config).layout(config, None)


@pytest.mark.parametrize("name", ["pixtral", "mistral3"])
def test_every_row_is_closed(name: str) -> None:
    case, _, model = built(name)
    inputs = model.prepare(case.picture(0), "this <image> is a")
    strings = [*inputs.tokens.strings[0]]
    row = ["[IMG]"] * 6
    assert strings[2:30] == [*row, "[IMG_BREAK]"] * 3 + [*row, "[IMG_END]"]
    assert inputs.tokens.positions("row_break") == [8, 15, 22] and inputs.tokens.positions("eoi") == [29]
    assert inputs.tensors["image_sizes"].tolist() == [[32, 48]]
    corners = inputs.tokens.box[0, [2, 28]]
    torch.testing.assert_close(
        corners, torch.tensor([[0, 0, 44 / 6, 27 / 4], [44 * 5 / 6, 27 * 3 / 4, 44, 27]])
    )


def test_rows_without_the_pictures_are_in_processed_pixels() -> None:
    case, plain, model = built("mistral3")
    made = model.prepare([case.picture(0), case.picture(1)], case.texts[2])
    given = {k: v for k, v in made.tensors.items() if k != "position_ids"}
    inputs = model.inputs(**given)
    assert inputs.tokens.image_sizes == (((48, 32), (32, 48)),)
    assert torch.equal(inputs.tokens.roles, made.tokens.roles)
    assert torch.equal(inputs.tokens.row, made.tokens.row)
    assert (model(inputs) - plain(**made.tensors).logits).abs().max() <= 1e-5


def test_rows_of_unequal_length_are_refused() -> None:
    case, _, model = built("pixtral")
    made = model.prepare(case.picture(0), "<image> is a")
    ids = made.tensors["input_ids"].clone()
    ids[0, 7] = 3
    with pytest.raises(InputError, match="placeholders for 2 picture"):
        model.inputs(input_ids=ids, pixel_values=made.tensors["pixel_values"])
    ids = torch.cat([made.tensors["input_ids"][:, :7], made.tensors["input_ids"][:, 8:]], dim=1)
    with pytest.raises(InputError, match=r"rows of 6 to 12 \[IMG\]"):
        model.inputs(input_ids=ids, pixel_values=made.tensors["pixel_values"])


@pytest.mark.parametrize("name", ["pixtral", "mistral3"])
@pytest.mark.parametrize("hook, layer", [("layers.0.hook_out", 0), ("layers.1.hook_out", 1), ("hook_out", 1)])
def test_edits_of_the_tower_are_those_of_transformers(name: str, hook: str, layer: int) -> None:
    case, kept, model = built(name)
    plain = copy.deepcopy(kept)
    inputs = model.prepare([case.picture(0), case.picture(1)], case.texts[2])
    clean = model(inputs)

    def half(out: torch.Tensor) -> torch.Tensor:  # which no norm undoes
        return out * (torch.arange(out.shape[-1]) % 2)

    edited = plain.model.vision_tower.transformer.layers[layer]
    edited.register_forward_hook(lambda module, args, out: half(out), prepend=True)
    with torch.no_grad():
        want = plain(**inputs.tensors).logits
    got = model.run_with_hooks(inputs, [(f"vision_encoder.{hook}", lambda x, hook: half(x))])
    assert (got - want).abs().max() <= 1e-5
    assert (got - clean).abs().max() > 1e-2
    assert torch.equal(model(inputs), clean)


def test_tiles_are_written_as_transformers_writes_them() -> None:
    case, processor = cases()["idefics3"], idefics3_processor()
    pictures, texts = [[case.picture(1)], [case.picture(0), case.picture(1)]], [*case.texts[1:]]
    ours = process(4, processor, pictures, texts)
    theirs = processor(images=pictures, text=texts, padding=True, padding_side="left", return_tensors="pt")
    assert set(ours) == set(theirs) and ours["pixel_values"].shape == (2, 14, 3, 16, 16)
    for name, value in ours.items():
        assert torch.equal(value, torch.as_tensor(theirs[name])), name


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_tiles_come_first_and_the_whole_last(name: str) -> None:
    case, _, model = built(name)
    tokens = model.prepare(case.picture(0), "this <image> is a").tokens
    image = tokens.mask("image")[0]
    assert tokens.tile[0, image].tolist() == [n for n in (1, 2, 3, 4, 5, 6, 0) for _ in range(4)]
    assert tokens.row[0, image].tolist() == [0, 0, 1, 1] * 7 and tokens.col[0, image].tolist() == [0, 1] * 14
    boxes = tokens.box[0, image].view(7, 4, 4)
    assert boxes[0].tolist() == [[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20], [10, 10, 20, 20]]
    assert boxes[5, 3].tolist() == [50, 30, 60, 40]
    assert boxes[6].tolist() == [[0, 0, 30, 20], [30, 0, 60, 20], [0, 20, 30, 40], [30, 20, 60, 40]]
    strings, roles = tokens.strings[0], tokens.roles[0]
    assert strings.count("<fake_token_around_image>") == 8 and len(tokens.positions("eoi")) == 1
    markers = (roles == Role.BOI) | (roles == Role.ROW_BREAK)
    named = 2 if name == "smolvlm" else 10  # the marker and the name, which is one token or nine
    overview = 2 if name == "smolvlm" else 6  # "<global-img>": one token or five
    assert markers.sum() == 6 * named + overview + 2  # and a newline after the first row, two after the last


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "smolvlm-whole"])
@pytest.mark.parametrize("text", ["<image><image> is a", "<image> \n <image>", "is <image> it <image> ?"])
def test_pictures_side_by_side_are_told_apart_by_ids_alone(name: str, text: str) -> None:
    case, _, model = built(name)
    made = model.prepare([case.picture(0), case.picture(1)], text)
    given = {k: v for k, v in made.tensors.items() if k != "position_ids"}
    alone = model.inputs(**given).tokens
    for column in ("roles", "image_index", "row", "col", "tile"):
        assert torch.equal(getattr(alone, column), getattr(made.tokens, column)), column
    sides = ((16, 16), (16, 16)) if name == "smolvlm-whole" else ((48, 32), (32, 48))
    assert alone.image_sizes == (sides,)
    assert len(made.tokens.positions("eoi")) == 2


def test_tiles_that_make_no_rows_are_refused() -> None:
    case, _, model = built("smolvlm")
    made = model.prepare(case.picture(0), "<image> is a")
    ids, pixels = made.tensors["input_ids"][0].tolist(), made.tensors["pixel_values"]

    def without(position: int) -> torch.Tensor:
        return torch.tensor([ids[:position] + ids[position + 1 :]])

    with pytest.raises(InputError, match="tiles of 3, 4 <image>"):
        model.inputs(input_ids=without(ids.index(VOCABULARY["<image>"])), pixel_values=pixels)
    one_row = [i for i in ids if i not in (VOCABULARY["\n"], VOCABULARY["\n\n"])]
    with pytest.raises(InputError, match="6 tiles and 0 newlines"):
        model.inputs(input_ids=torch.tensor([one_row]), pixel_values=pixels)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "pixtral", "mistral3"])
def test_examples_of_a_batch_stand_alone(name: str) -> None:
    """Prompts with two, one and no pictures, taken apart again."""
    case, plain, model = built(name)
    pictures = [[case.picture(0), case.picture(1)], [], [case.picture(1)]]
    batch = model.prepare(pictures, ["<image> and <image> it", "what color is it", "<image> is a"])
    together = model(batch)
    for example in range(3):
        one = batch.select([example])
        assert ("pixel_values" in one.tensors) == bool(pictures[example])
        real = one.tokens.roles[0] != Role.PAD
        assert (model(one)[0, real] - together[example, real]).abs().max() <= 2e-5
        with torch.no_grad():
            assert (model(one) - plain(**one.tensors).logits)[0, real].abs().max() <= 1e-5
    pair = batch.select([2, 0])
    assert (model(pair) - together[[2, 0]])[pair.tokens.roles != Role.PAD].abs().max() <= 2e-5


@pytest.mark.parametrize(
    "name, label, marker, side, pixels",
    [
        ("idefics3", "8B", 128256, 13, 364),
        ("idefics3", "smolvlm-256M", 49189, 8, 512),
        ("idefics3", "smolvlm-2.2B", 49152, 9, 384),
        ("smolvlm", "2.2B", 49189, 9, 384),
    ],
)
def test_published_tiles_and_markers(name: str, label: str, marker: int, side: int, pixels: int) -> None:
    config = cases()[name].full[label]()
    layout = family_of(type(config).__name__.replace("Config", "ForConditionalGeneration")).layout(
        config, None
    )
    assert layout.boi_ids == layout.eoi_ids == {marker}
    assert (layout.plan.side, layout.plan.pixels) == (side, pixels)


def test_prompts_without_pictures_need_no_pixels() -> None:
    made = process(4, smolvlm_processor(), [[], []], ["what is it", "it is"])
    assert set(made) == {"input_ids", "attention_mask"}
    assert written(0, 0, 2) == "<fake_token_around_image><global-img><image><image><fake_token_around_image>"
