"""Attention made small enough for a page: image tokens pooled, weights as bytes with a scale of their own."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.plots.overlay import Part, outlined

STEPS = 255


@dataclass(frozen=True, eq=False)
class Block:
    """Attention on keys that are shown together, such as the tokens of a picture.

    Attributes:
        values: attention to each cell.
        share: attention to all of them.
    """

    values: Float[Tensor, "layer head query cell"]

    @property
    def share(self) -> Float[Tensor, "layer head query"]:
        return self.values.sum(-1)

    def packed(self) -> dict[str, str]:
        """For a page: each row (layer, head, query) as bytes in steps of 1/255 of its largest value ``peak``.

        Peaks and shares are exact (float32): a row on which little attention falls keeps its shape.
        """
        values = self.values.float().numpy()
        peak = values.max(axis=-1, initial=0.0, keepdims=True)
        level = np.divide(values, peak, out=np.zeros_like(values), where=peak > 0)
        return {
            "values": as_base64((STEPS * level).round().astype(np.uint8)),
            "peak": as_base64(peak.astype(np.float32)),
            "share": as_base64(self.share.float().numpy()),
        }


def lined(blocks: Sequence[Block]) -> list[str]:
    """The cells of each block within the line: those that reach half of the row's largest in any block.

    Bits, each row in bytes of its own, by layer and head, each with the mean of all at the end, and query. They come
    from exact values: near half, values as bytes could not tell.
    """
    values = [with_means(block.values.float()).numpy() for block in blocks]
    top = np.max([each.max(-1, initial=0.0, keepdims=True) for each in values], axis=0) if blocks else 0.0
    return [as_base64(np.packbits(outlined(each, top), axis=-1, bitorder="little")) for each in values]


def with_means(values: Float[Tensor, "layer head *rest"]) -> Float[Tensor, "layers heads *rest"]:
    """The mean over heads after the heads, and the mean over layers after the layers; of one alone there is none."""
    for axis in (1, 0):
        if values.shape[axis] > 1:
            values = torch.cat([values, values.mean(axis, keepdim=True)], dim=axis)
    return values


def as_base64(array: np.ndarray) -> str:
    """The bytes of an array, little-endian, in its order."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def pooled(part: Part, side: int) -> tuple[list[list[int]], Part]:
    """Squares of ``side`` × ``side`` tokens of one grid: positions of each, and the part with a box and place a square.

    The place of a square is that of its first token.
    """
    squares: dict[tuple[int, int, int], list[int]] = {}
    for i, (tile, row, col) in enumerate(part.places):
        squares.setdefault((tile, row // side, col // side), []).append(i)
    members = list(squares.values())
    boxes = np.array(
        [[*part.boxes[m, :2].min(0), *part.boxes[m, 2:].max(0)] for m in members], dtype=np.float32
    ).reshape(-1, 4)
    positions = [[part.positions[i] for i in m] for m in members]
    places = [part.places[m[0]] for m in members]
    return positions, Part(part.image, part.name, [p[0] for p in positions], boxes, places)


def summed(rows: Float[Tensor, "layer head query key"], groups: Sequence[Iterable[int]]) -> Block:
    """Attention summed over the keys of each group."""
    index = torch.zeros(rows.shape[-1], len(groups), dtype=rows.dtype)
    for i, group in enumerate(groups):
        index[list(group), i] = 1
    return Block(rows @ index)


def squares_of(parts: Sequence[Part], side: int) -> int:
    """How many cells the parts have when pooled."""
    return sum(len({(t, r // side, c // side) for t, r, c in part.places}) for part in parts)


def geometry(part: Part, size: tuple[int, int], shown: tuple[int, int]) -> dict[str, Any]:
    """Boxes in pixels of the picture as shown, and what a cell is called."""
    scale = np.array([shown[0] / size[0], shown[1] / size[1]] * 2)
    return {
        "boxes": as_base64((part.boxes * scale).astype(np.float32)),
        "places": as_base64(np.array(part.places, dtype=np.int16)),
        "tiled": part.name == "tiles" or len({tile for tile, _, _ in part.places}) > 1,
    }
