"""The data set ``varied-scenes``: emoji scenes in which no patch of pixels gives an object away.

Objects stand at any pixel and in any size that fits, turned a little, mirrored or not, in one of four styles of
artwork, under a light that changes over the picture. In ``emoji-scenes`` large objects lie on multiples of 8 pixels:
most patches of 8 x 8 pixels of a test scene are, pixel by pixel, patches of training scenes, and a table of them
names the class. Facts, questions and the (class, colour, shape) combinations kept out of training are the same.

========  =================================  =============================================
split     combinations                       style
========  =================================  =============================================
train     seen                               3D, flat, Noto or Twemoji, drawn by object
test      held out                           the same
style     held out                           OpenMoji, line drawings that no other split has
========  =================================  =============================================
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gatelens.data import scenes
from gatelens.data.emoji_scenes import EmojiScenes

STYLES = ("", "fluent-flat", "noto", "twemoji")
HELD_OUT_STYLE = "openmoji"
# Streams of their own: no scene shares its random numbers with one of emoji-scenes.
_STREAMS = {"train": 10, "test": 11, "style": 12, "unnamed": 13}
_SMALLEST, _LARGEST = 24, 52  # plates of a lone object, pixels
_SMALLEST_OF_SEVERAL, _CELL = 20, 32


def varied_scene(split: str, seed: int, index: int, n_objects: int | None = None) -> scenes.Scene:
    """The scene with this index, a function of its arguments alone.

    Args:
        split: ``"train"``, ``"test"`` or ``"style"``; ``"unnamed"`` for training scenes on plates of unnamed colours.
        n_objects: 1, 2 or 3; ``None`` draws it.
    """
    rng = np.random.default_rng([_STREAMS[split], seed, n_objects or 0, index])
    n = n_objects or int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    objects = []
    for name, box in zip(rng.choice(scenes.CLASSES, size=n, replace=False), _boxes(n, rng), strict=True):
        color, shape = _combination(str(name), split, rng)
        style = HELD_OUT_STYLE if split == "style" else STYLES[rng.integers(len(STYLES))]
        objects.append(
            scenes.SceneObject(
                str(name),
                color,
                shape,
                scenes.placed(str(name), color, shape, box).side,
                box,
                style=style,
                mirrored=bool(rng.random() < 0.5),
                angle=float(rng.uniform(-20, 20)),
            )
        )
    background = (int(rng.integers(205, 256)), int(rng.integers(205, 256)), int(rng.integers(205, 256)))
    light = (float(rng.uniform(0.72, 1.05)), float(rng.uniform(-0.15, 0.15)), float(rng.uniform(-0.15, 0.15)))
    return scenes.drawn(objects, background, light)


def varied_scenes(split: str = "test", seed: int = 0, n_objects: int | None = None) -> Iterator[scenes.Scene]:
    """Endless scenes; see :func:`varied_scene`."""
    index = 0
    while True:
        yield varied_scene(split, seed, index, n_objects)
        index += 1


class VariedScenes(EmojiScenes):
    """Scenes of one split; endless, so a task without a limit gives 500 examples."""

    name = "varied-scenes"
    splits = ("train", "test", "style")
    draw = staticmethod(varied_scene)


def _combination(name: str, split: str, rng: np.random.Generator) -> tuple[str, str]:
    if split == "unnamed":
        return str(rng.choice(list(scenes.UNNAMED_COLORS))), str(rng.choice(scenes.SHAPES))
    held_out = split != "train"
    found = [
        (c, s) for c in scenes.COLORS for s in scenes.SHAPES if scenes.is_held_out(name, c, s) == held_out
    ]
    return found[rng.integers(len(found))]


def _boxes(n: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Square boxes in reading order: one anywhere, or one anywhere in each of ``n`` cells of a 2 x 2 grid.

    A lone object's middle is at least 4 pixels from the picture's, so that its side can be seen.
    """
    if n == 1:
        size = int(rng.integers(_SMALLEST, _LARGEST + 1))
        free = scenes.SIZE - size
        lefts = [x for x in range(free + 1) if abs(2 * x - free) >= 8]
        x, y = lefts[rng.integers(len(lefts))], int(rng.integers(free + 1))
        return [(x, y, x + size, y + size)]
    boxes = []
    for cell in sorted(rng.choice(4, size=n, replace=False)):
        size = int(rng.integers(_SMALLEST_OF_SEVERAL, _CELL + 1))
        x, y = (int(_CELL * k + rng.integers(_CELL - size + 1)) for k in (cell % 2, cell // 2))
        boxes.append((x, y, x + size, y + size))
    return boxes
