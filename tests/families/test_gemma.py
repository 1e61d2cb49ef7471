"""What is special in Gemma 3 and PaliGemma, beside what the conformance suite asks of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from case import Case
from cases import gemma3, paligemma

from gatelens.model import HookedVLM
from gatelens.tokens import position_ids

CASES = {case.name: case for case in (gemma3.CASE, *paligemma.CASES)}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def wrapped(case: Case) -> HookedVLM:
    return HookedVLM.from_module(case.model(), case.processor())


def test_tensors_are_the_processors_own(case: Case) -> None:
    model, processor = wrapped(case), case.processor()
    pictures = [case.picture(1), case.picture(0), case.picture(1)]
    nested = [[pictures[0]], pictures[1:]]
    written = [text.replace("<image>", model.layout.placeholder) for text in case.texts[1:]]
    images: Any = nested if case.name == "gemma3" else pictures
    want = processor(images=images, text=written, padding=True, padding_side="left", return_tensors="pt")
    got = model.prepare(nested, list(case.texts[1:])).tensors
    for name in ("input_ids", "attention_mask", "pixel_values", "token_type_ids"):
        assert torch.equal(got[name], want[name]), name


def test_prompts_without_a_picture(case: Case) -> None:
    model = wrapped(case)
    alone = model.prepare(text="what color is it")
    assert model(alone).isfinite().all() and not alone.tokens.mask("image").any()
    beside = model.prepare([[], [case.picture()]], ["what color is it", case.texts[0]])
    assert beside.tensors["pixel_values"].shape[0] == 1
    words = alone.tokens.n_pos
    logits = model(beside)[0, -words:]
    torch.testing.assert_close(logits, model(alone)[0], atol=1e-5, rtol=1e-4)


def test_token_types_of_the_caller_count(case: Case) -> None:
    """Someone may want plain causal attention, or a suffix that is causal: the token map follows."""
    model = wrapped(case)
    inputs = model.prepare(case.picture(), case.texts[0])
    assert (inputs.tokens.two_way >= 0).any()
    tensors = {k: v for k, v in inputs.tensors.items() if k != "token_type_ids"}
    causal = torch.zeros_like if case.name == "gemma3" else torch.ones_like
    plain = model.inputs(**tensors, token_type_ids=causal(inputs.tensors["input_ids"]))
    assert (plain.tokens.two_way == -1).all()
    assert (model(plain) - model(inputs)).abs().max() > 1e-4
    last = inputs.tokens.n_pos - 1
    types = causal(inputs.tensors["input_ids"])
    if case.name != "gemma3":
        types[:, :last] = 0
        half = model.inputs(**tensors, token_type_ids=types).tokens.two_way
        assert (half[0, :last] == 0).all() and half[0, last] == -1


def test_positions_of_paligemma_count_from_one() -> None:
    model = wrapped(CASES["paligemma"])
    inputs = model.prepare([[], [CASES["paligemma"].picture()]], ["it", "<image> it"])
    ids, mask = inputs.tensors["position_ids"], inputs.tensors["attention_mask"]
    assert torch.equal(ids, position_ids(mask) + 1)
    given = model.inputs(**{**inputs.tensors, "position_ids": ids + 3})
    assert torch.equal(given.tensors["position_ids"], ids + 3)  # the caller's own stay


def test_normed_queries_of_gemma3_are_transformers_own() -> None:
    case = CASES["gemma3"]
    model, plain = wrapped(case), case.model()
    inputs = model.prepare(case.picture(), case.texts[0])
    names = ["blocks.1.attn.hook_q_normed", "blocks.1.attn.hook_k_normed", "blocks.1.attn.hook_q"]
    _, cache = model.run_with_cache(inputs, names)
    seen = {}
    layer = plain.model.language_model.layers[1].self_attn
    for norm in ("q_norm", "k_norm"):
        getattr(layer, norm).register_forward_hook(lambda m, a, out, norm=norm: seen.update({norm: out}))
    with torch.no_grad():
        plain(**inputs.tensors)
    for name, norm in zip(names, ("q_norm", "k_norm"), strict=False):
        torch.testing.assert_close(cache[name], seen[norm].transpose(1, 2), atol=1e-5, rtol=1e-4)
    assert cache[names[0]].shape == cache[names[2]].shape == (1, inputs.tokens.n_pos, 4, 16)


def test_gemma3_processor_cannot_take_a_flat_list_of_pictures() -> None:
    """Why this family has a ``process`` of its own: transformers makes one prompt's pictures of a flat list."""
    case = CASES["gemma3"]
    texts = ["<start_of_image> it", "<start_of_image> is"]
    with pytest.raises(ValueError, match="should be the same as the number of images"):
        case.processor()(images=[case.picture(0), case.picture(1)], text=texts, padding=True)


def test_paligemma_processor_splits_the_words_of_a_prompt_without_a_picture() -> None:
    """Why this family has one too: beside a prompt with a picture, <bos> lands after the sixth character."""
    case = CASES["paligemma"]
    processor = case.processor()
    _, texts, *_ = processor.prepare_inputs_layout(images=[case.picture()], text=["what color", "<image> it"])
    assert texts[0] == "what c<bos>olor\n" and texts[1] == "<image><bos> it\n"
