"""Pairs: one fact differs and nothing else; corruptions do what they say; folders name theirs in columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

import gatelens as gl
from gatelens.data import Example, Pair, Pairs, scenes
from gatelens.errors import DataError, GatelensError
from tiny_models import make_picture

FACTS = ("name", "color", "shape", "side")
ASKED = {"class": "name", "presence": "name", "relation": "name"}


def scene_pairs(differ: str, split: str = "test", n: int = 12) -> Pairs:
    return gl.pairs(gl.data.load("emoji-scenes", split), differ, n=n)


def objects(example: Example) -> tuple[Any, ...]:
    return tuple(example.meta["objects"])


@pytest.mark.parametrize("differ", ["class", "color", "shape", "side", "presence", "relation", "count"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_differ_in_one_fact(differ: str, split: str) -> None:
    for pair in scene_pairs(differ, split):
        assert pair.clean.prompt == pair.corrupt.prompt and pair.target != pair.base
        assert (pair.target, pair.base) == (pair.clean.answers[0], pair.corrupt.answers[0])
        mine, theirs = objects(pair.clean), objects(pair.corrupt)
        a, b = np.asarray(pair.clean.image), np.asarray(pair.corrupt.image)
        apart = np.abs(a.astype(int) - b).sum(-1) > 0
        if differ == "count":
            assert len(mine) == 3 and len(theirs) == 2 and set(theirs) < set(mine)
            boxes = [o.box for o in mine if o not in theirs]
        else:
            changed = [(o, p) for o, p in zip(mine, theirs, strict=True) if o != p]
            assert len(changed) == 1
            o, p = changed[0]
            fact = ASKED.get(differ, differ)
            assert [f for f in FACTS if getattr(o, f) != getattr(p, f)] == [fact]
            assert o.box == p.box or (differ == "side" and o.box[1::2] == p.box[1::2])
            boxes = [o.box, p.box]
        where = np.zeros_like(apart)
        for x0, y0, x1, y1 in boxes:
            where[y0:y1, x0:x1] = True
        assert apart.any() and not (apart & ~where).any()  # placement and background are the same
        outside = [scenes.is_held_out(o.name, o.color, o.shape) != (split == "test") for o in theirs]
        assert any(outside) == bool(pair.note)


def test_the_answer_is_what_the_scene_says() -> None:
    for differ in ("color", "shape", "side"):
        for pair in scene_pairs(differ):
            for example, answer in ((pair.clean, pair.target), (pair.corrupt, pair.base)):
                assert (
                    getattr(objects(example)[0], differ) == answer
                    and objects(example)[0].name in example.prompt
                )
    for pair in scene_pairs("relation"):
        asked = next(o.name for o in objects(pair.clean) if f"the {o.name}?" in pair.clean.prompt)
        assert {o.name for o in objects(pair.clean)} == {asked, pair.target}
        assert {o.name for o in objects(pair.corrupt)} == {asked, pair.base}
    for pair in scene_pairs("presence"):
        asked = pair.clean.prompt.split("there a ")[1].split(" in")[0]
        present = [asked in {o.name for o in objects(e)} for e in (pair.clean, pair.corrupt)]
        assert present == [True, False] and (pair.target, pair.base) == ("yes", "no")


def test_it_is_said_where_a_counterpart_leaves_the_split() -> None:
    found = gl.pairs("emoji-scenes", "color", n=5)
    assert (
        "5 of 5 pairs: the corrupt picture's class, colour and shape are a combination of training"
        in repr(found)
    )
    both = [objects(example)[0] for example in (found[0].clean, found[0].corrupt)]
    assert [scenes.is_held_out(o.name, o.color, o.shape) for o in both] == [True, False]
    assert not any(pair.note for pair in scene_pairs("class"))
    assert not any(pair.note for pair in scene_pairs("color", "train"))


def test_the_same_seed_gives_the_same_pairs() -> None:
    a, b, c = (gl.pairs("emoji-scenes", n=6, seed=seed) for seed in (3, 3, 4))
    same = [np.array_equal(p.corrupt.image, q.corrupt.image) for p, q in zip(a, b, strict=True)]
    assert all(same) and repr(a) == repr(b) != repr(c)
    first = gl.data.load("emoji-scenes").examples("class", limit=3, seed=3)
    assert all(np.array_equal(p.clean.image, e.image) for p, e in zip(a, first, strict=False))


def test_a_list_of_pairs() -> None:
    found = scene_pairs("class", n=9)
    assert len(found) == 9 and isinstance(found[0], Pair) and isinstance(found[2:5], Pairs)
    left = found.without(0, 8)
    assert list(left) == list(found[1:8]) and found[-1] is found[8]
    assert repr(found).splitlines()[0] == "9 pairs of emoji-scenes that differ in class"
    assert "… 3 more" in repr(found) and repr(found[:0]) == "no pairs"
    sheet = np.asarray(found.show(n=3, size=64))
    for pair, x in zip(found[:3], (8, 156, 304), strict=False):
        assert np.array_equal(sheet[6:70, x : x + 64], np.asarray(pair.clean.image))
        assert np.array_equal(sheet[6:70, x + 68 : x + 132], np.asarray(pair.corrupt.image))
    assert repr(found[0]) == "Pair('sunflower' → 'panda', '<image>this is a', differ in class)"


def test_an_object_is_erased_and_nothing_else() -> None:
    for fill in ("background", "picture"):
        for pair in gl.pairs("emoji-scenes", "erase", n=6, fill=fill):
            mask = pair.clean.masks[pair.target]
            before, after = np.asarray(pair.clean.image), np.asarray(pair.corrupt.image)
            assert len(np.unique(after[mask], axis=0)) == 1 and pair.base is None
            rows, columns = np.nonzero((before != after).any(-1))
            near = np.nonzero(mask)
            assert rows.min() >= near[0].min() - 2 and columns.max() <= near[1].max() + 2
            color = scenes.COLORS[objects(pair.clean)[0].color]
            gap = np.abs(after[mask][0].astype(int) - color).sum()
            assert (gap < 60) == (fill == "background")


def test_an_object_is_replaced_by_another() -> None:
    for pair in gl.pairs("emoji-scenes", "replace", n=6):
        assert pair.base is not None and pair.base != pair.target and pair.corrupt.label == pair.base
        mask = pair.clean.masks[pair.target]
        before, after = np.asarray(pair.clean.image).astype(int), np.asarray(pair.corrupt.image)
        assert (np.abs(before - after).sum(-1)[mask] > 30).mean() > 0.4
        assert not (before != after)[:, :].any(-1)[~_grown(mask, 2)].any()


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    out = np.zeros_like(mask)
    out[
        max(0, rows.min() - by) : rows.max() + by + 1, max(0, columns.min() - by) : columns.max() + by + 1
    ] = True
    return out


def test_blur_mean_swap_and_noise() -> None:
    examples = gl.data.load("emoji-scenes").examples("class", limit=5)
    blur = gl.pairs(examples, "blur", radius=2.5)
    for pair, one in zip(blur, examples, strict=True):
        assert pair.differ == "blur (sd 2.5 px)" and pair.clean is one and pair.base is None
        assert np.array_equal(pair.corrupt.image, one.image.filter(ImageFilter.GaussianBlur(2.5)))
    mean = np.stack([np.asarray(one.image) for one in examples]).mean(0).round()
    for pair in gl.pairs(examples, "mean"):
        assert np.array_equal(np.asarray(pair.corrupt.image), mean)
    for pair in gl.pairs(examples, "swap"):
        source = next(e for e in examples if np.array_equal(e.image, pair.corrupt.image))
        assert source.answers[0] == pair.base != pair.target
    for pair in gl.pairs("emoji-scenes", "noise", n=3, multiple=2):
        assert pair.noise == 2.0 and "2 sd" in pair.differ and pair.corrupt.image is pair.clean.image
    asked = gl.pairs("emoji-scenes", "swap", n=20, task="vqa")
    for pair in asked:  # what another question's picture answers is not known
        assert pair.base is None or pair.base != pair.target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        make_picture(seed=i).save(tmp_path / f"{i}.png")
    return tmp_path


def test_a_folder_names_its_pairs(folder: Path) -> None:
    (folder / "data.csv").write_text(
        "image,image_b,question,answer,answer_b,differ\n"
        "0.png,1.png,what color is it?,red,blue,color\n"
        "1.png,2.png,is it a dog?,yes,no,\n"
        "2.png,,is it a cat?,yes,,\n"
        "2.png,3.png,what color is it?,blue,,color\n"
    )
    found = gl.pairs(folder)
    assert [(p.target, p.base, p.differ) for p in found] == [
        ("red", "blue", "color"),
        ("yes", "no", "image"),
        ("blue", None, "color"),
    ]
    assert found[0].clean.prompt == found[0].corrupt.prompt == "<image>what color is it? answer:"
    for example, i in ((found[0].clean, 0), (found[0].corrupt, 1)):
        assert np.array_equal(np.asarray(example.image), np.asarray(make_picture(seed=i)))
    assert [p.base for p in gl.pairs(folder, "color")] == ["blue", None]
    assert len(gl.pairs(folder, n=1)) == 1 and len(gl.data.load(folder).examples("vqa")) == 4


BAD = {
    "no pairs": (
        "image,label\n0.png,dog\n",
        {},
        "names no pairs: give a second picture in a column 'image_b'",
    ),
    "no picture": ("image,image_b,label\n0.png,9.png,dog\n", {}, "row 1: no picture '9.png'"),
    "outside": ("image,image_b,label\n0.png,/1.png,dog\n", {}, "is outside"),
    "answers alone": ("image,label,answers_b\n0.png,dog,cat\n", {}, "'answers_b' without 'image_b'"),
    "both": (
        "image,image_b,label,answer_b,answers_b\n0.png,1.png,dog,cat,cat\n",
        {},
        "both 'answers_b' and 'answer_b'; keep one",
    ),
    "unknown": ("image,image_b,label\n0.png,1.png,dog\n", {"differ": "colour"}, "it has image, erase"),
}


@pytest.mark.parametrize("name", BAD)
def test_folders_that_say_nothing(folder: Path, name: str) -> None:
    table, options, message = BAD[name]
    (folder / "data.csv").write_text(table)
    with pytest.raises(DataError, match=message) as raised:
        gl.pairs(folder, **options)
    assert "\n" not in str(raised.value)


CALLS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "colour": ("emoji-scenes", {"differ": "colour"}, "'colour'; it has class, color.*did you mean 'color'"),
    "none": ("emoji-scenes", {"n": 0}, "n=0: give a whole number, 1 or more"),
    "no data": (3, {"differ": "blur"}, "data is 3: give a data set"),
    "no examples": ([], {"differ": "blur"}, r"data is \[\]: give a data set"),
    "facts of a list": ([], {"differ": "class"}, "a list of examples has no pairs that differ in 'class'"),
    "fill": ("emoji-scenes", {"differ": "erase", "fill": "red"}, "fill='red': say 'background' or 'picture'"),
    "radius": ("emoji-scenes", {"differ": "blur", "radius": -1}, "radius=-1: give a number above 0"),
    "multiple": ("emoji-scenes", {"differ": "noise", "multiple": "3"}, "multiple='3': give a number above 0"),
    "one mean": ("emoji-scenes", {"differ": "mean", "n": 1}, "the mean of one picture is that picture"),
    "drawings": ("emoji-scenes", {"differ": "blur", "task": "draw"}, "no example of 'draw' has a picture"),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls(name: str) -> None:
    data, options, message = CALLS[name]
    with pytest.raises(GatelensError, match=message) as raised:
        gl.pairs(data, **options)
    assert "\n" not in str(raised.value)


def test_data_without_masks_or_of_many_sizes() -> None:
    small = Example(Image.new("RGB", (8, 8)), "<image>this is a", ("dog",), "class", "0")
    wide = Example(Image.new("RGB", (9, 8)), "<image>this is a", ("cat",), "class", "1")
    with pytest.raises(DataError, match="no example has a mask of the object"):
        gl.pairs([small, wide], "erase")
    with pytest.raises(DataError, match="pictures of 8x8 and 9x8 pixels have no mean"):
        gl.pairs([small, wide], "mean")
    with pytest.raises(DataError, match="gave no pair that differs in swap"):
        gl.pairs([small], "swap")


def test_pairs_of_some_answers() -> None:
    found = scene_pairs("class", n=30)
    target = found[3].target
    some = found.sel(target=target)
    assert [pair.target for pair in some] == [target] * sum(pair.target == target for pair in found)
    assert [pair.base for pair in some.sel(base=found[3].base)] == [found[3].base] * len(
        some.sel(base=found[3].base)
    )
    with pytest.raises(DataError, match=r"none of 30 pairs has target='gnu' and base=None.*make more, n="):
        found.sel(target="gnu")
