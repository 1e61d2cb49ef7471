"""Values of image tokens over their picture, whose objects stay visible.

One rule for pages, figures and print: the picture in shades of grey, each token's box filled with one colour whose
opacity grows with its value, and a line around the tokens that reach half of the largest. ``templates/overlay.js``
draws the same in a page.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patheffects import Normal, Stroke
from PIL import Image
from torch import Tensor

from gatelens.errors import DataError
from gatelens.plots.style import NotebookFigure, Palette, styled
from gatelens.tokens import TokenMap

HEAT = (226, 0, 116)  # stands out from greys, light and dark
STRONGEST = 0.6  # opacity of the largest value: the object under it stays visible
GAMMA = 0.75  # below 1, small values show sooner
DARKEST = 64  # black of the picture in grey, so that the colour shows on dark objects too
OUTLINED = 0.499999  # of the largest value: tokens from half on are within the line, whatever rounding did
LINES = (
    (2, (20, 20, 28)),
    (1, (255, 255, 255)),
)  # pixels beyond the tokens, and colour: a light line on a dark one
PANEL = 3.1  # inches of a picture


@dataclass(frozen=True, eq=False)
class Part:
    """Image tokens that are side by side on a picture: all of it, the whole of one that is cut up too, or its tiles.

    Attributes:
        image: which picture of the prompt.
        name: empty where the picture has one part; else ``whole`` or ``tiles``.
        positions: of the tokens in the prompt.
        boxes: in pixels of the original picture, x0, y0, x1, y1.
        places: tile, row and column of each token.
    """

    image: int
    name: str
    positions: list[int]
    boxes: Float[np.ndarray, "token 4"]
    places: list[tuple[int, int, int]]

    def only(self, positions: Collection[int]) -> Part:
        """Its tokens at these positions."""
        wanted = set(positions)
        kept = [i for i, p in enumerate(self.positions) if p in wanted]
        where, places = [self.positions[i] for i in kept], [self.places[i] for i in kept]
        return Part(self.image, self.name, where, self.boxes[kept], places)


def parts_of(tokens: TokenMap, example: int, image: int) -> list[Part]:
    """The parts of one picture, of tokens that have a place in it; whole before tiles."""
    where = tokens.positions(f"image[{image}]", example)
    placed = [p for p in where if not bool(tokens.box[example, p].isnan().any())]
    tiled = {p: int(tokens.tile[example, p]) > 0 for p in placed}
    kinds = sorted(set(tiled.values()))
    return [
        Part(
            image,
            "" if len(kinds) == 1 else "tiles" if kind else "whole",
            mine := [p for p in placed if tiled[p] == kind],
            tokens.box[example, mine].float().numpy(),
            [tuple(int(x[example, p]) for x in (tokens.tile, tokens.row, tokens.col)) for p in mine],  # type: ignore[misc]
        )
        for kind in kinds
    ]


def opacity(values: Float[np.ndarray, "..."], top: float) -> Float[np.ndarray, "..."]:
    """How strongly a value covers the picture: from 0 to 0.6 at ``top``; below 0 as 0."""
    share = np.clip(np.asarray(values, dtype=float) / top, 0, 1) if top > 0 else np.zeros(np.shape(values))
    return STRONGEST * share**GAMMA


def outlined(
    values: Float[np.ndarray, "*rows token"], top: float | Float[np.ndarray, "*rows 1"]
) -> Bool[np.ndarray, "*rows token"]:
    """The tokens within the line: those that reach half of ``top``."""
    return (np.asarray(values) >= OUTLINED * top) & (np.asarray(top) > 0)


def greyed(picture: Image.Image) -> Image.Image:
    """What values are drawn over: the picture in light shades of grey, as RGB."""
    light = np.asarray(picture.convert("RGB").convert("L"), dtype=float)
    return Image.fromarray((DARKEST + light * (255 - DARKEST) / 255).round().astype(np.uint8)).convert("RGB")


def painted(
    picture: Image.Image,
    boxes: Float[np.ndarray, "token 4"],
    values: Float[np.ndarray, " token"],
    top: float | None = None,
) -> Image.Image:
    """The picture in grey under its values, pixel by pixel.

    Args:
        picture: what is painted over, in any size.
        boxes: in pixels of ``picture``; edges are rounded, so that neighbours meet.
        values: one per token.
        top: the value of full strength; None takes the largest.
    """
    shown = np.array(greyed(picture), dtype=float)
    high = float(np.max(values, initial=0.0)) if top is None else top
    edges = np.floor(np.asarray(boxes, dtype=float) + 0.5).astype(int)
    for (x0, y0, x1, y1), alpha in zip(edges, opacity(values, high), strict=True):
        under = shown[y0:y1, x0:x1]
        shown[y0:y1, x0:x1] = (1 - alpha) * under + alpha * np.array(HEAT)
    inside = edges[outlined(values, high)]
    line = np.full(shown.shape, np.nan)
    for wide, color in LINES:
        for x0, y0, x1, y1 in inside:
            line[max(0, y0 - wide) : y1 + wide, max(0, x0 - wide) : x1 + wide] = color
    for x0, y0, x1, y1 in inside:
        line[y0:y1, x0:x1] = np.nan
    return Image.fromarray(np.where(np.isnan(line), shown, line).round().astype(np.uint8))


def overlay(
    values: Float[Tensor, " pos"] | Float[np.ndarray, " pos"],
    tokens: TokenMap,
    picture: Image.Image,
    example: int = 0,
    image: int = 0,
    title: str = "",
    labels: bool = False,
    dark: bool = False,
) -> NotebookFigure:
    """The picture, and the same in grey under the values of its tokens.

    The line, white on black, is drawn around the tokens whose value is at least half of the largest.

    Where a family shows a picture whole and in tiles, tokens of both lie over the same pixels: each gets a panel
    of its own, on one scale. ``.savefig("x.svg")``, ``.pdf`` and ``.png`` keep boxes and lines as shapes.

    Args:
        values: one number per position of the prompt, or one per image token of this image (in order). The scale begins
            at 0, and what is below 0 is not drawn.
        tokens: from the inputs.
        picture: the original picture (``inputs.images[example][image]``).
        example, image: which prompt of the batch and which of its images.
        title: over the heat.
        labels: write ``row,col`` into every token's box (in tiles: within the tile).
        dark: draw on dark ground.

    Raises:
        DataError: values that fit neither, or tokens without a place in the picture.

    Example:
        >>> under = inputs.tokens.mask("image.box(0, 0, 32, 32)")[0].float()  # one number per position
        >>> gl.views.overlay(under, inputs.tokens, scene.image, title="upper left").savefig(folder.with_suffix(".png"))
        >>> folder.with_suffix(".png").exists()
        True
    """
    where = tokens.positions(f"image[{image}]", example)
    by_position = dict(zip(where, _of_image_tokens(values, tokens, where).tolist(), strict=True))
    parts = parts_of(tokens, example, image)
    if not parts:
        raise DataError("overlay: these image tokens have no place in the picture (their box is unknown)")
    top = max(by_position[p] for part in parts for p in part.positions)
    with styled(dark) as p:
        ratio = picture.height / picture.width
        size = (PANEL * (1 + len(parts)) + 0.8, PANEL * ratio + 0.45)
        figure = NotebookFigure(figsize=size, layout="constrained")
        left, *right = figure.subplots(1, 1 + len(parts))
        show_picture(left, picture)
        left.set_title("picture")
        for axes, part in zip(right, parts, strict=True):
            show_picture(axes, picture, grey=True)
            words = title or "token values"
            axes.set_title(f"{words}, {part.name}" if part.name else words)
            draw_heat(axes, part.boxes, np.array([by_position[at] for at in part.positions]), top)
            if labels:
                # the picture alone stays clean where each panel has a grid of its own
                _label(left if len(parts) == 1 else axes, part)
        scale = ScalarMappable(Normalize(0, top if top > 0 else 1), heat_colors(p))
        figure.colorbar(scale, ax=right, shrink=0.8, pad=0.02).outline.set_visible(False)
    return figure


def show_picture(axes: Axes, picture: Image.Image, grey: bool = False) -> None:
    """A picture in axes that count its pixels."""
    pixels = np.asarray(greyed(picture) if grey else picture.convert("RGB"))
    axes.imshow(pixels, extent=(0, picture.width, picture.height, 0), interpolation="nearest")
    axes.set(xlim=(0, picture.width), ylim=(picture.height, 0), aspect="equal")
    axes.set_axis_off()


def draw_heat(
    axes: Axes, boxes: Float[np.ndarray, "token 4"], values: Float[np.ndarray, " token"], top: float
) -> None:
    """What :func:`painted` does to pixels, as shapes."""
    colors = np.column_stack([np.tile(np.array(HEAT) / 255, (len(boxes), 1)), opacity(values, top)])
    fill_boxes(axes, boxes, colors)
    draw_outline(axes, boxes[outlined(values, top)])


def fill_boxes(
    axes: Axes, boxes: Float[np.ndarray, "token 4"], colors: Float[np.ndarray, "token rgba"]
) -> None:
    """Boxes filled each with its colour; no seam where they meet."""
    corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in boxes]
    axes.add_collection(PolyCollection(corners, facecolors=colors, linewidths=0, antialiaseds=False))


def draw_outline(axes: Axes, boxes: Float[np.ndarray, "inside 4"]) -> None:
    """A light line on a dark one around boxes."""
    segments = boundary(boxes)
    for width, color in ((2.4, "#14141c"), (1.1, "#ffffff")):
        axes.add_collection(LineCollection(segments, colors=color, linewidths=width, capstyle="projecting"))


def boundary(boxes: Float[np.ndarray, "inside 4"]) -> list[list[tuple[float, float]]]:
    """The border of what boxes cover together, as straight pieces; edges within it are left out."""
    if not len(boxes):
        return []
    boxes = np.asarray(boxes, dtype=float).round(3)  # edges that differ by rounding are one
    xs, ys = np.unique(boxes[:, [0, 2]]), np.unique(boxes[:, [1, 3]])
    full = np.zeros((len(ys) + 1, len(xs) + 1), dtype=bool)  # a rim of empty cells around
    for x0, y0, x1, y1 in boxes:
        row, col = np.searchsorted(ys, (y0, y1)), np.searchsorted(xs, (x0, x1))
        full[row[0] + 1 : row[1] + 1, col[0] + 1 : col[1] + 1] = True
    pieces = []
    for i, j in zip(*np.nonzero(full[1:, 1:-1] != full[:-1, 1:-1]), strict=True):
        pieces.append([(float(xs[j]), float(ys[i])), (float(xs[j + 1]), float(ys[i]))])
    for i, j in zip(*np.nonzero(full[1:-1, 1:] != full[1:-1, :-1]), strict=True):
        pieces.append([(float(xs[j]), float(ys[i])), (float(xs[j]), float(ys[i + 1]))])
    return pieces


def heat_colors(p: Palette) -> LinearSegmentedColormap:
    """The scale next to an overlay: what a value makes of the page's ground."""
    ground = np.array([int(p.ground[i : i + 2], 16) for i in (1, 3, 5)])
    alpha = opacity(np.linspace(0, 1, 64), 1.0)[:, None]
    return LinearSegmentedColormap.from_list("heat", (alpha * np.array(HEAT) + (1 - alpha) * ground) / 255)


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


def _label(axes: Axes, part: Part) -> None:
    """``row,column`` in the middle of each box."""
    for (x0, y0, x1, y1), (_, row, col) in zip(part.boxes, part.places, strict=True):
        write_on(axes, (x0 + x1) / 2, (y0 + y1) / 2, f"{row},{col}", 5)


def write_on(axes: Axes, x: float, y: float, word: str, size: float) -> None:
    """A word that can be read on any picture."""
    text = axes.text(x, y, word, ha="center", va="center", fontsize=size, color="white")
    text.set_path_effects([Stroke(linewidth=0.24 * size, foreground="#14141c"), Normal()])
