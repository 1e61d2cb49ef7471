"""What Emu3 has that other families do not: any shape, a header with the size, pictures as ids with row breaks."""

from __future__ import annotations

import copy

import pytest
import torch
from cases.emu3 import CASE, VOCABULARY, full, model, processor

from gatelens.errors import InputError, ModelError
from gatelens.families import family_of
from gatelens.model import HookedVLM
from gatelens.tokens import Role

FAMILY = family_of("Emu3ForConditionalGeneration")


@pytest.fixture(scope="module")
def emu3() -> HookedVLM:
    return HookedVLM.from_module(model(), processor())


def test_a_picture_is_header_rows_and_markers(emu3: HookedVLM) -> None:
    inputs = emu3.prepare(CASE.picture(1), "this <image> is a")
    names, tokens = inputs.tokens.strings[0], inputs.tokens
    start = names.index("<|image start|>")
    assert names[start : start + 5] == ("<|image start|>", "3", "*", "6", "<|image token|>")
    assert tokens.positions("boi") == list(range(start, start + 5))
    assert tokens.mask("image").sum() == 18 and tokens.mask("row_break").sum() == 3 + 1  # end of frame
    assert tokens.row[0].max() == 2 and tokens.col[0].max() == 5
    gate = tokens.positions("gate")
    assert [names[p] for p in gate] == ["<|image end|>"] and names[gate[0] - 1] == "<|extra_201|>"
    assert tokens.image_sizes == (((45, 27),),)
    last = tokens.positions("last_image")[0]
    assert tokens.box[0, last].tolist() == [37.5, 18, 45, 27]


def test_a_picture_written_as_codes_is_the_same_picture(emu3: HookedVLM) -> None:
    made = emu3.prepare(CASE.picture(1), "this <image> is a")
    ids = made.tensors["input_ids"].clone()
    codes = emu3.hf.model.get_image_tokens(made.tensors["pixel_values"], made.tensors["image_sizes"])
    ids[ids == VOCABULARY["<image>"]] = codes.long()
    drawn = emu3.inputs(input_ids=ids)
    for name in ("roles", "row", "col", "image_index"):
        assert torch.equal(getattr(drawn.tokens, name), getattr(made.tokens, name)), name
    assert drawn.tokens.image_sizes == (((48, 24),),)  # of the model's own pixels: no other are known
    assert (emu3(drawn) - emu3(made)).abs().max() <= 1e-5


def test_a_picture_half_drawn(emu3: HookedVLM) -> None:
    code, break_ = VOCABULARY["<|visual token 000003|>"], VOCABULARY["<|extra_200|>"]
    start, header = VOCABULARY["<|image start|>"], VOCABULARY["<|image token|>"]
    ids = [1, VOCABULARY["red"], start, header, code, code, code, break_, code]
    tokens = emu3.inputs(input_ids=torch.tensor([ids])).tokens
    roles = [Role.SYSTEM, Role.SYSTEM, Role.BOI, Role.BOI, *[Role.IMAGE] * 3, Role.ROW_BREAK, Role.IMAGE]
    assert tokens.roles[0].tolist() == roles
    assert tokens.row[0, 8] == 1 and tokens.col[0, 8] == 0 and tokens.box[0, 8].tolist() == [0, 8, 8, 16]


def test_tensors_without_the_picture(emu3: HookedVLM) -> None:
    made = emu3.prepare(CASE.picture(1), "this <image> is a").tensors
    tensors = {name: made[name] for name in ("input_ids", "pixel_values", "image_sizes")}
    tokens = emu3.inputs(**tensors).tokens
    assert tokens.image_sizes == (((48, 24),),) and tokens.box[0, tokens.positions("last_image")[0], 2] == 48
    del tensors["image_sizes"]
    with pytest.raises(InputError, match="give image_sizes"):
        emu3.inputs(**tensors)


def test_codes_depend_on_the_shapes_prepared_together(emu3: HookedVLM) -> None:
    """A fact of transformers, told in the family's docstring: should it change, tell it no longer."""
    alone, beside = (
        emu3.prepare([CASE.picture(1), *others], "<image>" * (1 + len(others))).tensors
        for others in ([], [CASE.picture(0)])
    )
    encode = emu3.hf.model.vqmodel.encode
    a, b = (
        encode(x["pixel_values"][:1], x["image_sizes"][:1]).last_hidden_state[..., :3, :6]
        for x in (alone, beside)
    )
    assert (a - b).abs().max() > 1e-4


def test_a_config_without_its_vocabulary_is_refused() -> None:
    config = copy.deepcopy(full())
    del config.vocabulary_map["<|extra_200|>"]
    with pytest.raises(ModelError, match=r"no '<\|extra_200\|>' in vocabulary_map"):
        FAMILY.layout(config, None)
    config.vocabulary_map = None
    with pytest.raises(ModelError, match="no '<image>' in vocabulary_map"):
        FAMILY.layout(config, None)


def test_the_published_vocabulary() -> None:
    layout = FAMILY.layout(full(), None)
    assert (layout.boi_id, layout.eoi_id, layout.inner_ids) == (151852, 151853, frozenset({151846, 151847}))
    assert layout.drawn.ids == frozenset(range(151854, 184622)) and layout.drawn.cell == 8
