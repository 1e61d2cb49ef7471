"""Calls of prepare, inputs and their neighbours that mean nothing: one line each, naming offender and fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from case import Case, cases

from gatelens.errors import GatelensError, InputError, ModelError
from gatelens.families import token_map
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from tiny_models import make_llava, make_llava_processor, make_picture

CASES = cases()
PICTURE = make_picture()
TEXT = "<image> this animal is a"


@pytest.fixture(scope="module")
def batch(tiny: HookedVLM) -> VLMInputs:
    """Two prompts of one picture each, the second one padded."""
    return tiny.prepare([PICTURE, make_picture(seed=1)], [TEXT, "<image> is"])


def one_line(error: BaseException) -> str:
    assert isinstance(error, GatelensError) and "\n" not in str(error)
    return str(error)


PREPARE: dict[str, tuple[tuple[Any, ...], str]] = {
    "images 5": ((5, TEXT), "images is of type int: give a picture"),
    "an image 5": (([5], TEXT), "picture 0 of prompt 0 is a int"),
    "text None": ((PICTURE, None), "text must be a string or a list of strings"),
    "text bytes": ((PICTURE, b"<image>"), "text must be a string"),
    "a text None": ((PICTURE, [None]), "text must be a string"),
    "no text": ((None, []), "text must be .* at least one"),
    "a generator": ((PICTURE, (t for t in "ab")), "text must be a string"),
    "half a character": (
        (PICTURE, ["<image>", "a \ud83d"]),
        r"text 1 has an unpaired surrogate, '\\ud83d', at index 2",
    ),
    "chat yes": ((PICTURE, TEXT, "yes"), "chat='yes': give True or False"),
    "chat None": ((PICTURE, TEXT, None), "chat=None: give True or False"),
}


@pytest.mark.parametrize("call", PREPARE)
def test_prepare(call: str, tiny: HookedVLM) -> None:
    args, message = PREPARE[call]
    with pytest.raises(InputError, match=message) as caught:
        tiny.prepare(*args)
    one_line(caught.value)


def test_a_processor_that_stumbles_is_one_line(
    tiny_llava: HookedVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(**kwargs: Any) -> Any:
        raise IndexError("list index out of range\nand more")

    monkeypatch.setattr(tiny_llava, "processor", stumble)
    with pytest.raises(
        InputError, match="the processor cannot take these pictures and prompts: IndexError: list"
    ):
        tiny_llava.prepare(PICTURE, TEXT)
    monkeypatch.setattr(tiny_llava, "processor", lambda **kwargs: {"pixel_values": 1})
    with pytest.raises(ModelError, match="the processor gives no input_ids"):
        tiny_llava.prepare(PICTURE, TEXT)


def test_what_a_processor_makes_beside_is_left_out(
    tiny_llava: HookedVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def more(**kwargs: Any) -> Any:
        return {**make_llava_processor()(**kwargs), "special_tokens_mask": torch.ones(1, 1)}

    monkeypatch.setattr(tiny_llava, "processor", more)
    assert "special_tokens_mask" not in tiny_llava.prepare(PICTURE, TEXT).tensors


def with_hole(mask: Any) -> Any:
    mask = mask.clone()
    mask[0, 5] = 0
    return mask


# one argument of model.inputs changed, from the tensors of a batch: (its name, what to make of it, message)
INPUTS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "ids float": ("input_ids", lambda x: x.float(), "torch.float32: give whole numbers"),
    "ids bool": ("input_ids", lambda x: x > 0, "torch.bool: give whole numbers"),
    "ids complex": ("input_ids", lambda x: x.to(torch.complex64), "torch.complex64: give whole numbers"),
    "ids None": ("input_ids", lambda x: None, "input_ids is a NoneType, not a tensor"),
    "ids text": ("input_ids", lambda x: "x", "input_ids is a str, not a tensor"),
    "ids ragged": ("input_ids", lambda x: [[1, 2], [1]], "not a tensor: give one, or a list whose rows are"),
    "ids number": ("input_ids", lambda x: 5, "input_ids is a single number"),
    "ids of three axes": ("input_ids", lambda x: x[None], "give whole numbers"),
    "no prompts": ("input_ids", lambda x: [], r"input_ids of shape \(0,\)|\(1, 0\)"),
    "no ids": ("input_ids", lambda x: x[:, :0], r"input_ids of shape \(2, 0\)"),
    "ids too high": ("input_ids", lambda x: x + 1000, "the vocabulary ends at 43"),
    "ids below 0": ("input_ids", lambda x: x - 100, "input_ids hold -100"),
    "ids beyond 64 bits": ("input_ids", lambda x: [[10**30]], "not a tensor"),
    "ids on meta": ("input_ids", lambda x: x.to("meta"), "device 'meta', which holds no values"),
    "ids sparse": ("input_ids", lambda x: x.to_sparse(), "not a dense tensor"),
    "mask of another shape": ("attention_mask", lambda x: x[:, 1:], "give both the same shape"),
    "mask of one prompt": ("attention_mask", lambda x: x[0], "give both the same shape"),
    "mask of four axes": ("attention_mask", lambda x: x[:, None, None], "give both the same shape"),
    "mask of 2": ("attention_mask", lambda x: 2 * x, "attention_mask holds 2: give 0 at padding and 1 at tokens"),
    "mask below 0": ("attention_mask", lambda x: -x, "attention_mask holds -1"),
    "mask of NaN": ("attention_mask", lambda x: x * float("nan"), "attention_mask holds nan"),
    "mask of 0": ("attention_mask", lambda x: 0 * x, "prompt 0 is only padding: give it a token"),
    "mask with a hole": ("attention_mask", with_hole, "prompt 0 is padded on its right or inside"),
    "mask text": ("attention_mask", lambda x: "x", "attention_mask is a str, not a tensor"),
    "pixels text": ("pixel_values", lambda x: "x", "pixel_values is a str, not a tensor"),
    "pixels ragged": ("pixel_values", lambda x: [[1.0], [1.0, 2.0]], "pixel_values is a list, not a tensor"),
    "pixels in a list": ("pixel_values", lambda x: list(x), "pixel_values is a list, not a tensor"),
    "pixel objects": ("pixel_values", lambda x: np.array([object()]), "pixel_values is a ndarray, not a tensor"),
    "pixels of 8 bits": ("pixel_values", lambda x: x.byte(), "pixel_values are torch.uint8: give what the image proc"),
    "pixels bool": ("pixel_values", lambda x: x > 0, "pixel_values are torch.bool"),
    "pixels complex": ("pixel_values", lambda x: x.to(torch.complex64), "pixel_values are torch.complex64"),
    "one channel": ("pixel_values", lambda x: x[:, :1], r"are \(2, 1, 16, 16\): give \[pictures, 3, 16, 16\]"),
    "two channels": ("pixel_values", lambda x: x[:, :2], r"are \(2, 2, 16, 16\)"),
    "channels last": ("pixel_values", lambda x: x.permute(0, 2, 3, 1), r"are \(2, 16, 16, 3\)"),
    "half a picture": ("pixel_values", lambda x: x[..., :8], r"are \(2, 3, 16, 8\)"),
    "no batch axis": ("pixel_values", lambda x: x[0], r"are \(3, 16, 16\)"),
    "no pictures": ("pixel_values", lambda x: x[:0], r"are empty, \(0, 3, 16, 16\)"),
    "a picture less": ("pixel_values", lambda x: x[:1], "pixel_values hold 1"),
    "pixels on meta": ("pixel_values", lambda x: x.to("meta"), "device 'meta'"),
    "positions below 0": ("position_ids", lambda x: -1 - x, "whole numbers from 0 on"),
    "positions float": ("position_ids", lambda x: x.float(), "whole numbers from 0 on"),
    "positions short": ("position_ids", lambda x: x[:, 1:], "one per token"),
    "an unknown name": ("pixel_value", lambda x: torch.ones(2), "not an input .* did you mean 'pixel_values'"),
    "labels": ("labels", lambda x: torch.ones(2), "labels is not an input of"),
    "logits_to_keep": ("logits_to_keep", lambda x: 1, "logits_to_keep is not an input of"),
    "use_cache": ("use_cache", lambda x: True, "use_cache is not an input of"),
    "video": ("pixel_values_videos", lambda x: torch.ones(2), "video is not supported, give pictures"),
    "originals 5": ("images", lambda x: 5, "images must be a list of 2"),
    "originals flat": ("images", lambda x: [PICTURE, PICTURE], "images must be a list of 2"),
    "originals of one prompt": ("images", lambda x: [[PICTURE]], "images must be a list of 2"),
    "originals missing": ("images", lambda x: [["no.png"], [PICTURE]], "picture 0 of prompt 0: no such file"),
    "originals too many": ("images", lambda x: [[PICTURE, PICTURE], [PICTURE]], "2 were given"),
}  # fmt: skip


@pytest.mark.parametrize("call", INPUTS)
def test_inputs(call: str, tiny: HookedVLM, batch: VLMInputs) -> None:
    name, change, message = INPUTS[call]
    given: dict[str, Any] = {k: v for k, v in batch.tensors.items() if k != "position_ids"}
    given[name] = change(batch.tensors.get(name))
    with pytest.raises(InputError, match=message) as caught:
        tiny.inputs(**given)
    one_line(caught.value)


@pytest.mark.parametrize("kind", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.int])
def test_what_is_a_tensor_by_another_name_is_taken(kind: Any, tiny: HookedVLM, batch: VLMInputs) -> None:
    given = {k: batch.tensors[k] for k in ("input_ids", "attention_mask", "pixel_values")}
    ids, mask = kind(given["input_ids"]), kind(given["attention_mask"])
    pixels = given["pixel_values"].tolist() if kind is torch.Tensor.tolist else given["pixel_values"].double()
    assert torch.equal(tiny(tiny.inputs(ids, mask, pixels)), tiny(tiny.inputs(**given)))


WORDS: dict[str, tuple[Callable[[HookedVLM], Any], str]] = {
    "decode 5": (lambda m: m.decode(5), "ids is a int: give token ids"),  # type: ignore[arg-type]
    "decode None": (lambda m: m.decode(None), "ids is a NoneType"),  # type: ignore[arg-type]
    "decode text": (lambda m: m.decode("dog"), "ids is a str"),
    "decode words": (lambda m: m.decode(["dog"]), "ids is a list, not a tensor|ids is a str"),
    "decode half ids": (lambda m: m.decode([1.5]), "give whole numbers"),
    "decode truth": (lambda m: m.decode([True]), "torch.bool: give whole numbers"),
    "decode below 0": (lambda m: m.decode([-1]), "ids hold -1..-1: the vocabulary ends at 43"),
    "decode too high": (lambda m: m.decode([[5], [44]]), "ids hold 44..44"),
    "decode three axes": (lambda m: m.decode(torch.ones(1, 2, 3).long()), "give whole numbers"),
    "decode one number": (lambda m: m.decode(torch.tensor(5)), "ids is a Tensor"),
    "decode a mixture": (lambda m: m.decode([[1], 2]), "ids is a single number"),
    "to_tokens 5": (lambda m: m.to_tokens(5), "text must be a string"),  # type: ignore[arg-type]
    "to_tokens None": (lambda m: m.to_tokens(None), "text must be a string"),  # type: ignore[arg-type]
    "to_tokens nothing": (lambda m: m.to_tokens([]), "at least one"),
    "to_tokens numbers": (lambda m: m.to_tokens([1]), "text must be a string"),  # type: ignore[list-item]
    "to_tokens half a character": (lambda m: m.to_tokens("\udc80"), "text 0 has an unpaired surrogate"),
    "to_single_token 5": (lambda m: m.to_single_token(5), "word is a int: give a string"),  # type: ignore[arg-type]
    "to_single_token list": (lambda m: m.to_single_token(["dog"]), "word is a list"),  # type: ignore[arg-type]
    "to_single_token nothing": (lambda m: m.to_single_token(""), r"'' is not one token but \[\]"),
    "to_single_token half": (lambda m: m.to_single_token("\ud800"), "word 0 has an unpaired surrogate"),
    "as_turn 5": (lambda m: m.as_turn(5), "text is a int: give a string"),  # type: ignore[arg-type]
    "as_turn None": (lambda m: m.as_turn(None), "text is a NoneType"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", WORDS)
def test_words(call: str, tiny_llava: HookedVLM) -> None:
    do, message = WORDS[call]
    with pytest.raises(InputError, match=message) as caught:
        do(tiny_llava)
    one_line(caught.value)


def test_rows_of_ids_need_not_be_equally_long(tiny_llava: HookedVLM) -> None:
    dog, cat = (tiny_llava.to_single_token(word) for word in ("dog", "cat"))
    assert (
        tiny_llava.decode([[dog, cat], [cat]])
        == ["dog cat", "cat"]
        == tiny_llava.decode([torch.tensor([dog, cat]), np.array([cat])])
    )
    assert tiny_llava.decode([dog]) == ["dog"] and tiny_llava.decode([]) == [""]


def test_examples_count_from_the_end_too(batch: VLMInputs) -> None:
    for examples in ([-1], torch.tensor([1]), np.array([1]), slice(-1, None)):
        part = batch.select(examples)  # type: ignore[arg-type]
        assert torch.equal(part.tensors["pixel_values"], batch.tensors["pixel_values"][1:])
        assert torch.equal(part.tensors["input_ids"], batch.tensors["input_ids"][1:])


@pytest.mark.parametrize("device", ["fast", "meta", None, []])
def test_devices(device: Any, batch: VLMInputs) -> None:
    with pytest.raises(InputError, match="cannot be used") as caught:
        batch.to(device)
    one_line(caught.value)


def test_a_model_without_weights_runs_nothing() -> None:
    model = HookedVLM.from_module(make_llava().to("meta"), make_llava_processor())
    with pytest.raises(ModelError, match=r"has no weights \(device 'meta'\): load it before you run it"):
        model.prepare(PICTURE, TEXT)


def test_token_maps(tiny: HookedVLM) -> None:
    ids = torch.tensor([[1, 9, 10]])
    for args, message in (
        (([1, 2],), "input_ids are list: give a tensor"),
        ((ids[0],), r"input_ids are \(3,\)"),
        ((ids, torch.ones(1, 2)), "give both the same shape"),
        ((ids, 3 * torch.ones(1, 3)), r"attention_mask holds 3"),
        ((ids, None, [[], []]), "image_sizes has 2 entries for 1 prompts"),
        ((ids, None, None, []), "strings has 0 entries"),
    ):
        with pytest.raises(InputError, match=message):
            token_map(tiny.layout, *args)


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Case, HookedVLM]:
    found = CASES[request.param]
    wrap = found.wrap or HookedVLM.from_module
    return found, wrap(found.model(), found.processor())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_not_finite_are_named(value: float, case: tuple[Case, HookedVLM]) -> None:
    found, model = case
    pictures = [[found.picture(0)], [found.picture(0), found.picture(1)]]
    good = model.prepare(pictures, [found.texts[0], found.texts[2]])
    given = {
        name: tensor for name, tensor in good.tensors.items() if name not in ("position_ids", "pixel_values")
    }
    pixels = good.tensors["pixel_values"].clone()
    pixels.view(-1)[-2:] = value  # of the last row, which in every family is a picture of prompt 1
    owner = "a picture of prompt 1" if model.layout.pixels == "example" else "picture 1 of prompt 1"
    with pytest.raises(
        InputError, match=f"^{owner} has 2 value.s. in pixel_values that are NaN or inf: prepare"
    ):
        model.inputs(**given, pixel_values=pixels)
    model.inputs(**given, pixel_values=good.tensors["pixel_values"])


def test_pixels_of_another_shape_are_refused(case: tuple[Case, HookedVLM]) -> None:
    found, model = case
    if found.wrap is not None:
        pytest.skip("the encoder of a model of parts is the caller's")
    good = model.prepare(found.picture(0), found.texts[0])
    given = {
        name: tensor for name, tensor in good.tensors.items() if name not in ("position_ids", "pixel_values")
    }
    pixels = good.tensors["pixel_values"]
    wrong = (
        [pixels[:, :-1]]
        if pixels.ndim == 2
        else [pixels[..., :1, :, :], pixels.flatten(), pixels[..., :2, :, :]]
    )
    for other in wrong:
        with pytest.raises(InputError, match=r"pixel_values are .* as the image processor does") as caught:
            model.inputs(**given, pixel_values=other)
        one_line(caught.value)


def test_tensors_beside_pixels_are_checked(case: tuple[Case, HookedVLM]) -> None:
    found, model = case
    good = model.prepare(found.picture(0), found.texts[0])
    own = {"input_ids", "attention_mask", "pixel_values", "position_ids"}
    for name in good.tensors.keys() - own:
        tensor = good.tensors[name]
        given = {key: value for key, value in good.tensors.items() if key != "position_ids"}
        for other in ("x", tensor.float() + 0.5, tensor[..., :-1], torch.cat([tensor, tensor])):
            if (
                name == "pixel_attention_mask"
                and isinstance(other, torch.Tensor)
                and other.is_floating_point()
            ):
                continue  # a mask may be of any type
            with pytest.raises(InputError) as caught:
                model.inputs(**{**given, name: other})
            one_line(caught.value)
