"""Whether a word looked at its object: attention on image tokens against the object's mask, by layer.

WI enlarges the attention of an object's word over the image tokens (mean over heads) to the picture, and asks whether
its maximum lies in the object's mask, or within 40 pixels of it. Here a token's attention is spread evenly over its
own box (``TokenMap.box``); where boxes overlap the densities add up. The maximum is then a cell and not a point, and a
hit is the share of the cell's pixels that lie in the mask: what a point drawn from it scores on average. So an even
map scores exactly the chance level, the mask's share of the pixels that the tokens cover.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from gatelens.errors import DataError
from gatelens.tokens import TokenMap

BANDS = 8
"""WI's bands are ten layers of 80."""
_EDGE = 1e-4  # box edges are float32: a pixel that is covered up to this is covered
_TIE = 1e-6  # relative: painted values this close to the maximum are the maximum

Mask = Bool[np.ndarray, "height width"]


class ImageAttention:
    """Records attention on image tokens, by layer and row, mean over heads; to be given to ``generate``.

    Row ``r`` writes the r-th new token: row 0 is the last prompt token's, row ``r`` that of generated token ``r − 1``.

    Example:
        >>> seen = gl.measures.ImageAttention(inputs.tokens, model.cfg.n_layers)
        >>> generation = gl.engine.generate(model, inputs, see=seen, max_new_tokens=1)
        >>> seen.of(example=0, rows=[0]).shape  # layers, image tokens
        torch.Size([6, 64])
    """

    def __init__(self, tokens: TokenMap, n_layers: int) -> None:
        self.tokens, self.n_layers = tokens, n_layers
        self.positions = [tokens.positions("image", b) for b in range(tokens.batch_size)]
        width = max(map(len, self.positions))
        index = torch.zeros(tokens.batch_size, width, dtype=torch.int64)
        for b, where in enumerate(self.positions):
            index[b, : len(where)] = torch.tensor(where, dtype=torch.int64)
        self._index = index
        self._rows: dict[tuple[int, int], Float[Tensor, "batch image"]] = {}

    def __call__(self, layer: int, pattern: Float[Tensor, "batch head 1 key"], position: int) -> None:
        """Keep a layer's row at ``position``."""
        mean = pattern[:, :, -1].detach().float().mean(dim=1).cpu()
        self._rows[layer, position - self.tokens.prompt_length + 1] = mean.gather(1, self._index)

    def of(self, example: int, rows: Sequence[int], image: int = 0) -> Float[Tensor, "layer image"]:
        """Mean over ``rows`` of one example's attention on the tokens of one of its images.

        Raises:
            DataError: no rows, or one that was not seen.
        """
        missing = [r for r in rows if any((layer, r) not in self._rows for layer in range(self.n_layers))]
        if missing or not rows:
            raise DataError(
                f"image attention: rows {missing or list(rows)} were not seen; name rows that were"
            )
        n = len(self.positions[example])
        mine = self.tokens.image_index[example, self.positions[example]] == image
        layers = [
            torch.stack([self._rows[layer, r][example, :n] for r in rows]).mean(dim=0)
            for layer in range(self.n_layers)
        ]
        return torch.stack(layers)[:, mine]


def word_rows(
    ids: Sequence[int], decode: Callable[[list[int]], str], start: int, stop: int, own: bool = False
) -> list[int]:
    """Rows (see :class:`ImageAttention`) of the generated tokens that spell ``decode(ids)[start:stop]``.

    By default the rows that write the tokens; with ``own=True`` the rows in which they are the query, one later. Of
    those the last token of a generation has none: leave out what was not seen.
    """
    edges = list(pairwise(token_edges(ids, decode)))
    tokens = [k for k, (low, high) in enumerate(edges) if low < high and low < stop and high > start]
    if not tokens:
        raise DataError(
            f"word rows: no token spells characters {start}–{stop} of {decode(list(ids))!r}; "
            "give a span of that text"
        )
    return [k + own for k in tokens]


def token_edges(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[int]:
    """Where each token begins in ``decode(ids)``, and where the last one ends: ``len(ids) + 1`` characters.

    The first ``k`` tokens reach as far as their own text agrees with the whole; so half a character, or a space
    that decoding takes back, belongs to the token that completes it.
    """
    whole = decode(list(ids))
    edges = [0]
    for k in range(1, len(ids) + 1):
        part = decode(list(ids[:k]))
        same = takewhile(lambda pair: pair[0] == pair[1], zip(part, whole, strict=False))
        edges.append(max(edges[-1], len(list(same))))
    return edges


def paint(
    values: Float[Tensor, "layer token"],
    boxes: Float[Tensor, "token 4"],
    size: tuple[int, int],
    tiles: Sequence[int] | Tensor | None = None,
) -> Float[np.ndarray, "layer height width"]:
    """Values of tokens as densities over the pixels of a picture of ``size`` (width, height).

    A pixel holds the sum over tokens of value × the part of the token's box that lies on it ÷ the box's area.
    A box that the picture's edge clips is taken to be as large as the largest of its kind (``tiles``: 0 for the
    whole picture, other numbers for its pieces): what a token saw of padding is not heaped on its visible rest.
    Tokens without a place (nan) or without area are left out.
    """
    values = torch.as_tensor(values).detach().double().cpu()
    boxes, area = _boxes_and_area(boxes)
    piece = torch.zeros(len(area), dtype=torch.bool) if tiles is None else torch.as_tensor(tiles) > 0
    nominal = torch.ones_like(area)
    for kind in (piece, ~piece):
        if bool(area[kind].any()):
            nominal[kind] = area[kind].max()
    placed = area > 0
    return _add_up((values / nominal)[:, placed], boxes[placed], size)


def _boxes_and_area(
    boxes: Float[Tensor, "token 4"],
) -> tuple[Float[Tensor, "token 4"], Float[Tensor, " token"]]:
    """Boxes in float64 and their areas, 0 for a token without a place."""
    boxes = torch.as_tensor(boxes).double().cpu()
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes, sides.prod(dim=-1).nan_to_num(0).clamp_min(0)


def _add_up(
    density: Float[Tensor, "layer token"], boxes: Float[Tensor, "token 4"], size: tuple[int, int]
) -> Float[np.ndarray, "layer height width"]:
    """At every pixel the densities of the boxes on it, by the part of the pixel they cover."""
    width, height = size
    across = _coverage(boxes[:, 0], boxes[:, 2], width)
    bands, band = torch.unique(boxes[:, 1::2], dim=0, return_inverse=True)
    rows = torch.zeros(len(density), len(bands), width, dtype=torch.float64)
    for i in range(len(bands)):  # tokens of one row share their share of every line of pixels
        rows[:, i] = density[:, band == i] @ across[band == i]
    down = _coverage(bands[:, 0], bands[:, 1], height)
    return torch.einsum("lbw,bh->lhw", rows, down).numpy()


def _coverage(low: Float[Tensor, " n"], high: Float[Tensor, " n"], length: int) -> Float[Tensor, "n length"]:
    """How much of each pixel along one side lies between ``low`` and ``high``."""
    pixel = torch.arange(length, dtype=torch.float64)
    return (torch.minimum(high[:, None], pixel + 1) - torch.maximum(low[:, None], pixel)).clamp(0, 1)


def covered(boxes: Float[Tensor, "token 4"], size: tuple[int, int]) -> Mask:
    """The pixels that lie wholly under image tokens.

    Raises:
        DataError: no token has a place in the picture.
    """
    boxes, area = _boxes_and_area(boxes)
    placed = boxes[area > 0]
    if not len(placed):
        raise DataError("localisation: no image token has a place in the picture (their boxes are unknown)")
    count = _add_up(torch.ones(1, len(placed), dtype=torch.float64), placed, size)[0]
    return count > 1 - _EDGE


def scaled_tolerance(size: tuple[int, int], pixels: float = 40.0, of: float = 640.0) -> float:
    """WI's 40 pixels in a picture of ``size``: the same part of its longer side, 640 in MS-COCO (our reading)."""
    return pixels * max(size) / of


def dilate(mask: Mask, radius: float) -> Mask:
    """Pixels whose centre is at most ``radius`` from the centre of a pixel of the mask."""
    mask = np.asarray(mask, dtype=bool)
    if radius < 0:
        raise DataError(f"dilate: radius {radius} is negative; give pixels")
    if not mask.any():
        return mask
    return distance_transform_edt(~mask) <= radius + 1e-9


def maximum_hits(
    heat: Float[np.ndarray, "layer height width"], mask: Mask, seen: Mask
) -> Float[np.ndarray, " layer"]:
    """Share of the maximum's pixels that lie in the mask; only pixels of ``seen`` can be the maximum."""
    inside = np.where(seen, heat, -np.inf)
    best = inside.max(axis=(1, 2), keepdims=True)
    at = inside >= best - _TIE * np.abs(best)
    return (at & mask).sum(axis=(1, 2)) / at.sum(axis=(1, 2))


def layer_bands(n_layers: int, n: int = BANDS) -> list[range]:
    """The layers in ``n`` bands, as even as can be; one layer each when there are fewer."""
    edges = np.linspace(0, n_layers, min(n, n_layers) + 1).round().astype(int).tolist()
    return [range(a, b) for a, b in pairwise(edges)]


def localise(
    attention: Float[Tensor, "layer image"],
    tokens: TokenMap,
    mask: Any,
    example: int = 0,
    image: int = 0,
    tolerance: float | None = None,
    bands: Sequence[range] | None = None,
) -> pd.DataFrame:
    """One word against one object's mask: a row per layer, or a band of layers.

    Args:
        attention: of the word on the image's tokens in order (:meth:`ImageAttention.of`).
        tokens: the prompt's map.
        mask: [height, width] of the original picture; where the picture holds several such objects, of all.
        example, image: which prompt and which of its images.
        tolerance: pixels around the mask that still count as near; None scales WI's 40 to the picture.
        bands: ranges of layers to average before the maximum is looked for; None is each layer by itself.

    Returns:
        ``first, last`` (layers, inclusive), ``hit`` (see the module), ``near`` (within the tolerance),
        ``chance, chance_near`` (what a map without any preference scores), ``mass`` (the word's attention on the
        image's tokens), ``in_mask`` (the part of what is painted that lies in the mask; its chance is
        ``chance``), ``seen`` (share of the mask that any token covers).

    Raises:
        DataError: attention or a mask that does not fit the image, an empty mask, or tokens without a place.

    Example:
        >>> mask = torch.arange(scene.image.width).repeat(scene.image.height, 1) < scene.image.width / 2
        >>> even = torch.full((1, 64), 1 / 64)  # attention of one layer on the 8 × 8 image tokens
        >>> gl.measures.localise(even, inputs.tokens, mask)[["in_mask", "chance"]].values.tolist()
        [[0.5, 0.5]]
    """
    where = tokens.positions(f"image[{image}]", example)
    size = tokens.image_sizes[example][image]
    values = torch.as_tensor(attention).detach().double().cpu()
    truth = np.asarray(mask, dtype=bool)
    _check_fit(values, len(where), truth, size, bands or ())
    spans = [range(n, n + 1) for n in range(len(values))] if bands is None else list(bands)
    values = torch.stack([values[list(span)].mean(dim=0) for span in spans])
    boxes = tokens.box[example, where]
    seen = covered(boxes, size)
    heat = paint(values, boxes, size, tokens.tile[example, where])
    near = dilate(truth, scaled_tolerance(size) if tolerance is None else tolerance)
    total = heat.sum(axis=(1, 2))
    inside = (heat * truth).sum(axis=(1, 2))
    return pd.DataFrame(
        {
            "first": [span[0] for span in spans],
            "last": [span[-1] for span in spans],
            "hit": maximum_hits(heat, truth, seen),
            "near": maximum_hits(heat, near, seen),
            "chance": float((truth & seen).sum() / seen.sum()),
            "chance_near": float((near & seen).sum() / seen.sum()),
            "mass": values.sum(dim=1).numpy(),
            "in_mask": np.divide(inside, total, out=np.full_like(total, np.nan), where=total > 0),
            "seen": float((truth & seen).sum() / truth.sum()),
        }
    )


def _check_fit(
    values: Float[Tensor, "layer image"],
    n_tokens: int,
    mask: Mask,
    size: tuple[int, int],
    bands: Sequence[range],
) -> None:
    if values.ndim != 2 or values.shape[1] != n_tokens:
        misfit = f"attention {tuple(values.shape)} does not fit {n_tokens} image tokens"
        raise DataError(f"localise: {misfit}; give [layer, image token]")
    if mask.shape != (size[1], size[0]):
        misfit = f"mask {mask.shape} does not fit the picture of {size[0]}x{size[1]} pixels"
        raise DataError(f"localise: {misfit}; give [height, width]")
    if not mask.any():
        raise DataError("localise: the mask is empty; leave objects out that the picture does not hold")
    for band in bands:
        if not len(band) or band[0] < 0 or band[-1] >= len(values):
            raise DataError(f"localise: band {band} is not among {len(values)} layers")
