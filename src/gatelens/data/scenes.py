"""Emoji scenes: pictures whose every fact is known, drawn from real artwork, the same for the same seed.

A scene holds one to three objects; an object is a piece of artwork on a coloured plate (a circle, square
or diamond). Class, colour, shape, side, number, box and mask of each are exact, because the scene was
composed from them. Some (class, colour, shape) combinations are kept out of training: ``split="test"`` scenes
are made of these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

SIZE = 64
CLASSES = (
    "bus", "butterfly", "cactus", "camera", "crab", "crown", "elephant", "fox",
    "frog", "guitar", "panda", "penguin", "pig", "pizza", "rocket", "sunflower",
)  # fmt: skip
COLORS = {
    "red": (225, 48, 48),
    "green": (52, 158, 72),
    "blue": (52, 96, 222),
    "yellow": (242, 205, 46),
    "purple": (148, 66, 190),
}
# Plates of colours that are never named or asked for: training material that shares no colour with COLORS.
UNNAMED_COLORS = {
    "orange": (238, 140, 50),
    "teal": (40, 168, 168),
    "pink": (240, 140, 190),
    "brown": (125, 80, 50),
    "black": (45, 45, 50),
    "olive": (128, 130, 60),
}
SHAPES = ("circle", "square", "diamond")
_BACKGROUNDS = ((250, 250, 248), (216, 216, 220))
PLAIN_LIGHT = (1.0, 0.0, 0.0)
QUESTION_KINDS = ("color", "shape", "presence", "side", "count", "relation")
_NUMBER_WORDS = ("zero", "one", "two", "three")
# Seeds of the splits are drawn from separate streams, so that no seed of a user's makes them meet.
_STREAMS = {"train": 0, "test": 1, "unnamed": 2}


def is_held_out(name: str, color: str, shape: str) -> bool:
    """Whether the combination is kept for test: 3 of the 15 of every class, at most one shape per colour."""
    i, c, s = CLASSES.index(name), list(COLORS).index(color), SHAPES.index(shape)
    return (i + 2 * c + 3 * s) % 5 == 0


@dataclass(frozen=True)
class SceneObject:
    """One object and what is true of it. ``box`` is (x0, y0, x1, y1) in pixels, around artwork and plate.

    The artwork is drawn in ``style`` (a folder of the vendored artwork; "" is the 3D style), mirrored or not and
    turned by ``angle`` degrees.
    """

    name: str
    color: str
    shape: str
    side: str
    box: tuple[int, int, int, int]
    style: str = field(default="", repr=False)
    mirrored: bool = field(default=False, repr=False)
    angle: float = field(default=0.0, repr=False)

    @property
    def phrase(self) -> str:
        return f"a {self.name} on a {self.color} {self.shape}"


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and its truth. ``masks`` are the artwork's visible pixels, one for each object.

    ``light`` multiplies the pixels: its value in the middle, and by how much it changes over the width and the height.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    objects: tuple[SceneObject, ...]
    masks: Bool[np.ndarray, "n_objects height width"]
    background: tuple[int, int, int] = _BACKGROUNDS[0]
    light: tuple[float, float, float] = PLAIN_LIGHT

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)

    @property
    def caption(self) -> str:
        """The objects in reading order: "a fox on a red circle and a pig on a blue square"."""
        return listed([o.phrase for o in self.objects])


def listed(phrases: list[str]) -> str:
    """Phrases as one: "x", "x and y", "x , y and z"."""
    return " and ".join([" , ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def scenes(
    split: str = "test", seed: int = 0, n_objects: int | None = None, start: int = 0
) -> Iterator[Scene]:
    """Endless scenes, the i-th a function of (split, seed, n_objects, i) alone.

    Args:
        split: ``"train"`` (seen combinations) or ``"test"`` (held-out combinations only).
        n_objects: 1, 2 or 3 for all scenes; ``None`` draws it.
        start: index of the first scene, to go on where another stopped.
    """
    index = start
    while True:
        yield scene(split, seed, index, n_objects)
        index += 1


def scene(split: str, seed: int, index: int, n_objects: int | None = None) -> Scene:
    """The scene with this index; see :func:`scenes`."""
    rng = np.random.default_rng([_STREAMS[split], seed, n_objects or 0, index])
    n = n_objects or int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    attributes = []
    for name in rng.choice(CLASSES, size=n, replace=False):
        combos = _combinations(str(name), split)
        attributes.append((str(name), *combos[rng.integers(len(combos))]))
    return compose(attributes, rng)


def unnamed_scene(seed: int, index: int, n_objects: int | None = None) -> Scene:
    """A training scene on plates of unnamed colours, any class on any shape; held-out combinations stay unseen."""
    rng = np.random.default_rng([_STREAMS["unnamed"], seed, n_objects or 0, index])
    n = n_objects or int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    names = rng.choice(CLASSES, size=n, replace=False)
    colors, shapes = rng.choice(list(UNNAMED_COLORS), size=n), rng.choice(SHAPES, size=n)
    return compose([(str(a), str(c), str(s)) for a, c, s in zip(names, colors, shapes, strict=True)], rng)


def compose(attributes: list[tuple[str, str, str]], rng: np.random.Generator) -> Scene:
    """A scene of these (class, colour, shape) triples, placed by ``rng``; 1 to 3 of them."""
    background = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    objects = []
    # Reading order (top row first, then left to right) makes the caption a function of the picture.
    for (name, color, shape), (cx, cy, size) in zip(attributes, _places(len(attributes), rng), strict=True):
        x0, y0 = cx - size // 2, cy - size // 2
        objects.append(placed(name, color, shape, (x0, y0, x0 + size, y0 + size)))
    return drawn(objects, background)


def placed(name: str, color: str, shape: str, box: tuple[int, int, int, int]) -> SceneObject:
    """An object whose plate fills a square box; its side follows from the box."""
    return SceneObject(name, color, shape, "left" if box[0] + box[2] < SIZE else "right", box)


def drawn(
    objects: Sequence[SceneObject],
    background: tuple[int, int, int],
    light: tuple[float, float, float] = PLAIN_LIGHT,
) -> Scene:
    """The scene of these objects, each in its own box."""
    canvas = Image.new("RGB", (SIZE, SIZE), background)
    masks = []
    for o in objects:
        x0, y0, x1, _ = o.box
        size = x1 - x0
        plate = _plate(o.shape, o.color, size)
        canvas.paste(plate, (x0, y0), plate)
        art_size = round(size * 0.74)
        art = _posed(o, art_size)
        ax, ay = x0 + size // 2 - art_size // 2, y0 + size // 2 - art_size // 2
        canvas.paste(art, (ax, ay), art)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[ay : ay + art_size, ax : ax + art_size] = np.asarray(art)[..., 3] > 127
        masks.append(mask)
    return Scene(_lit(np.asarray(canvas), light), tuple(objects), np.stack(masks), background, light)


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(kind, question, answer) triples that the scene answers; one of each of ``QUESTION_KINDS``, in random order.

    Only a scene of two objects answers ``relation``.
    """
    o = scene.objects[rng.integers(len(scene.objects))]
    present = bool(rng.random() < 0.5)
    absent = [c for c in CLASSES if c not in {x.name for x in scene.objects}]
    asked = o.name if present else absent[rng.integers(len(absent))]
    out = [
        ("color", f"what color is the shape behind the {o.name}?", o.color),
        ("shape", f"what shape is behind the {o.name}?", o.shape),
        ("presence", f"is there a {asked} in the image?", "yes" if present else "no"),
        ("side", f"which side is the {o.name} on?", o.side),
        ("count", "how many objects are there?", _NUMBER_WORDS[len(scene.objects)]),
    ]
    if len(scene.objects) == 2:
        other = next(x for x in scene.objects if x is not o)
        out.append(("relation", f"what is next to the {o.name}?", other.name))
    return [out[i] for i in rng.permutation(len(out))]


@lru_cache(maxsize=4096)
def artwork(name: str, size: int, style: str = "") -> Image.Image:
    """The vendored artwork of ``name``, RGBA, ``size`` x ``size`` pixels (128 x 128 as stored).

    Args:
        style: a folder of the artwork (``"fluent-flat"``, ``"noto"``, ``"twemoji"``, ``"openmoji"``), which have the
            scenes' classes; "" is the 3D style.
    """
    return _stored(name, style).resize((size, size), Image.Resampling.LANCZOS)


@lru_cache(maxsize=256)
def _stored(name: str, style: str) -> Image.Image:
    path = f"artwork/{style}/{name}.webp" if style else f"artwork/{name}.webp"
    with resources.files("gatelens.data").joinpath(path).open("rb") as f:
        return Image.open(f).convert("RGBA")


def _posed(o: SceneObject, size: int) -> Image.Image:
    """The object's artwork as the scene shows it."""
    if not o.mirrored and not o.angle:
        return artwork(o.name, size, o.style)
    art = _stored(o.name, o.style)
    if o.mirrored:
        art = art.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return art.rotate(o.angle, Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.LANCZOS)


def _lit(
    pixels: UInt8[np.ndarray, "height width 3"], light: tuple[float, float, float]
) -> UInt8[np.ndarray, "height width 3"]:
    if light == PLAIN_LIGHT:
        return pixels
    middle, across, down = light
    at = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    field_of_light = middle + across * at[None, :, None] + down * at[:, None, None]
    return (pixels * field_of_light).round().clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _combinations(name: str, split: str) -> list[tuple[str, str]]:
    wanted = split == "test"
    return [(c, s) for c in COLORS for s in SHAPES if is_held_out(name, c, s) == wanted]


@lru_cache(maxsize=4096)
def _plate(shape: str, color: str, size: int) -> Image.Image:
    big = size * 4  # drawn four times as large, then reduced: smooth edges
    im = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    draw = ImageDraw.Draw(im)
    rgb = (*(COLORS | UNNAMED_COLORS)[color], 255)
    if shape == "circle":
        draw.ellipse((0, 0, big - 1, big - 1), fill=rgb)
    elif shape == "square":
        pad = big // 14
        draw.rectangle((pad, pad, big - 1 - pad, big - 1 - pad), fill=rgb)
    else:
        h = big / 2
        draw.polygon(((h, 0), (big - 1, h), (h, big - 1), (0, h)), fill=rgb)
    return im.resize((size, size), Image.Resampling.LANCZOS)


def _places(n: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Centres and plate sizes: one large object, or one to each of ``n`` cells of a 2 x 2 grid.

    Large objects lie on multiples of 8 pixels: a picture tokenizer of 8 x 8 patches then meets the same patches
    again and again, which is what lets one of a few thousand parameters learn them.
    """
    if n == 1:
        x0, y0 = (int(8 * k) for k in rng.integers(4, size=2))
        return [(x0 + 20, y0 + 20, 40)]
    cells = sorted(rng.choice(4, size=n, replace=False))
    return [(16 + 32 * int(c % 2), 16 + 32 * int(c // 2), 28) for c in cells]
