"""Pairs of emoji scenes that differ in one fact: the same scene composed again with it changed.

Placement, background, all other facts and the prompt are the same. The other scene is made of combinations of the
same split where there are any; test keeps one colour and one shape back for a class, so there another colour or
shape is a combination of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gatelens.data import prompts, scenes
from gatelens.data.scenes import Scene, SceneObject

SEEN = (
    "the corrupt picture's class, colour and shape are a combination of training, the clean picture's are not"
)


@dataclass(frozen=True, eq=False)
class ScenePair:
    """Two scenes, what both are asked, and the answers."""

    clean: Scene
    corrupt: Scene
    prompt: str
    target: str
    base: str
    note: str = ""


def scene_pair(
    differ: str,
    split: str,
    seed: int,
    index: int,
    draw: Callable[[str, int, int, int | None], Scene] = scenes.scene,
) -> ScenePair:
    """The pair with this index, a function of its arguments alone; ``differ`` is a key of :data:`KINDS`.

    Args:
        draw: gives the scene of a split, seed, index and number of objects.
    """
    n_objects, make = KINDS[differ]
    scene = draw(split, seed, index, n_objects)
    return make(scene, split, np.random.default_rng([seed, index, list(KINDS).index(differ)]))


def _changed(scene: Scene, number: int, new: SceneObject) -> Scene:
    objects = [new if i == number else o for i, o in enumerate(scene.objects)]
    return scenes.drawn(objects, scene.background, scene.light)


def _other(
    scene: Scene, number: int, fact: str, split: str, rng: np.random.Generator
) -> tuple[Scene, SceneObject, str]:
    """The scene with one fact of one object changed, the new object, and a note where it leaves the split."""
    o = scene.objects[number]
    if fact == "class":
        taken = {each.name for each in scene.objects}
        found = [replace(o, name=name) for name in scenes.CLASSES if name not in taken]
    elif fact == "color":
        found = [replace(o, color=color) for color in scenes.COLORS if color != o.color]
    else:
        found = [replace(o, shape=shape) for shape in scenes.SHAPES if shape != o.shape]
    own = [new for new in found if scenes.is_held_out(new.name, new.color, new.shape) == (split != "train")]
    new = (own or found)[int(rng.integers(len(own or found)))]
    return _changed(scene, number, new), new, "" if own else SEEN


def _question(text: str) -> str:
    return "<image>" + prompts.QUESTION_PROMPT.format(question=text)


def _class(scene: Scene, split: str, rng: np.random.Generator) -> ScenePair:
    other, new, note = _other(scene, 0, "class", split, rng)
    return ScenePair(scene, other, "<image>" + prompts.CLASS_PROMPT, scene.objects[0].name, new.name, note)


def _color(scene: Scene, split: str, rng: np.random.Generator) -> ScenePair:
    o = scene.objects[0]
    other, new, note = _other(scene, 0, "color", split, rng)
    asked = _question(f"what color is the shape behind the {o.name}?")
    return ScenePair(scene, other, asked, o.color, new.color, note)


def _shape(scene: Scene, split: str, rng: np.random.Generator) -> ScenePair:
    o = scene.objects[0]
    other, new, note = _other(scene, 0, "shape", split, rng)
    return ScenePair(scene, other, _question(f"what shape is behind the {o.name}?"), o.shape, new.shape, note)


def _side(scene: Scene, split: str, rng: np.random.Generator) -> ScenePair:
    """The object at the mirrored place, itself not mirrored."""
    o = scene.objects[0]
    x0, y0, x1, y1 = o.box
    at = scenes.placed(o.name, o.color, o.shape, (scenes.SIZE - x1, y0, scenes.SIZE - x0, y1))
    new = replace(o, side=at.side, box=at.box)
    asked = _question(f"which side is the {o.name} on?")
    return ScenePair(scene, _changed(scene, 0, new), asked, o.side, new.side)


def _presence(scene: Scene, split: str, rng: np.random.Generator) -> ScenePair:
    """An object of another class in its place."""
    number = int(rng.integers(len(scene.objects)))
    other, _, note = _other(scene, number, "class", split, rng)
    asked = _question(f"is there a {scene.objects[number].name} in the image?")
    return ScenePair(scene, other, asked, "yes", "no", note)


def _relation(scene: Scene, split: str, rng: np.random.Generator) -> ScenePair:
    """Another neighbour in the same place."""
    number = int(rng.integers(2))
    other, new, note = _other(scene, number, "class", split, rng)
    asked = _question(f"what is next to the {scene.objects[1 - number].name}?")
    return ScenePair(scene, other, asked, scene.objects[number].name, new.name, note)


def _count(scene: Scene, split: str, rng: np.random.Generator) -> ScenePair:
    """Three objects, and the same without one of them: scenes of two and of three have objects of one size."""
    number = int(rng.integers(3))
    left = [o for i, o in enumerate(scene.objects) if i != number]
    other = scenes.drawn(left, scene.background, scene.light)
    return ScenePair(scene, other, _question("how many objects are there?"), "three", "two")


Maker = Callable[[Scene, str, np.random.Generator], ScenePair]
# what differs: how many objects the scenes have (None: one to three), and what makes the pair
KINDS: dict[str, tuple[int | None, Maker]] = {
    "class": (1, _class),
    "color": (1, _color),
    "shape": (1, _shape),
    "side": (1, _side),
    "presence": (None, _presence),
    "relation": (2, _relation),
    "count": (3, _count),
}
