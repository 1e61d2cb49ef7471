"""Values of image tokens as heat over the original picture, drawn on the tokens' own boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from PIL.Image import Image
from torch import Tensor

from gatelens.errors import DataError
from gatelens.plots.style import NotebookFigure, Palette, styled
from gatelens.tokens import TokenMap


def overlay(
    values: Float[Tensor, " pos"] | Float[np.ndarray, " pos"],
    tokens: TokenMap,
    picture: Image,
    example: int = 0,
    image: int = 0,
    title: str = "",
    labels: bool = False,
    dark: bool = False,
) -> NotebookFigure:
    """The picture, and the picture under the values of its tokens.

    Where a family shows a picture whole and in tiles, tokens of both lie over the same pixels: each gets a panel
    of its own, on one scale.

    Args:
        values: one number a position of the prompt, or one an image token of this image (in order).
        tokens: from the inputs.
        picture: the original picture (``inputs.images[example][image]``).
        example, image: which prompt of the batch and which of its images.
        title: over the heat.
        labels: write ``row,col`` into every token's box (in tiles: within the tile).
        dark: draw on dark ground.

    Raises:
        DataError: values that fit neither, or tokens without a place in the picture.
    """
    where = tokens.positions(f"image[{image}]", example)
    numbers = _of_image_tokens(values, tokens, where)
    boxes = tokens.box[example, where].float().numpy()
    if np.isnan(boxes).any():
        raise DataError("overlay: these image tokens have no place in the picture (their box is unknown)")
    low, high = float(numbers.min()), float(numbers.max())
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), cmap="magma")
    colors = scale.to_rgba(numbers.numpy())
    tiled = (tokens.tile[example, where] > 0).tolist()
    parts = sorted(set(tiled))
    with styled(dark) as p:
        size = (3.6 * (1 + len(parts)), 3.1 * picture.height / picture.width + 0.7)
        figure = NotebookFigure(figsize=size, layout="constrained")
        left, *right = figure.subplots(1, 1 + len(parts))
        for axes in (left, *right):
            axes.imshow(picture, extent=(0, picture.width, picture.height, 0), interpolation="nearest")
            axes.set_axis_off()
        left.set_title("picture")
        for axes, in_tiles in zip(right, parts, strict=True):
            words = title or "token values"
            axes.set_title(words if len(parts) == 1 else f"{words}, {'tiles' if in_tiles else 'whole'}")
            mine = [i for i, tile in enumerate(tiled) if tile == in_tiles]
            _heat(axes, boxes[mine], colors[mine], p)
            if labels:
                # the picture alone stays clean where each panel has a grid of its own
                named = left if len(parts) == 1 else axes
                _label(named, boxes[mine], tokens, example, [where[i] for i in mine])
        figure.colorbar(scale, ax=right, shrink=0.8, pad=0.02).outline.set_visible(False)
    return figure


def _of_image_tokens(
    values: Float[Tensor, " pos"] | Float[np.ndarray, " pos"], tokens: TokenMap, where: Sequence[int]
) -> Float[Tensor, " token"]:
    """The values of the image tokens, whether given for them or for the whole prompt."""
    numbers = torch.as_tensor(values).detach().float().cpu().flatten()
    if len(numbers) == tokens.n_pos:
        numbers = numbers[where]
    if len(numbers) != len(where):
        raise DataError(
            f"overlay: {len(numbers)} values fit neither the {tokens.n_pos} positions "
            f"nor the {len(where)} image tokens"
        )
    return numbers


def _heat(
    axes: Axes, boxes: Float[np.ndarray, "token 4"], colors: Float[np.ndarray, "token rgba"], p: Palette
) -> None:
    """The boxes of tokens (pixels of the picture), filled with their colours."""
    for (x0, y0, x1, y1), color in zip(boxes, colors, strict=True):
        axes.fill([x0, x1, x1, x0], [y0, y0, y1, y1], facecolor=color, alpha=0.72, linewidth=0)
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=p.ground, linewidth=0.3, alpha=0.5)


def _label(
    axes: Axes,
    boxes: Float[np.ndarray, "token 4"],
    tokens: TokenMap,
    example: int,
    positions: Sequence[int],
) -> None:
    """``row,column`` in the middle of each box."""
    for (x0, y0, x1, y1), position in zip(boxes, positions, strict=True):
        place = f"{int(tokens.row[example, position])},{int(tokens.col[example, position])}"
        axes.text((x0 + x1) / 2, (y0 + y1) / 2, place, ha="center", va="center", fontsize=5, color="white")
