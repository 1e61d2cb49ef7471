"""Batches on a model they were not made for: refused, or the same there; and pixels that became NaN."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from case import Case, cases
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import gatelens as gl
from gatelens.errors import InputError
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from tiny_models import make_llava, make_llava_processor, make_picture

CASES = cases()
PICTURE = make_picture()
TEXT = "<image> this animal is a"


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Case, HookedVLM]:
    found = CASES[request.param]
    wrap = found.wrap or HookedVLM.from_module
    return found, wrap(found.model(), found.processor())


def llava(processor: Any = None, strategy: str = "default") -> HookedVLM:
    return HookedVLM.from_module(make_llava(strategy), processor)


def swapped() -> Any:
    """A processor whose tokenizer has two words of equal length the other way round."""
    processor = make_llava_processor()
    words = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    vocabulary = words["model"]["vocab"]
    vocabulary["dog"], vocabulary["cat"] = vocabulary["cat"], vocabulary["dog"]
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(words)),
        **{
            name: str(token)
            for name, token in processor.tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        },
    )
    return processor


WAYS: dict[str, Callable[[HookedVLM, VLMInputs], Any]] = {
    "call": lambda m, i: m(i),
    "run": lambda m, i: m.run(i, gl.knockout("text", "image")),
    "generate": lambda m, i: m.generate(i, max_new_tokens=2),
    "run_with_hooks": lambda m, i: m.run_with_hooks(i, [("blocks.0.hook_resid_pre", lambda x, hook: x)]),
    "run_with_cache": lambda m, i: m.run_with_cache(i),
    "sweep": lambda m, i: gl.sweep(m, i, {"a": [None]}, lambda x: x[:, -1, 0], progress=False),
    "explain": lambda m, i: gl.explain(m, i, [None]),
    "look": lambda m, i: gl.engine.look(m, i, "last", lambda *args: None),
    "engine.generate": lambda m, i: gl.engine.generate(m, i, max_new_tokens=2),
    "generate_many": lambda m, i: gl.engine.generate_many(m, i, [None], max_new_tokens=2),
    "last_logits": lambda m, i: gl.engine.last_logits(m, i, [None]),
    "compress": lambda m, i: gl.engine.compress(m, i, keep=1.0),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_family_s_inputs_are_refused_in_every_way(
    way: str, tiny_llava: HookedVLM, tiny_chameleon: HookedVLM
) -> None:
    theirs = tiny_chameleon.prepare(PICTURE, TEXT)
    with pytest.raises(
        InputError, match=r"these inputs were not made for HookedVLM\(llava, .*, and do not fit it: "
    ):
        WAYS[way](tiny_llava, theirs)
    with pytest.raises(InputError, match="inputs is a NoneType"):
        WAYS[way](tiny_llava, None)  # type: ignore[arg-type]
    WAYS[way](tiny_llava, tiny_llava.prepare(PICTURE, TEXT))


def test_what_differs_is_named(tiny_llava: HookedVLM) -> None:
    inputs = tiny_llava.prepare(PICTURE, "<image> a dog")
    brighter = make_llava_processor()
    brighter.image_processor.image_mean = [0.0, 0.0, 0.0]
    others = {
        r"pixels were scaled with image_mean \[0.48145466, .*\], here with \[0.0, 0.0, 0.0\]; prepare": llava(
            brighter
        ),
        r"id 28 is 'dog' there and 'cat' here; prepare them with it": llava(swapped()),
        r"prompt 0 has 16 image placeholders from position 1, and one picture takes 17": llava(
            strategy="full"
        ),
    }
    for message, other in others.items():
        with pytest.raises(InputError, match=message) as caught:
            other(inputs)
        assert "\n" not in str(caught.value)


def test_an_instance_of_the_same_configuration_takes_them(tiny_llava: HookedVLM, tmp_path: Path) -> None:
    pictures = [[PICTURE, make_picture(seed=1)], [], [make_picture(seed=2)]]
    inputs = tiny_llava.prepare(pictures, ["<image> and <image>", "what is it", "<image> is a dog"])
    tiny_llava.save_pretrained(tmp_path / "saved")
    want = tiny_llava(inputs)
    given = {name: value for name, value in inputs.tensors.items() if name != "position_ids"}
    for other in (
        llava(make_llava_processor()),
        llava(),  # without a tokenizer nobody knows its words
        HookedVLM.from_pretrained(tmp_path / "saved"),
        copy.deepcopy(tiny_llava),
    ):
        assert torch.equal(other(inputs), want)
        assert torch.equal(other(inputs.select([2])), tiny_llava(inputs.select([2])))
        assert torch.equal(other(pickle.loads(pickle.dumps(inputs))), want)
        assert torch.equal(tiny_llava(other.inputs(**given)), want)


def test_every_family_refuses_the_others_or_reads_the_same(case: tuple[Case, HookedVLM]) -> None:
    found, model = case
    made = [(tiny, tiny.prepare(PICTURE, TEXT)) for tiny in (llava(make_llava_processor()), model)]
    (tiny, inputs), (_, own) = made
    for runs, given in ((model, inputs), (tiny, own)):
        if found.name == "llava":
            assert runs(given).shape == (1, given.tokens.n_pos, model.cfg.d_vocab)
            continue
        with pytest.raises(InputError, match="these inputs were not made for") as caught:
            runs(given)
        assert "\n" not in str(caught.value)


def test_pixels_that_became_nan_are_refused_in_a_run(tiny: HookedVLM) -> None:
    inputs = tiny.prepare([[PICTURE], [PICTURE, PICTURE]], ["<image> is", "<image> and <image>"])
    pixels = inputs.tensors["pixel_values"].clone()
    pixels[2, 0, 0, :3] = float("nan")
    replaced = dataclasses.replace(inputs, tensors={**inputs.tensors, "pixel_values": pixels})
    inputs.tensors["pixel_values"][1, 0, 0, 0] = float("inf")  # in place
    for given, message in (
        (replaced, "picture 1 of prompt 1 has 3 value"),
        (inputs, "picture 0 of prompt 1 has 1 value"),
        (replaced.select([1]), "picture 1 of prompt 0 has 3 value"),
    ):
        for way in ("call", "run", "sweep", "look", "engine.generate"):
            with pytest.raises(InputError, match=message):
                WAYS[way](tiny, given)
    tiny(replaced.select([0]))


def test_pixels_coarser_than_the_model_are_refused(tiny_llava: HookedVLM) -> None:
    inputs = tiny_llava.prepare(PICTURE, TEXT)
    half = {**inputs.tensors, "pixel_values": inputs.tensors["pixel_values"].half()}
    with pytest.raises(
        InputError, match=r"pixel_values are torch.float16, coarser than the model's torch.float32"
    ):
        tiny_llava(dataclasses.replace(inputs, tensors=half))
