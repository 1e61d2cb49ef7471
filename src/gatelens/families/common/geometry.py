"""From processed pixels back to the original picture: the inverse of resize and centre crop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """What an image processor does to a picture, in this order: pad to square, resize, centre crop.

    Attributes:
        processed: (width, height) the model sees, in pixels as all others here.
        shortest: resize so that the shorter side is this long.
        exact: resize to this (width, height); no resize where this and ``shortest`` are None.
        crop: (width, height).
        square: pad to a square first.
        longest: resize so that the longer side is this long, then pad to a square, the picture in the middle.
        least: the shortest the other side may become with ``longest``.

    Example:
        >>> geometry = gl.Geometry((336, 336), shortest=336, crop=(336, 336))
        >>> geometry.boxes((640, 480), 2, 2)
        tensor([[ 80.,   0., 320., 240.],
                [320.,   0., 560., 240.],
                [ 80., 240., 320., 480.],
                [320., 240., 560., 480.]], dtype=torch.float64)
    """

    processed: tuple[int, int]
    shortest: int | None = None
    exact: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    square: bool = False
    longest: int | None = None
    least: int = 1

    @staticmethod
    def of(image_processor: Any, processed: tuple[int, int]) -> Geometry:
        """Read off a Hugging Face image processor; None means that pictures come as the model sees them."""
        if image_processor is None:
            return Geometry(processed)
        shortest, exact, crop = None, None, None
        if getattr(image_processor, "do_resize", False):
            shortest = _read(image_processor.size, "shortest_edge")
            width, height = (_read(image_processor.size, key) for key in ("width", "height"))
            exact = (width, height) if shortest is None and width and height else None
        if getattr(image_processor, "do_center_crop", False):
            crop = (_read(image_processor.crop_size, "width"), _read(image_processor.crop_size, "height"))
        square = hasattr(image_processor, "pad_to_square") and bool(getattr(image_processor, "do_pad", False))
        return Geometry(crop or exact or processed, shortest, exact, crop, square)

    @staticmethod
    def of_processor(processor: Any, side: int) -> Geometry:
        """:meth:`of` for the image processor of a processor, or None, and a model that sees squares."""
        return Geometry.of(getattr(processor, "image_processor", None), (side, side))

    def boxes(
        self, size: tuple[int, int], rows: int, cols: int, cell: float | None = None
    ) -> Float[Tensor, "cells 4"]:
        """Pixel boxes (x0, y0, x1, y1) in a picture of ``size`` (width, height), by rows, clipped to it.

        ``cell``: processed pixels of a cell's side, where the cells leave a strip on the right and below
        unseen (a tower that cuts 384 pixels into 27 patches of 14); None when they fill the picture.
        """
        x = _edges(size[0], size, self, axis=0, n=cols, cell=cell)
        y = _edges(size[1], size, self, axis=1, n=rows, cell=cell)
        out = torch.empty(rows, cols, 4, dtype=torch.float64)
        out[..., 0], out[..., 2] = x[:-1], x[1:]
        out[..., 1], out[..., 3] = y[:-1, None], y[1:, None]
        return out.view(-1, 4)


def _read(size: Any, key: str) -> Any:
    return size.get(key) if hasattr(size, "get") else getattr(size, key, None)


def _edges(
    length: int, size: tuple[int, int], how: Geometry, axis: int, n: int, cell: float | None = None
) -> Tensor:
    """Original pixel coordinates of the n+1 cell edges along one axis."""
    if how.longest is not None:
        resized = max(round(length * (how.longest / max(size))), how.least)
        edges = torch.arange(n + 1, dtype=torch.float64) * (how.longest / n if cell is None else cell)
        return ((edges - (how.longest - resized) // 2) * (length / resized)).clamp(0, length)
    padded = max(size) if how.square else length
    before_resize = (padded - length) // 2
    if how.shortest is not None:
        short, this = (max(size), padded) if how.square else (min(size), length)
        resized = how.shortest if this == short else int(how.shortest * this / short)
    elif how.exact is not None:
        resized = how.exact[axis]
    else:
        resized = padded
    seen = how.crop[axis] if how.crop is not None else resized
    # where the crop window starts in the resized picture; negative when the crop pads a small picture
    start = (resized - seen) // 2
    if start < 0:
        padding = math.ceil((max(seen, resized) - resized) / 2)
        start = -padding
    edges = torch.arange(n + 1, dtype=torch.float64) * (seen / n if cell is None else cell) + start
    return (edges * (padded / resized) - before_resize).clamp(0, length)
