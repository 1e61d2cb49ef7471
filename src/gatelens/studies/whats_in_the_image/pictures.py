"""The pictures that are described, and what the data says about them: objects and their masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from gatelens.data import Dataset, Example
from gatelens.data.base import kind
from gatelens.data.prompts import CAPTION_PROMPT
from gatelens.errors import DataError
from gatelens.measures.objects import Vocabulary
from gatelens.pictures import load_mask

Masks = Mapping[str, Bool[np.ndarray, "height width"]]
Segmenter = Callable[[Image.Image, Sequence[str]], Mapping[str, Any]]

TASKS = ("caption", "class", "vqa")  # whose pictures to describe, the first that the data has


def pictures(data: Dataset, n: int, seed: int, prompt: str | None) -> list[Example]:
    """Up to ``n`` seeded pictures, each once, with the prompt that asks for a description.

    Args:
        data: the data set.
        n, seed: how many are drawn, and by which seed.
        prompt: in place of the data's own; None is that of its captions, or a caption prompt where it has none.

    Raises:
        DataError: the data has no pictures, or an example lacks its own.
    """
    task = next((t for wanted in TASKS for t in data.tasks if kind(t) == wanted), None)
    if task is None:
        raise DataError(
            f"data {data.name!r} has none of the tasks {', '.join(TASKS)} (it has: {', '.join(data.tasks)})"
        )
    captions = kind(task) == "caption"
    if prompt is None and not captions:
        prompt = "<image>" + CAPTION_PROMPT
    drawn: dict[Any, Example] = {}
    # several questions may be asked of one picture: draw more than are wanted
    for e in data.examples(task, limit=n if captions else 4 * n, seed=seed):
        if e.image is None:
            raise DataError(f"data {data.name!r}: {task} example {e.id!r} has no picture")
        key = e.id if captions else (e.image.size, hash(e.image.tobytes()))
        drawn.setdefault(key, e if prompt is None else dataclasses.replace(e, prompt=prompt))
    if not drawn:
        raise DataError(f"data {data.name!r} has no picture to describe")
    return list(drawn.values())[:n]


def vocabulary_of(data: Dataset, drawn: Sequence[Example]) -> Vocabulary:
    """The data's classes where its pictures say which objects they hold, else MS-COCO's."""
    known = [name for e in drawn for name in objects_in(e) or ()]
    coco = Vocabulary.coco()
    return coco if set(known) <= set(coco.names) else Vocabulary([*known, *data.classes])


def objects_in(example: Example) -> list[str] | None:
    """Names of the objects in the picture; None where the data does not say.

    ``meta["objects"]``: things with a ``name``, names, or one text of names with ``|`` between them.
    """
    objects = example.meta.get("objects")
    if objects is None or (isinstance(objects, str) and not objects.strip()):
        return None
    if isinstance(objects, str):
        objects = objects.split("|")
    return list(dict.fromkeys(str(getattr(o, "name", o)).strip() for o in objects))


def masks_of(example: Example) -> Masks:
    """Mask of each object by name, several of one name together; empty where the data has none.

    ``meta["masks"]``: arrays in the order of ``meta["objects"]``, or by name; also the paths of their files.

    Raises:
        DataError: masks that do not fit the objects or the picture.
    """
    masks = example.meta.get("masks")
    if masks is None or len(masks) == 0:
        return {}
    if isinstance(masks, Mapping):
        return _joined([(str(name), mask) for name, mask in masks.items()], example)
    names = [str(getattr(o, "name", o)) for o in example.meta.get("objects", ())]
    if len(names) != len(masks):
        raise DataError(f"example {example.id!r} has {len(masks)} masks for {len(names)} objects")
    return _joined(list(zip(names, masks, strict=True)), example)


def segmented(segmenter: Segmenter, example: Example, names: Sequence[str]) -> Masks:
    """Masks from a segmenter of the user's: ``segmenter(picture, names)`` gives arrays by name.

    Raises:
        DataError: a mask that does not fit the picture.
    """
    assert example.image is not None
    return _joined(list(segmenter(example.image, names).items()), example)


def mask_box(mask: np.ndarray) -> list[float]:
    """Left, top, right and bottom of a mask, from 0 to 1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return [round(float(e), 4) for e in edges]


def _joined(named: Sequence[tuple[str, Any]], example: Example) -> Masks:
    """The masks by name; those of one name are one."""
    assert example.image is not None
    shape = (example.image.height, example.image.width)
    out: dict[str, np.ndarray] = {}
    for name, given in named:
        is_file = isinstance(given, (str, Path))
        mask = load_mask(given, f"mask of {name!r}") if is_file else np.asarray(given, dtype=bool)
        if mask.shape != shape:
            raise DataError(
                f"example {example.id!r}: the mask of {name!r} is {mask.shape}, its picture {shape} (height, width)"
            )
        out[name] = out[name] | mask if name in out else mask
    return out
