"""Images against text, and batches cut apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatelens.errors import InputError, ModelError
from gatelens.inputs import match_images
from gatelens.model import HookedVLM
from gatelens.tokens import position_ids
from model_helpers import PICTURES, TEXTS
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


# ---------------------------------------------------------------- as token ids
def test_a_batch_has_what_token_ids_have(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(PICTURES, TEXTS)
    ids = inputs.tensors["input_ids"]
    assert inputs.shape == ids.shape and inputs.ndim == inputs.dim() == 2 and len(inputs) == 3
    assert inputs.device == ids.device and inputs.dtype == torch.long and inputs.size(1) == ids.shape[1]
    assert (
        torch.equal(inputs[0], ids[0])
        and torch.equal(inputs[:, -1], ids[:, -1])
        and inputs[1, 2] == ids[1, 2]
    )
    copy = inputs.clone()
    copy.tensors["input_ids"][0, 0] = 3
    assert inputs.tensors["input_ids"][0, 0] == ids[0, 0] != 3 and torch.equal(inputs.cpu().ids, ids)
    with pytest.raises(AttributeError, match=r"a batch of prompts has no 'repeat'.*inputs\.ids"):
        inputs.repeat(2)
    assert len(tiny.prepare(PICTURES[1], TEXTS[1]).expand(4, -1)) == 4
    with pytest.raises(InputError, match="only one prompt is repeated"):
        inputs.expand(6, -1)


@pytest.mark.parametrize(
    "key", [slice(1, 3), [2, 0], torch.tensor([1]), [False, True, False], (slice(0, 2), slice(None))]
)
def test_some_prompts_are_a_batch_with_their_pictures(tiny: HookedVLM, key: Any) -> None:
    inputs = tiny.prepare(PICTURES, TEXTS)
    some = inputs[key]
    want = tiny(inputs)[key[0] if isinstance(key, tuple) else key]
    real = some.tensors["attention_mask"].bool()
    assert torch.equal(some.ids, inputs.ids[key]) and (tiny(some) - want)[real].abs().max() < 1e-5


def test_a_loop_gives_prompts_with_their_pictures(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(PICTURES, TEXTS)
    logits = tiny(inputs)
    for number, one in enumerate(inputs):
        assert one.shape == (1, inputs.shape[1]) and len(one.images[0]) == len(PICTURES[number])
        real = one.tensors["attention_mask"][0].bool()
        assert (tiny(one)[0] - logits[number])[real].abs().max() < 1e-5


def test_the_first_positions_are_a_prompt(tiny: HookedVLM) -> None:
    """Causal: what comes later changes nothing. A picture is never cut."""
    inputs = tiny.prepare(PICTURES, TEXTS)
    n = inputs.shape[1]
    short = inputs[:, : n - 2]
    real = short.tensors["attention_mask"].bool()
    assert short.shape == (3, n - 2) and (tiny(short) - tiny(inputs)[:, :-2])[real].abs().max() < 1e-5
    assert inputs[:, :-2] is not inputs and inputs[:] is inputs and inputs[:, : n + 5] is inputs
    one = tiny.prepare(PICTURES[0], TEXTS[0])
    first, second = (one.tokens.positions(f"image[{i}]") for i in (0, 1))
    with pytest.raises(
        InputError, match=r"positions :\d+ cut picture 0 of prompt 0, which stands at \d+\.\.\d+"
    ):
        one[:, : first[-1]]
    half = one[:, : second[0] - 1]  # the second picture's begin marker is left out with it
    assert len(half.images[0]) == 1 and (tiny(half) - tiny(one)[:, : half.shape[1]]).abs().max() < 1e-5
    none = one[:, : first[0] - 1]
    assert (
        "pixel_values" not in none.tensors and (tiny(none) - tiny(one)[:, : none.shape[1]]).abs().max() < 1e-5
    )
    with pytest.raises(InputError, match="take them from the first on"):
        inputs[:, 3:]
    with pytest.raises(InputError, match="take them from the first on"):
        inputs[:, :0]


def test_equal_is_the_same_id_beside_the_same_pictures(tiny: HookedVLM) -> None:
    one = tiny.prepare(PICTURES[1], TEXTS[1])
    other = tiny.prepare(make_picture(24, 16, 9), TEXTS[1])
    both = tiny.prepare([PICTURES[1], [make_picture(24, 16, 9)]], [TEXTS[1], TEXTS[1]])
    assert (one == one.clone()).all() and torch.equal(one.ids, other.ids) and not (one == other).any()
    assert (both == one).all(dim=1).tolist() == [True, False] and (one != "text")


# ---------------------------------------------------------------- how it looks
def test_reprs_are_compact(tiny: HookedVLM) -> None:
    inputs = tiny.prepare([PICTURES[1]] * 12, [TEXTS[1]] * 12)
    _, cache = tiny.run_with_cache(inputs)
    for shown in (
        inputs,
        inputs.tokens,
        cache,
        tiny,
        tiny.generate(inputs, max_new_tokens=2, return_type="ids"),
    ):
        text = repr(shown)
        assert len(text) <= 1000 and text.count("\n") < 10 and " object at 0x" not in text
    assert "12 x" in repr(inputs) and "12 picture(s)" in repr(inputs) and "image 192" in repr(inputs.tokens)
    html = inputs._repr_html_()
    assert html.count("<img") == 4 and "<table>" in html and "8 more" in html
    assert "<table>" in inputs.tokens._repr_html_()
