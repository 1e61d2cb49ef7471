"""Pairs of examples from any data: the same prompt over two pictures that differ in what is asked about.

What differs is a fact (:mod:`gatelens.data.scene_pairs`; a folder names its pairs in columns) or is taken out of the
picture (:mod:`gatelens.data.corruptions`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gatelens.data import corruptions
from gatelens.data.base import Dataset, Example, check_drawn
from gatelens.data.loading import load
from gatelens.data.pairs import Pair, Pairs
from gatelens.errors import DataError, did_you_mean, shown

CORRUPTIONS = ("erase", "replace", "blur", "mean", "swap", "noise")


def pairs(
    data: Any,
    differ: str | None = None,
    n: int = 100,
    seed: int = 0,
    *,
    task: str = "class",
    fill: corruptions.Fill = "background",
    radius: float | None = None,
    multiple: float = 3.0,
) -> Pairs:
    """Pairs of examples that share the prompt and whose pictures differ in one thing.

    :class:`gatelens.data.Pairs` says what the prompt asks for each fact of emoji scenes, and what notes there are.

    Args:
        data: a data set, its name or folder; for corruptions also a list of examples.
        differ: what differs. A fact: of emoji scenes ``class``, ``color``, ``shape``, ``side``, ``presence``,
            ``relation`` or ``count``, the same scene composed again; of a folder what its column ``differ`` says. A
            corruption, of any data: ``erase``, the object the example is about filled with ``fill``; ``replace``,
            by another example's object (both need masks); ``blur``; ``mean``, the mean of all pictures drawn;
            ``swap``, another example's picture; ``noise``, on the embeddings of image tokens, which is added when
            a map is made. None: the class, or all pairs of a folder.
        n: how many, at most.
        seed: what draws them.
        task: of a corruption: the task whose examples are corrupted.
        fill: of ``erase`` and ``replace``: ``background``, the colour around the object, or ``picture``, that of all
            else in the picture.
        radius: of ``blur``: its standard deviation in pixels; None is an eighth of the longer side.
        multiple: of ``noise``: how many standard deviations of the embeddings (3 as in arXiv 2202.05262).

    Raises:
        DataError: the data have no such pairs, or ``n`` or ``seed`` is not a whole number.

    Example:
        >>> gl.pairs("emoji-scenes", differ="class", n=2)
        2 pairs of emoji-scenes that differ in class
          0: sunflower → panda   '<image>this is a'
          1: cactus → pig   '<image>this is a'
    """
    _check_number(n)
    data = load(data) if isinstance(data, str | Path) else data
    name = getattr(data, "name", "")
    facts = tuple(getattr(data, "differs", ()))
    if differ is None and ("class" in facts or not hasattr(data, "pairs")):
        differ = "class"
    if differ is None or differ in facts:
        made = list(data.pairs(differ, n, seed))
    elif differ in CORRUPTIONS:
        made = _corrupted(data, differ, n, seed, task, fill, radius, multiple)
    else:
        known = [*facts, *CORRUPTIONS]
        raise DataError(
            f"{name or 'a list of examples'} has no pairs that differ in {differ!r}; it has "
            f"{', '.join(map(str, known))}{did_you_mean(str(differ), map(str, known))}"
        )
    if not made:
        raise DataError(f"{name or 'these examples'} gave no pair that differs in {differ}")
    return Pairs(made, name)


def _check_number(n: Any) -> None:
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise DataError(f"n={shown(n)}: give a whole number, 1 or more")


def _corrupted(
    data: Dataset | Sequence[Example],
    how: str,
    n: int,
    seed: int,
    task: str,
    fill: Any,
    radius: float | None,
    multiple: float,
) -> list[Pair]:
    if fill not in ("background", "picture"):
        raise DataError(
            f"fill={shown(fill)}: say 'background' or 'picture'; another object is differ='replace'"
        )
    for word, value in (("radius", radius), ("multiple", multiple)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise DataError(f"{word}={shown(value)}: give a number above 0")
    examples = _examples(data, task, n, seed)
    makers: dict[str, Callable[[list[Example], np.random.Generator], list[Pair]]] = {
        "erase": partial(_erase, fill=fill),
        "replace": partial(_replace, fill=fill),
        "blur": partial(_blur, radius=radius),
        "mean": _mean,
        "swap": _swap,
        "noise": partial(_noise, multiple=float(multiple)),
    }
    return makers[how](examples, np.random.default_rng([seed, CORRUPTIONS.index(how)]))[:n]


def _examples(data: Any, task: str, n: int, seed: int) -> list[Example]:
    check_drawn("pairs", n, seed)
    if hasattr(data, "examples"):
        found = data.examples(task, limit=n, seed=seed)
    else:
        found = list(data) if isinstance(data, Sequence) and not isinstance(data, str) else []
        if not found or not all(isinstance(one, Example) for one in found):
            raise DataError(
                f"data is {shown(data)}: give a data set, its name, a folder or a list of examples"
            )
    pictured = [one for one in found if one.image is not None and one.answers]
    if not pictured:
        raise DataError(f"no example of {task!r} has a picture and an answer, so none can be corrupted")
    return pictured


def _pair(
    clean: Example, picture: Image.Image, differ: str, base: str | None = None, noise: float = 0.0
) -> Pair:
    """An example and the same with another picture."""
    corrupt = dataclasses.replace(
        clean,
        image=picture,
        answers=(base,) if base else (),
        label=base if clean.label else None,
        id=f"{clean.id}-{differ.split(' ', 1)[0]}",
        meta={} if picture is not clean.image else clean.meta,
    )
    return Pair(clean, corrupt, differ, clean.answers[0], base, noise)


def _with_masks(examples: Sequence[Example]) -> list[tuple[Example, str, corruptions.Mask]]:
    found = []
    for one in examples:
        name = corruptions.asked_object(one)
        if name is not None:
            found.append((one, name, one.masks[name]))
    if not found:
        raise DataError(
            "no example has a mask of the object it is about (its label, its answer or a word of its prompt): take "
            "emoji-scenes, coco-objects or a folder with a column 'masks'"
        )
    return found


def _erase(examples: list[Example], rng: np.random.Generator, fill: corruptions.Fill) -> list[Pair]:
    return [
        _pair(one, corruptions.erased(_picture(one), mask, fill), f"object (erased, filled with {fill})")
        for one, _, mask in _with_masks(examples)
    ]


def _replace(examples: list[Example], rng: np.random.Generator, fill: corruptions.Fill) -> list[Pair]:
    masked, made = _with_masks(examples), []
    for one, name, mask in masked:
        others = [(o, its_name, its) for o, its_name, its in masked if its_name != name]
        if not others:
            raise DataError(f"all objects with a mask are {name!r}: there is no other to put in their place")
        other, new, its_mask = others[int(rng.integers(len(others)))]
        picture = corruptions.replaced(_picture(one), mask, _picture(other), its_mask, fill)
        # the answer is known where it is the object's name
        made.append(_pair(one, picture, "object (replaced)", new if one.answers[0] == name else None))
    return made


def _blur(examples: list[Example], rng: np.random.Generator, radius: float | None) -> list[Pair]:
    made = []
    for one in examples:
        wide = max(_picture(one).size) / 8 if radius is None else radius
        made.append(_pair(one, corruptions.blurred(_picture(one), wide), f"blur (sd {wide:g} px)"))
    return made


def _mean(examples: list[Example], rng: np.random.Generator) -> list[Pair]:
    if len(examples) < 2:
        raise DataError("the mean of one picture is that picture: draw more examples (n=)")
    mean = corruptions.mean_picture([_picture(one) for one in examples])
    return [_pair(one, mean, f"picture (mean of {len(examples)})") for one in examples]


def _swap(examples: list[Example], rng: np.random.Generator) -> list[Pair]:
    made = []
    for one in examples:
        others = [o for o in examples if o is not one and o.answers[0] not in one.answers]
        alike = [o for o in others if o.prompt == one.prompt]
        if not others:
            continue
        other = (alike or others)[int(rng.integers(len(alike or others)))]
        made.append(_pair(one, _picture(other), "picture (swapped)", other.answers[0] if alike else None))
    return made


def _noise(examples: list[Example], rng: np.random.Generator, multiple: float) -> list[Pair]:
    words = f"noise ({multiple:g} sd of the image tokens' embeddings)"
    return [_pair(one, _picture(one), words, noise=multiple) for one in examples]


def _picture(example: Example) -> Image.Image:
    assert example.image is not None
    return example.image
