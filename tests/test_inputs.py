"""Images against text, and batches cut apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatelens.errors import InputError, ModelError
from gatelens.inputs import match_images
from gatelens.model import HookedVLM
from gatelens.tokens import position_ids
from tiny_models import make_picture


def test_matching() -> None:
    a, b, c = (make_picture(seed=s) for s in range(3))
    assert match_images(None, ["x", "y"], "<image>") == [[], []]
    assert match_images(a, ["<image>"], "<image>") == [[a]]
    assert match_images([a, b], ["<image> <image>"], "<image>") == [[a, b]]
    assert match_images([a, b], ["<image>", "<image>"], "<image>") == [[a], [b]]
    assert match_images([a, b, c], ["<image>", "x", "<image><image>"], "<image>") == [[a], [], [b, c]]
    assert match_images([None, a, [b, c]], ["x", "<image>", "<image><image>"], "<image>") == [[], [a], [b, c]]


@pytest.mark.parametrize(
    "images, texts, message",
    [
        (0, ["<image> a"], r"prompt 0 has 1 <image> and 0 picture\(s\): give 1 more"),
        (2, ["<image> a"], r"prompt 0 has 1 <image> and 2 picture\(s\): write <image>"),
        (1, ["a"], "prompt 0 has 0 <image> and 1"),
        (2, ["<image>", "<image><image>"], "prompt 1 has 2 <image> and 1"),
        ([1, 1], ["<image>", "a"], "prompt 1 has 0 <image> and 1"),
        ([1], ["<image>", "<image>"], "1 lists of pictures for 2 prompts"),
        (3, ["<image>", "a"], r"3 picture\(s\) for 2 prompts with 1 <image>"),
    ],
)
def test_mismatch_names_prompt_and_counts(images: Any, texts: list[str], message: str) -> None:
    one = make_picture()
    given = [one] * images if isinstance(images, int) else [[one] * n for n in images]
    with pytest.raises(InputError, match=message):
        match_images(given, texts, "<image>")


def test_a_person_is_told_to_write_image_in_every_family() -> None:
    with pytest.raises(InputError, match=r"prompt 0 has 0 <image> and 1 picture\(s\): write <image> where"):
        match_images(make_picture(), ["what is it"], "<|image_pad|>")
    for wrong in (3, {}):
        with pytest.raises(InputError, match=f"images is of type {type(wrong).__name__}: give"):
            match_images(wrong, ["<image>"], "<image>")  # type: ignore[arg-type]


def test_text_is_words(tiny: HookedVLM) -> None:
    for wrong in (None, make_picture(), 3):
        with pytest.raises(InputError, match="text must be a string or a list of strings"):
            tiny.prepare(make_picture(), wrong)  # type: ignore[arg-type]


def test_position_ids_are_those_of_generate() -> None:
    assert position_ids(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_select_gives_each_example_its_pictures(tiny: HookedVLM) -> None:
    pictures = [[make_picture(seed=0), make_picture(seed=1)], [], [make_picture(seed=2)]]
    inputs = tiny.prepare(pictures, ["<image> and <image>", "what is it", "<image> is a dog"])
    assert inputs.rows["pixel_values"] == (2, 0, 1)
    for rows, pixels in [([0], [0, 1]), ([2, 0], [2, 0, 1]), (slice(1, 3), [2])]:
        part = inputs.select(rows)
        want = [0, 1, 2][rows] if isinstance(rows, slice) else rows
        assert torch.equal(part.tensors["pixel_values"], inputs.tensors["pixel_values"][pixels])
        assert torch.equal(part.tensors["input_ids"], inputs.tensors["input_ids"][want])
        assert part.texts == tuple(inputs.texts[r] for r in want) and part.batch_size == len(want)
        assert torch.equal(tiny(part), tiny(part.to("cpu")))
    assert "pixel_values" not in inputs.select([1]).tensors
    assert not inputs.single and tiny.prepare(None, "what").single


def test_tensors_from_ids_alone_equal_prepare(tiny: HookedVLM) -> None:
    made = tiny.prepare([make_picture(), make_picture(seed=1)], ["<image> is", "this <image> is a dog"])
    ids, pixels = made.tensors["input_ids"], made.tensors["pixel_values"]
    given = tiny.inputs(input_ids=ids, pixel_values=pixels)  # padding is read off the ids
    assert given.tensors.keys() == made.tensors.keys()
    for name, value in made.tensors.items():
        assert torch.equal(given.tensors[name], value), name
    assert torch.equal(given.tokens.roles, made.tokens.roles)
    assert torch.equal(given.tokens.box.nan_to_num(-1), made.tokens.box.nan_to_num(-1))
    assert given.images == ((), ())
    assert tiny.inputs(input_ids=ids[1], pixel_values=pixels[1:]).batch_size == 1


def test_padding_on_the_right_is_no_text_without_a_mask_either(tiny: HookedVLM) -> None:
    made = tiny.prepare([make_picture(), make_picture(seed=1)], ["<image> is", "this <image> is a dog"])
    ids = made.tensors["input_ids"].clone()
    ids[0] = ids[0].roll(-2)
    with pytest.raises(InputError, match=r"prompt 0 ends in padding \(id 0\): pad on the left"):
        tiny.inputs(input_ids=ids, pixel_values=made.tensors["pixel_values"])


def test_tensor_errors(tiny: HookedVLM) -> None:
    made = tiny.prepare(make_picture(), "<image> is a dog")
    ids, pixels = made.tensors["input_ids"], made.tensors["pixel_values"]
    with pytest.raises(InputError, match=r"placeholders for 1 picture\(s\), pixel_values hold 0"):
        tiny.inputs(input_ids=ids)
    with pytest.raises(InputError, match="pixel_values hold 2"):
        tiny.inputs(input_ids=ids, pixel_values=pixels.repeat(2, 1, 1, 1))
    with pytest.raises(InputError, match="prompt 0 has 15 image placeholders"):
        first = made.tokens.positions("first_image")[0]
        tiny.inputs(input_ids=torch.cat([ids[:, :first], ids[:, first + 1 :]], dim=1), pixel_values=pixels)
    with pytest.raises(InputError, match="padded on its right"):
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        tiny.inputs(input_ids=ids, pixel_values=pixels, attention_mask=mask)
    with pytest.raises(InputError, match="attention_mask is"):
        tiny.inputs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones(1, 2))
    with pytest.raises(InputError, match="whole numbers"):
        tiny.inputs(input_ids=ids.float())
    with pytest.raises(InputError, match="the vocabulary ends at 43"):
        tiny.inputs(input_ids=torch.tensor([[1, 999]]))


def test_prepare_errors(tiny: HookedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="prompt 0 has 1 <image>"):
        tiny.prepare(None, "<image> is")
    with pytest.raises(InputError, match="at least one"):
        tiny.prepare(None, [])
    monkeypatch.setattr(tiny, "processor", None)
    with pytest.raises(ModelError, match="no processor"):
        tiny.prepare(None, "what")
