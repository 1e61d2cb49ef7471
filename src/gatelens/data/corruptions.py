"""Pictures with something taken out of them: an object, all detail, or everything that is their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageFilter
from scipy.ndimage import binary_dilation

from gatelens.data.base import Example
from gatelens.errors import DataError

Mask = Bool[np.ndarray, "height width"]
Fill = Literal["background", "picture"]
EDGE = 2  # pixels around a mask that are filled with it: artwork and photos have soft edges
RING = 3  # pixels beyond them whose colour is the background


def asked_object(example: Example) -> str | None:
    """The object with a mask that an example is about: its label, its answer, or one its prompt names."""
    names = example.masks
    for word in (example.label, *example.answers):
        if word in names:
            return word
    words = example.prompt.replace("?", " ").replace(",", " ").split()
    return next((name for name in names if f" {name} " in f" {' '.join(words)} "), None)


def erased(picture: Image.Image, mask: Mask, fill: Fill = "background") -> Image.Image:
    """The picture with what the mask shows filled by one colour.

    Args:
        mask: True where the object is.
        fill: ``background``, the colour just around the object; ``picture``, that of all else in the picture (medians).
    """
    pixels = np.asarray(picture.convert("RGB")).copy()
    if mask.shape != pixels.shape[:2] or not mask.any():
        raise DataError(
            f"a mask of {mask.shape[1]}x{mask.shape[0]} pixels, {int(mask.sum())} of them set, for a picture of "
            f"{picture.width}x{picture.height}: give one of the picture's size that is not empty"
        )
    gone = binary_dilation(mask, iterations=EDGE)
    around = binary_dilation(gone, iterations=RING) & ~gone if fill == "background" else ~gone
    if not around.any():
        raise DataError("the object fills its picture: there is nothing around it to fill it with")
    pixels[gone] = np.median(pixels[around], axis=0).round().astype(np.uint8)
    return Image.fromarray(pixels)


def replaced(
    picture: Image.Image, mask: Mask, other: Image.Image, other_mask: Mask, fill: Fill = "background"
) -> Image.Image:
    """The picture with another picture's object in the place of its own, scaled to the same box."""
    (x0, y0, x1, y1), cut = _box(mask), _box(other_mask)
    size = (x1 - x0, y1 - y0)
    art = other.convert("RGB").crop(cut).resize(size, Image.Resampling.LANCZOS)
    shape = Image.fromarray(other_mask.astype(np.uint8) * 255).crop(cut).resize(size)
    out = erased(picture, mask, fill)
    out.paste(art, (x0, y0), shape)
    return out


def _box(mask: Mask) -> tuple[int, int, int, int]:
    if not mask.any():
        raise DataError("an object's mask is empty: it shows no pixel")
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def blurred(picture: Image.Image, radius: float) -> Image.Image:
    """The picture under a Gaussian blur; ``radius`` is its standard deviation in pixels."""
    return picture.convert("RGB").filter(ImageFilter.GaussianBlur(radius))


def mean_picture(pictures: Sequence[Image.Image]) -> Image.Image:
    """The mean of pictures of one size, pixel by pixel.

    Raises:
        DataError: their sizes differ.
    """
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1:
        (a, b), (c, d) = sorted(sizes)[:2]
        raise DataError(f"pictures of {a}x{b} and {c}x{d} pixels have no mean: bring them to one size first")
    total = np.zeros((*np.asarray(pictures[0]).shape[:2], 3))
    for picture in pictures:
        total += np.asarray(picture.convert("RGB"))
    return Image.fromarray((total / len(pictures)).round().astype(np.uint8))
