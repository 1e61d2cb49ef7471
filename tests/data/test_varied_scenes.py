"""Varied scenes: no patch gives an object away, no two are the same, splits stay apart; emoji-scenes is as it was."""

import hashlib
from itertools import islice

import numpy as np
import pytest

import gatelens as gl
from gatelens.data import scenes
from gatelens.data.varied_scenes import HELD_OUT_STYLE, STYLES, varied_scene, varied_scenes


def patches(scene):
    """The 64 patches of 8 x 8 pixels, and whether artwork shows in each."""
    cut = scene.pixels.reshape(8, 8, 8, 8, 3).swapaxes(1, 2).reshape(64, -1)
    shows = scene.masks.any(0).reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, -1).any(1)
    return [bytes(p) for p in cut], shows


def share_known(draw, split):
    """The share of patches with artwork that are, pixel by pixel, among those of 100 training scenes."""
    known = {p for i in range(100) for p in patches(draw("train", 0, i, 1))[0]}
    found = [
        p in known
        for i in range(20)
        for p, shows in zip(*patches(draw(split, 4, i, 1)), strict=True)
        if shows
    ]
    return np.mean(found)


def test_no_patch_of_artwork_is_one_of_training():
    assert share_known(scenes.scene, "test") > 0.1  # the fault that varied scenes are made without
    assert share_known(varied_scene, "test") == 0.0
    assert share_known(varied_scene, "style") == 0.0


def test_all_scenes_are_distinct_and_a_function_of_their_index():
    drawn = [varied_scene(split, 3, i, 1) for split in ("train", "test", "style") for i in range(60)]
    assert len({s.pixels.tobytes() for s in drawn}) == len(drawn)
    assert np.array_equal(varied_scene("test", 3, 5).pixels, varied_scene("test", 3, 5).pixels)


@pytest.mark.parametrize("split", ["train", "test", "style"])
def test_splits_hold_their_own_combinations_and_styles(split):
    for scene in islice(varied_scenes(split, 7), 40):
        for o in scene.objects:
            assert scenes.is_held_out(o.name, o.color, o.shape) == (split != "train")
            assert (o.style == HELD_OUT_STYLE) == (split == "style") and HELD_OUT_STYLE not in STYLES


def test_the_picture_shows_what_the_facts_say():
    for scene in islice(varied_scenes("test", 3), 40):
        for o, mask in zip(scene.objects, scene.masks, strict=True):
            x0, y0, x1, y1 = o.box
            rows, cols = np.nonzero(mask)
            assert x0 <= cols.min() and cols.max() < x1 and y0 <= rows.min() and rows.max() < y1
            assert min(o.box) >= 0 and max(o.box) <= scenes.SIZE
            assert o.side == ("left" if (x0 + x1) / 2 < scenes.SIZE / 2 else "right")
            # beside the artwork the plate has its own colour's hue, whatever the light
            inside = np.zeros_like(mask)
            inside[y0:y1, x0:x1] = True
            plate = scene.pixels[inside & ~mask].astype(float)
            named = {c: np.array(rgb) / np.linalg.norm(rgb) for c, rgb in scenes.COLORS.items()}
            hue = plate / np.linalg.norm(plate, axis=1, keepdims=True)
            near = {c: (hue @ rgb > 0.995).sum() for c, rgb in named.items()}
            assert max(near, key=near.get) == o.color


def test_light_is_what_its_three_numbers_say():
    o = scenes.placed("fox", "red", "square", (0, 0, 40, 40))
    plain = scenes.drawn([o], (100, 100, 100)).pixels.astype(float)
    lit = scenes.drawn([o], (100, 100, 100), light=(0.9, 0.2, -0.1)).pixels
    for y, x in ((5, 5), (60, 3), (33, 50)):
        factor = 0.9 + 0.2 * ((x + 0.5) / 64 - 0.5) - 0.1 * ((y + 0.5) / 64 - 0.5)
        assert np.array_equal(lit[y, x], (plain[y, x] * factor).round().clip(0, 255))


def test_emoji_scenes_are_the_pixels_they_were():
    """Cards and organisms rest on them."""
    drawn = hashlib.sha256()
    for split in ("train", "test"):
        for scene in islice(scenes.scenes(split, 3), 30):
            drawn.update(scene.pixels.tobytes())
    for pair in gl.pairs("emoji-scenes", differ="side", n=5):
        drawn.update(np.asarray(pair.corrupt.image).tobytes())
    assert drawn.hexdigest() == "7258c49e1ed7903720cb26d301079a4415f2003ccd949a79f57b6bd09993c9a9"


@pytest.mark.parametrize("differ", ["class", "color", "shape", "side", "presence", "relation", "count"])
def test_pairs_differ_where_the_object_is_and_keep_the_light(differ):
    for pair in gl.pairs(gl.data.load("varied-scenes", "style"), differ=differ, n=3):
        clean, corrupt = (np.asarray(side.image).astype(int) for side in (pair.clean, pair.corrupt))
        assert pair.target != pair.base and (clean != corrupt).any()
        boxes = [o.box for side in (pair.clean, pair.corrupt) for o in side.meta["objects"]]
        outside = np.ones((scenes.SIZE, scenes.SIZE), dtype=bool)
        for x0, y0, x1, y1 in boxes:
            outside[y0:y1, x0:x1] = False
        assert np.array_equal(clean[outside], corrupt[outside])
        assert all(
            o.style == HELD_OUT_STYLE for side in (pair.clean, pair.corrupt) for o in side.meta["objects"]
        )


def test_every_task_is_there_and_another_split_is_refused():
    data = gl.data.load("varied-scenes")
    assert data.name == "varied-scenes" and [len(data.examples(t, limit=3)) for t in data.tasks] == [3] * 4
    with pytest.raises(gl.errors.DataError, match="'train' or 'test' or 'style'"):
        gl.data.load("varied-scenes", "held-out")
    with pytest.raises(gl.errors.DataError, match="no split 'style'"):
        gl.data.load("emoji-scenes", "style")
