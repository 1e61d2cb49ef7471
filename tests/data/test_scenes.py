"""Scenes: the picture shows what the facts say, the same for the same seed; splits never share a combination."""

from itertools import islice, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelens.data import scenes


@given(st.sampled_from(["train", "test"]), st.integers(0, 1000), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_scene_is_a_function_of_its_seed(split, seed, index):
    a, b = scenes.scene(split, seed, index), scenes.scene(split, seed, index)
    assert np.array_equal(a.pixels, b.pixels) and a.objects == b.objects


@given(st.sampled_from(["train", "test"]), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_splits_hold_their_own_combinations(split, index):
    for o in scenes.scene(split, 7, index).objects:
        assert scenes.is_held_out(o.name, o.color, o.shape) == (split == "test")


def test_each_class_is_trained_with_every_color_and_shape():
    for name in scenes.CLASSES:
        seen = [
            (c, s) for c, s in product(scenes.COLORS, scenes.SHAPES) if not scenes.is_held_out(name, c, s)
        ]
        assert len(seen) == 12
        assert {c for c, _ in seen} == set(scenes.COLORS)
        assert {s for _, s in seen} == set(scenes.SHAPES)


def test_the_picture_shows_what_the_facts_say():
    for scene in islice(scenes.scenes("test", 3), 40):
        for o, mask in zip(scene.objects, scene.masks, strict=True):
            x0, y0, x1, y1 = o.box
            rows, cols = np.nonzero(mask)
            assert x0 <= cols.min() and cols.max() < x1 and y0 <= rows.min() and rows.max() < y1
            assert o.side == ("left" if (x0 + x1) / 2 < scenes.SIZE / 2 else "right")
            # Beside the artwork, in the plate's middle row or column, the plate shows in its own colour.
            inside = np.zeros_like(mask)
            inside[y0:y1, x0:x1] = True
            plate = scene.pixels[inside & ~mask].astype(int)
            near = np.abs(plate - np.array(scenes.COLORS[o.color])).sum(1) < 12
            assert near.mean() > 0.1


@pytest.mark.parametrize(
    ("shape", "corner", "diagonal"), [("square", 1, 1), ("circle", 0, 1), ("diamond", 0, 0)]
)
def test_shapes_are_drawn_as_named(shape, corner, diagonal):
    """A square fills its corner, a circle the place 17 % in on the diagonal, a diamond neither."""
    scene = scenes.compose([("crown", "blue", shape)], np.random.default_rng(0))
    blue = np.abs(scene.pixels.astype(int) - np.array(scenes.COLORS["blue"])).sum(-1) < 60
    x0, y0, *_ = scene.objects[0].box
    assert blue[y0 + 3, x0 + 3] == corner and blue[y0 + 7, x0 + 7] == diagonal


def test_questions_are_answered_by_the_scene():
    rng = np.random.default_rng(1)
    for scene in islice(scenes.scenes("train", 5), 60):
        by_name = {o.name: o for o in scene.objects}
        for kind, question, answer in scenes.questions(scene, rng):
            named = next((n for n in scenes.CLASSES if f" {n} " in question or f" {n}?" in question), None)
            if kind == "presence":
                assert answer == ("yes" if named in by_name else "no")
            elif kind == "count":
                assert answer == ["zero", "one", "two", "three"][len(scene.objects)]
            elif kind == "relation":
                assert answer in by_name and answer != named
            else:
                assert answer == getattr(by_name[named], kind)


def test_captions_name_objects_in_reading_order():
    for scene in islice(scenes.scenes("train", 9, n_objects=3), 20):
        tops = [(o.box[1] // 32, o.box[0] // 32) for o in scene.objects]
        assert tops == sorted(tops)
        for o in scene.objects:
            assert f"a {o.name} on a {o.color} {o.shape}" in scene.caption


@pytest.mark.parametrize("name", [*scenes.CLASSES, "cat", "train"])
def test_artwork_is_vendored_with_an_alpha_channel(name):
    alpha = np.asarray(scenes.artwork(name, 32))[..., 3]
    assert alpha.max() > 200 and alpha.min() == 0
