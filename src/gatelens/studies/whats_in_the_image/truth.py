"""What is known of a picture beside its descriptions: the objects in it, and their masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from gatelens.errors import DataError

if TYPE_CHECKING:
    from gatelens.data import Example

Masks = Mapping[str, Bool[np.ndarray, "height width"]]
Segmenter = Callable[[Image.Image, Sequence[str]], Mapping[str, Any]]


def objects_in(example: Example) -> list[str] | None:
    """Names of the objects in the picture; None where the data does not say.

    ``meta["objects"]``: things with a ``name``, names, or one text of names with ``|`` between them.
    """
    found = example.meta.get("objects")
    if found is None or (isinstance(found, str) and not found.strip()):
        return None
    if isinstance(found, str):
        found = found.split("|")
    return list(dict.fromkeys(str(getattr(o, "name", o)).strip() for o in found))


def masks_of(example: Example, folder: Path | None = None) -> Masks:
    """Mask of each object by name, several of one name together; empty where the data has none.

    ``meta["masks"]``: arrays in the order of ``meta["objects"]``, or by name arrays or files (of ``folder``; what is
    not black is the object).

    Raises:
        DataError: masks that do not fit the objects or the picture, or a file that cannot be read.
    """
    given = example.meta.get("masks")
    if given is None or len(given) == 0:
        return {}
    if isinstance(given, Mapping):
        pairs = [(str(name), value) for name, value in given.items()]
    else:
        names = [str(getattr(o, "name", o)) for o in example.meta.get("objects", ())]
        if len(names) != len(given):
            raise DataError(f"example {example.id!r} has {len(given)} masks for {len(names)} objects")
        pairs = list(zip(names, given, strict=True))
    return _joined(pairs, example, folder)


def segmented(segmenter: Segmenter, example: Example, names: Sequence[str]) -> Masks:
    """Masks from a segmenter of the user's: ``segmenter(picture, names)`` gives arrays by name.

    Raises:
        DataError: a mask that does not fit the picture.
    """
    assert example.image is not None
    return _joined(list(segmenter(example.image, names).items()), example, None)


def _joined(pairs: Sequence[tuple[str, Any]], example: Example, folder: Path | None) -> Masks:
    assert example.image is not None
    shape = (example.image.height, example.image.width)
    out: dict[str, np.ndarray] = {}
    for name, value in pairs:
        mask = (
            _read(value, example, folder) if isinstance(value, (str, Path)) else np.asarray(value, dtype=bool)
        )
        if mask.shape != shape:
            raise DataError(
                f"example {example.id!r}: the mask of {name!r} is {mask.shape}, its picture {shape} (height, width)"
            )
        out[name] = out[name] | mask if name in out else mask
    return out


def _read(file: str | Path, example: Example, folder: Path | None) -> np.ndarray:
    path = (folder or Path()) / file
    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("L")) > 0
    except OSError:
        raise DataError(f"example {example.id!r}: {path} is no readable mask; give a picture file") from None
