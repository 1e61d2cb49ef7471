"""Pictures whose facts are known: a grid of coloured patches, each a noisy vote for two attributes.

The red channel of a patch votes for the attribute ``a``, the green one for ``b``; each votes right with a given
probability and else for another value at random. So no single patch tells the answer, and pictures hardly ever repeat.
The blue channel marks a place: it is the same in every picture of a plant, and tells the decoder which token is which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from PIL import Image

from gatelens.data import Example
from gatelens.data.base import Named, check_drawn, check_task

GRID, PATCH = 5, 4  # patches in a row and in a column; pixels along a patch
N_PATCHES = GRID * GRID
VALUES = 4  # of an attribute
MARKS = 10  # levels of the blue channel; 0 marks nothing
VALUE_LEVELS = (-0.75, -0.25, 0.25, 0.75)  # of red and green, where black is -1 and white 1
MARK_LEVELS = tuple(-0.9 + 0.2 * mark for mark in range(MARKS))
NOISE = 0.06  # standard deviation of a pixel
ATTRIBUTES = ("a", "b")


@dataclass(frozen=True, eq=False, repr=False)
class PatchPictures(Named):
    """A data set of such pictures with one prompt, as :class:`gatelens.data.Dataset` has them.

    Attributes:
        name: names the plant and its question.
        prompt: with ``<image>`` in it.
        asks: attributes, bits of them (``a0`` is the low bit of ``a``), or whether two bits differ (``a0^b0``); their
            joint value is the class.
        names: of the classes, by joint value; the first part of ``asks`` counts fastest.
        marks: by patch number in reading order, its mark.
        right: how often a patch votes right.
        n: pictures in it.
        seed: draws them.
    """

    name: str
    prompt: str
    asks: tuple[str, ...]
    names: tuple[str, ...]
    marks: Mapping[int, int]
    right: float
    n: int
    seed: int
    tasks = ("class",)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.names

    def examples(self, task: str = "class", limit: int | None = None, seed: int = 0) -> list[Example]:
        """All examples, or ``limit`` of them drawn by ``seed``.

        Raises:
            DataError: no such task, or a limit that cannot be drawn.
        """
        check_task(self.name, task, self.tasks)
        check_drawn(self.name, limit, seed)
        every = self._every
        if limit is None or limit >= len(every):
            return list(every)
        chosen = np.random.default_rng(seed).permutation(len(every))[:limit]
        return [every[i] for i in sorted(chosen.tolist())]

    @cached_property
    def _every(self) -> tuple[Example, ...]:
        rng = np.random.default_rng([self.seed, 11])
        every = []
        drawn = {attribute: rng.permutation(self.n) % VALUES for attribute in ATTRIBUTES}  # each as often
        for number in range(self.n):
            facts = {attribute: int(values[number]) for attribute, values in drawn.items()}
            label = self.names[joint_value(facts, self.asks)]
            image = draw_patches([facts[one] for one in ATTRIBUTES], self.marks, self.right, rng)
            every.append(
                Example(image, self.prompt, (label,), "class", f"{self.name}-{number}", label, facts)
            )
        return tuple(every)


def joint_value(facts: Mapping[str, int], asks: Sequence[str]) -> int:
    """The number of the class: ``a`` and ``b`` count to 4, bits and whether two of them differ (``a0^b0``) to 2."""
    value, step = 0, 1
    for one in asks:
        if one in facts:
            part, size = facts[one], VALUES
        else:
            part, size = sum(facts[bit[0]] >> int(bit[1]) for bit in one.split("^")) & 1, 2
        value, step = value + part * step, step * size
    return value


def draw_patches(
    values: Sequence[int], marks: Mapping[int, int], right: float, rng: np.random.Generator
) -> Image.Image:
    """One picture of :data:`GRID` × :data:`PATCH` pixels a side.

    Args:
        values: of the attributes.
    """
    levels = np.empty((3, N_PATCHES))
    for channel, value in enumerate(values):
        levels[channel] = np.array(VALUE_LEVELS)[_votes(value, right, rng)]
    levels[2] = [MARK_LEVELS[marks.get(patch, 0)] for patch in range(N_PATCHES)]
    pixels = levels.reshape(3, GRID, GRID).repeat(PATCH, axis=1).repeat(PATCH, axis=2)
    pixels = pixels + rng.normal(0, NOISE, pixels.shape)
    return Image.fromarray(np.clip((pixels + 1) * 127.5, 0, 255).round().astype(np.uint8).transpose(1, 2, 0))


def _votes(value: int, right: float, rng: np.random.Generator) -> Int[np.ndarray, " patch"]:
    other = (value + rng.integers(1, VALUES, N_PATCHES)) % VALUES
    return np.where(rng.random(N_PATCHES) < right, value, other)
