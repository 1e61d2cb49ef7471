"""What the placeholders of one picture represent, in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.families.common.geometry import Geometry

Size = tuple[int, int]
_COLUMNS = ("row", "col", "tile", "box", "breaks")


@dataclass(frozen=True)
class Picture:
    """What is known about a picture when its tokens are placed.

    Attributes:
        size: (width, height) of the original in pixels, None when only tensors were given.
        n: placeholders left in its stretch of the prompt.
        tensors: this picture's row of each tensor in ``Layout.evidence``.
        ids: that stretch from the picture's first placeholder to the last, with the markers in between.

    Example:
        >>> plan = gl.FixedGrid(8, 8, gl.Geometry((64, 64), exact=(64, 64)))
        >>> placed = plan(gl.families.Picture(size=(640, 480), n=64))
        >>> placed.size, placed.row[-1], placed.col[-1]
        ((640, 480), tensor(7), tensor(7))
    """

    size: Size | None
    n: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    ids: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class PicturePlan:
    """One entry for each placeholder of a picture, in the order of the prompt.

    Attributes:
        row: row in its tile, -1 without a place.
        col: column in its tile, -1 without a place.
        tile: 0 for a picture in one piece; the pieces of a tiled picture count from 1 and its overview is 0.
        box: (x0, y0, x1, y1) in pixels of ``size``, nan without a place.
        breaks: whether the placeholder ends a row and shows nothing of the picture.
        size: (width, height) of the picture the boxes are in.
        pixel_rows: how many rows of ``pixel_values`` the picture takes.

    Example:
        >>> plan = gl.FixedGrid(2, 2, gl.Geometry((64, 64), exact=(64, 64)))
        >>> placed = plan(gl.families.Picture(size=(64, 64), n=4))
        >>> placed.row.tolist(), placed.col.tolist(), placed.box[3].tolist()
        ([0, 0, 1, 1], [0, 1, 0, 1], [32.0, 32.0, 64.0, 64.0])
    """

    row: Int[Tensor, " n"]
    col: Int[Tensor, " n"]
    tile: Int[Tensor, " n"]
    box: Float[Tensor, "n 4"]
    breaks: Bool[Tensor, " n"]
    size: Size
    pixel_rows: int = 1

    def __len__(self) -> int:
        return len(self.row)


def grid(
    boxes: Float[Tensor, "cells 4"],
    cols: int,
    size: Size,
    tile: int = 0,
    breaks: bool = False,
    pixel_rows: int = 1,
) -> PicturePlan:
    """Cells row by row; with ``breaks`` a placeholder without a place ends every row."""
    cells = torch.arange(len(boxes))
    row, col = cells // cols, cells % cols
    plan = PicturePlan(
        row,
        col,
        torch.full_like(row, tile),
        boxes.float(),
        torch.zeros_like(row, dtype=torch.bool),
        size,
        pixel_rows,
    )
    if not breaks:
        return plan
    end = placeless(1, size, breaks=True, tile=tile)
    rows = [part for r in range(len(boxes) // cols) for part in (cut(plan, r * cols, (r + 1) * cols), end)]
    return chain(rows, pixel_rows)


def tiles(geometry: Geometry, size: Size, rows: int, cols: int, n: int, first: int = 1) -> list[PicturePlan]:
    """A picture cut into ``rows`` x ``cols`` tiles of ``n`` x ``n`` cells, numbered row by row from ``first``."""
    boxes = geometry.boxes(size, rows * n, cols * n).view(rows, n, cols, n, 4)
    by_tile = boxes.transpose(1, 2).reshape(rows * cols, n * n, 4)
    return [grid(tile, n, size, tile=number) for number, tile in enumerate(by_tile, start=first)]


def resized_grid(
    picture: Picture, rows: int, cols: int, processed: Size, breaks: bool = False, pixel_rows: int = 1
) -> PicturePlan:
    """A picture resized as a whole to ``processed`` (width, height) pixels, which the cells fill; see :func:`grid`."""
    size = picture.size or processed
    boxes = Geometry(processed, exact=processed).boxes(size, rows, cols)
    return grid(boxes, cols, size, breaks=breaks, pixel_rows=pixel_rows)


def placeless(n: int, size: Size, breaks: bool = False, tile: int = 0) -> PicturePlan:
    """``n`` placeholders that show no place of the picture: a class token, a newline."""
    none = torch.full((n,), -1)
    return PicturePlan(
        none,
        none,
        torch.full((n,), tile),
        torch.full((n, 4), float("nan")),
        torch.full((n,), breaks),
        size,
    )


def chain(parts: Iterable[PicturePlan], pixel_rows: int = 1) -> PicturePlan:
    """The placeholders of the parts one after the other."""
    plans = list(parts)
    columns: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in plans]) for name in _COLUMNS}
    return PicturePlan(**columns, size=plans[0].size, pixel_rows=pixel_rows)


def cut(plan: PicturePlan, start: int, stop: int) -> PicturePlan:
    """Some of the placeholders."""
    columns: dict[str, Any] = {name: getattr(plan, name)[start:stop] for name in _COLUMNS}
    return PicturePlan(**columns, size=plan.size, pixel_rows=plan.pixel_rows)


@dataclass(frozen=True)
class FixedGrid:
    """Every picture becomes ``rows`` x ``cols`` tokens after ``n_leading`` tokens with no place.

    Attributes:
        rows: of cells.
        cols: of cells.
        geometry: what the image processor does to the picture.
        n_leading: 1 for a class token that is kept, -1 when the first cell is dropped.
        cell: pixels of a patch's side, where patches do not fill the processed picture (14 in 384: 27 patches
            see 378).

    Example:
        >>> grid = gl.FixedGrid(24, 24, gl.Geometry((336, 336), shortest=336, crop=(336, 336)))
        >>> grid.n_tokens
        576
    """

    rows: int
    cols: int
    geometry: Geometry
    n_leading: int = 0
    cell: float | None = None

    @classmethod
    def of_patches(cls, vision: Any, processor: Any) -> FixedGrid:
        """A cell for each patch of the tower configured by ``vision``; the processor says what it does to pictures."""
        side = vision.image_size // vision.patch_size
        return cls(side, side, Geometry.of_processor(processor, vision.image_size))

    @property
    def pixel_size(self) -> Size:
        """(width, height) of each picture in ``pixel_values``."""
        return self.geometry.processed

    @property
    def n_tokens(self) -> int:
        return self.rows * self.cols + self.n_leading

    def __call__(self, picture: Picture) -> PicturePlan:
        size = picture.size or self.geometry.processed
        cells = grid(self.geometry.boxes(size, self.rows, self.cols, self.cell), self.cols, size)
        if self.n_leading > 0:
            return chain([placeless(self.n_leading, size), cells])
        return cut(cells, -self.n_leading, len(cells))
