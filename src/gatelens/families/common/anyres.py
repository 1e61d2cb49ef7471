"""Pictures of any resolution, as LLaVA-NeXT and LLaVA-OneVision cut them.

The whole picture, squeezed into one tile, comes first. Then the picture is resized into the best of some
resolutions, padded to fill it, and cut into tiles; the tower's features of all tiles are put together into one
grid again, rows and columns of padding are dropped, and a newline feature ends every row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from gatelens.errors import InputError
from gatelens.families.common.geometry import Geometry
from gatelens.families.common.plan import Picture, PicturePlan, Size, chain, grid, placeless

SIZES, COUNT = "image_sizes", "batch_num_images"


@dataclass(frozen=True)
class SideTokens:
    """The tokens of the high-resolution grid along one side of the picture.

    Attributes:
        spans: the original pixels of each.
        tile: which tile they are in.
        place: their number in it.
    """

    spans: Float[Tensor, "n 2"]
    tile: Int[Tensor, " n"]
    place: Int[Tensor, " n"]


@dataclass(frozen=True)
class AnyRes:
    """Tokens of a picture that is cut into tiles, with an overview before them.

    Attributes:
        side: pixels of a tile's side.
        patch: pixels of a patch's side; where it does not divide ``side``, a strip of each tile is not seen.
        pinpoints: the resolutions (height, width) a picture may be resized to.
        most: a grid of more than this many tiles is shrunk to it by interpolation; then a token mixes up to
            2 x 2 features, and its box is its share of the picture.
        lone: whether only a picture that is alone in its prompt is cut into tiles; others are one tile, padded
            to a square, and one newline.
    """

    side: int
    patch: int
    pinpoints: tuple[tuple[int, int], ...]
    most: int | None = None
    lone: bool = False

    @property
    def pixel_size(self) -> Size:
        """(width, height) of each tile in ``pixel_values``."""
        return self.side, self.side

    def __call__(self, picture: Picture) -> PicturePlan:
        """The overview, and the rows of the tiles after it.

        Raises:
            InputError: nothing tells the size of the picture.
        """
        size = self._size(picture)
        count = picture.tensors.get(COUNT) if self.lone else None
        n, whole = self.side // self.patch, (self.side, self.side)
        if count is not None and int(count) != 1:
            boxes = Geometry(whole, exact=whole, square=True).boxes(size, n, n, self.patch)
            return chain([grid(boxes, n, size), placeless(1, size, breaks=True)])
        overview = grid(Geometry(whole, exact=whole).boxes(size, n, n, self.patch), n, size)
        return chain([overview, *self._rows(size)])

    @staticmethod
    def _size(picture: Picture) -> Size:
        if picture.size is not None:
            return picture.size
        if SIZES not in picture.tensors:
            raise InputError(f"placeholders without {SIZES}: give it, one (height, width) a picture")
        height, width = (int(n) for n in picture.tensors[SIZES])
        return width, height

    def _rows(self, size: Size) -> Iterator[PicturePlan]:
        """The rows of the high-resolution grid, each with its newline."""
        width, height = size
        best: tuple[int, int] = select_best_resolution((height, width), list(self.pinpoints))
        resized = _fitted((height, width), best)
        n_tiles = [length // self.side for length in best]
        full = [n * (self.side // self.patch) for n in n_tiles]
        padding = _padding((height, width), full)
        kept = [n - 2 * pad for n, pad in zip(full, padding, strict=True)]
        n_out = self._shrunk(kept)
        down, across = (
            self._side_tokens(length, resized[axis], best[axis], padding[axis], kept[axis], n_out[axis])
            for axis, length in enumerate((height, width))
        )
        for span, tile, place in zip(down.spans, down.tile.tolist(), down.place.tolist(), strict=True):
            tiles = 1 + tile * n_tiles[1] + across.tile
            if len(tiles):  # a long picture may leave only the newlines
                x0, x1 = across.spans.unbind(-1)
                boxes = torch.stack([x0, span[0].expand_as(x0), x1, span[1].expand_as(x0)], dim=-1)
                cells = grid(boxes, len(boxes), size)
                yield dataclasses.replace(
                    cells, row=torch.full_like(cells.row, place), col=across.place, tile=tiles
                )
            yield placeless(1, size, breaks=True, tile=int(tiles[-1]) if len(tiles) else 0)

    def _shrunk(self, shape: list[int]) -> list[int]:
        """What interpolation leaves of a grid of features."""
        if self.most is None:
            return shape
        ratio = math.sqrt(shape[0] * shape[1] / (self.most * (self.side // self.patch) ** 2))
        return [int(n // ratio) for n in shape] if ratio > 1.1 else shape

    def _side_tokens(
        self, length: int, resized: int, best: int, first: int, kept: int, n_out: int
    ) -> SideTokens:
        """One side: ``n_out`` tokens share the ``kept`` features from the ``first`` on.

        ``length``, ``resized``, ``best``: the side in original, resized and padded pixels.
        """
        n = self.side // self.patch
        edges = first + torch.linspace(0, kept, n_out + 1, dtype=torch.float64).round(decimals=6)
        start, end = edges[:-1], edges[1:]
        # features count on from tile to tile, pixels jump over the strip that is not seen
        tiles = torch.stack([(start / n).floor(), (end / n).ceil() - 1], dim=-1)
        pixels = tiles * self.side + (torch.stack([start, end], dim=-1) - tiles * n) * self.patch
        spans = ((pixels - (best - resized) // 2) * (length / resized)).clamp(0, length)
        tile = ((start + end) / 2 / n).floor().long()
        place = torch.arange(n_out) - torch.searchsorted(tile, tile)
        return SideTokens(spans, tile, place)


def _fitted(size: tuple[int, int], best: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture resized to fit into the best resolution, as the image processors do."""
    scale = [b / length for b, length in zip(best, size, strict=True)]
    if scale[1] < scale[0]:
        return min(math.ceil(size[0] * scale[1]), best[0]), best[1]
    return best[0], min(math.ceil(size[1] * scale[0]), best[1])


def _padding(size: tuple[int, int], full: list[int]) -> tuple[int, int]:
    """Rows at the top (and bottom), columns at the left (and right) the models drop as padding."""
    height, width = size
    if width / height > full[1] / full[0]:
        return (full[0] - int(round(height * (full[1] / width), 7))) // 2, 0
    return 0, (full[1] - int(round(width * (full[0] / height), 7))) // 2
