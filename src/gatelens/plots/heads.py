"""Attention heads with circuitsvis, the image tokens shown as the image.

circuitsvis draws every cell in the page: 1,100 tokens and a few heads make 100 MB. So image tokens can be
pooled: a pooled query row is the mean of its rows, a pooled key column the sum of its columns, and rows
still sum to 1.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from circuitsvis.attention import attention_heads
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from gatelens.atomic_files import check_writable, write_atomic
from gatelens.errors import DataError
from gatelens.plots.head_grid import head_grid
from gatelens.plots.pictures import picture_uri
from gatelens.plots.style import NotebookFigure
from gatelens.tokens import TokenMap

Pool = Literal["row", "tile", "image", "auto"] | None
MOST_UNPOOLED = 64  # image tokens drawn one by one when pool="auto"
_DEPTH: dict[Pool, int] = {
    "image": 1,
    "tile": 2,
    "row": 3,
}  # how much of (image, tile, row) pooled tokens share
MOST_CELLS = 3_000_000  # head × query × key: about 30 MB of page


@dataclass(frozen=True)
class HeadsView:
    """An interactive page of attention heads: shown in a notebook, or saved as one file that needs no
    network.

    Attributes:
        tokens: labels of the drawn positions, pooled ones included.
        attention: Float[head, query, key], what is drawn.
        note: what was pooled or left out, in words.
    """

    tokens: tuple[str, ...]
    attention: Float[Tensor, "head query key"]
    names: tuple[str, ...]
    note: str
    title: str
    picture: str = ""

    def page(self) -> str:
        """The view as HTML with its scripts inside."""
        drawn = attention_heads(
            attention=self.attention.numpy().round(4),
            tokens=[t.replace(" ", "·") for t in self.tokens],  # it drops every kind of space
            attention_head_names=list(self.names),
            min_value=0.0,
            max_value=1.0,
        )
        style = "font:14px/1.5 system-ui,sans-serif;color:#1d2430;background:#fff;padding:16px"
        title, note = html.escape(self.title), html.escape(self.note)
        head = f"<strong>{title}</strong><br><span style='color:#5b6675'>{note}</span>"
        return (
            f'<div style="{style}">'
            '<div style="display:flex;gap:16px;align-items:flex-start;margin-bottom:12px">'
            f"{self.picture}<div>{head}</div></div>{drawn.local_src}</div>"
        )

    def _repr_html_(self) -> str:
        return self.page()

    def figure(self, columns: int = 4, dark: bool = False) -> NotebookFigure:
        """The same heads as a still picture, ``columns`` in a row; see :func:`gatelens.plots.head_grid.head_grid`.

        Shows itself in a notebook; ``figure().savefig("heads.pdf")`` for a paper.
        """
        return head_grid(self.attention, self.tokens, self.names, self.title, columns=columns, dark=dark)

    def __repr__(self) -> str:
        return f"HeadsView({self.title}; {len(self.names)} heads, {len(self.tokens)} positions; {self.note})"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page as one HTML file that opens without a network.

        Raises:
            OutputError: the file can't be written.
        """
        file = Path(path).expanduser()
        check_writable(file.parent)
        start = '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        title = f"<title>{html.escape(self.title)}</title></head><body>"
        write_atomic(file, f"{start}{title}{self.page()}</body></html>".encode())
        return file


def heads(
    cache: Mapping[str, Tensor] | Float[Tensor, "batch head query key"],
    tokens: TokenMap,
    layer: int,
    example: int = 0,
    *,
    heads: Sequence[int] | None = None,
    pool: Pool = "auto",
    only: Any = None,
    picture: Image.Image | None = None,
) -> HeadsView:
    """Attention patterns of one layer.

    Args:
        cache: from ``run_with_cache`` (holding ``blocks.<layer>.attn.hook_pattern``), or the pattern itself.
        tokens: the inputs' TokenMap.
        layer, example: which layer, and which prompt of the batch.
        heads: which heads; None is all.
        pool: ``"row"`` one position a row of the image (of each tile, where it is cut up), ``"tile"`` one a
            tile, ``"image"`` one an image, None each token for itself; ``"auto"`` is the first of None, row,
            tile and image that makes at most 64 positions (image where rows are unknown).
        only: selector of the positions to draw (pooling comes after); the rows drawn then sum to less than 1.
        picture: the original picture, drawn beside with its token grid.

    Raises:
        DataError: no pattern in the cache, an unknown head or example, or a page too large to open.
    """
    pattern = _pattern(cache, layer)
    if not 0 <= example < pattern.shape[0]:
        raise DataError(f"heads: example {example} does not exist, the batch has {pattern.shape[0]}")
    n_heads = pattern.shape[1]
    chosen = list(range(n_heads)) if heads is None else [int(h) for h in heads]
    wrong = [h for h in chosen if not 0 <= h < n_heads]
    if wrong or not chosen:
        raise DataError(f"heads: head(s) {wrong or 'none'} asked for, layer {layer} has 0 to {n_heads - 1}")
    one = pattern[example, chosen].detach().float().cpu()
    if one.shape[-1] != tokens.n_pos or one.shape[-2] != tokens.n_pos:
        raise DataError(
            f"heads: the pattern is {tuple(one.shape[1:])}, the token map has {tokens.n_pos} positions"
        )
    keep = tokens.mask("all" if only is None else only)[example].nonzero().flatten().tolist()
    groups, labels, note = _groups(tokens, example, keep, pool)
    if len(chosen) * len(groups) ** 2 > MOST_CELLS:
        raise DataError(
            f"heads: {len(chosen)} heads of {len(groups)} positions are too many to draw; pool the image "
            "(pool='row'), choose heads=[…] or only='…'"
        )
    pooled = torch.stack([one[:, :, g].sum(-1) for g in groups], dim=-1)
    pooled = torch.stack([pooled[:, g].mean(1) for g in groups], dim=1)
    if only is not None:
        note += f"; only the positions {only!r}" if isinstance(only, str) else "; chosen positions only"
    names = tuple(f"L{layer}H{h}" for h in chosen)
    beside = _picture(picture, tokens, example) if picture is not None else ""
    return HeadsView(
        tuple(labels), pooled, names, note, f"Attention, layer {layer}, example {example}", beside
    )


def _pattern(cache: Any, layer: int) -> Tensor:
    if isinstance(cache, Tensor):
        if cache.ndim != 4:
            raise DataError(
                f"heads: a pattern must be [batch, head, query, key], got shape {tuple(cache.shape)}"
            )
        return cache
    name = f"blocks.{layer}.attn.hook_pattern"
    try:
        return cache[name]
    except KeyError:
        raise DataError(
            f"heads: the cache has no {name!r}; run_with_cache(inputs, names_filter={name!r}) keeps it"
        ) from None


def _groups(
    tokens: TokenMap, b: int, keep: Sequence[int], pool: Pool
) -> tuple[list[list[int]], list[str], str]:
    """Positions drawn as one, their labels, and what was done in words.

    Only neighbours are drawn as one: what stands between two tiles of a picture keeps its place.
    """
    image = set(tokens.mask("image")[b].nonzero().flatten().tolist())
    shown = [p for p in keep if p in image]
    many = int(tokens.image_index[b].max()) > 0
    if pool == "auto":
        pool = _fitting(tokens, b, shown)
    if pool not in (None, "row", "tile", "image"):
        raise DataError(f"heads: pool={pool!r} is unknown; choose 'row', 'tile', 'image', None or 'auto'")
    tiled = {int(tokens.image_index[b, p]) for p in shown if int(tokens.tile[b, p]) > 0}
    groups: list[list[int]] = []
    labels: list[str] = []
    last: tuple[int, ...] | None = None
    for p in keep:
        i, tile, row, col = (int(x[b, p]) for x in (tokens.image_index, tokens.tile, tokens.row, tokens.col))
        name = f"img{i}" if many else "img"
        if i in tiled and pool != "image":
            name += f" tile {tile}" if tile > 0 else " whole"
        key = None if p not in image or pool is None else (i, tile, row)[: _DEPTH[pool]]
        if key is not None and key == last:
            groups[-1].append(p)
            continue
        last = key
        groups.append([p])
        if p not in image:
            labels.append(tokens.strings[b][p] or f"pos {p}")
        elif pool == "image":
            labels.append(f"{name} (all)")
        elif pool == "tile":
            labels.append(name)
        else:
            labels.append(f"{name} row {row}" if pool == "row" else f"{name} {row},{col}")
    n = len(shown)
    words = {
        None: f"{n} image tokens, one by one: img row,column",
        "row": f"{n} image tokens pooled by row: columns summed, rows averaged",
        "tile": f"{n} image tokens pooled to one a tile: columns summed, rows averaged",
        "image": f"{n} image tokens pooled to one an image: columns summed, rows averaged",
    }
    return groups, labels, words[pool]


def _fitting(tokens: TokenMap, b: int, shown: Sequence[int]) -> Pool:
    """The least pooling that leaves few enough positions.

    Counted as drawn: rows of a tile may alternate with its neighbour's, and separators part what they stand in.
    """
    if len(shown) <= MOST_UNPOOLED:
        return None
    where = torch.tensor(list(shown))
    parted = where - torch.arange(len(where))  # grows wherever something stands between two image tokens
    place = torch.stack(
        [parted, *(x[b, where] for x in (tokens.image_index, tokens.tile, tokens.row))], dim=-1
    )
    if bool((place[:, 3] < 0).any()):
        return "image"
    ways: tuple[Pool, ...] = ("row", "tile")
    for way in ways:
        if len(place[:, : 1 + _DEPTH[way]].unique_consecutive(dim=0)) <= MOST_UNPOOLED:
            return way
    return "image"


def _picture(picture: Image.Image, tokens: TokenMap, b: int, width: int = 220) -> str:
    """The picture with the token grid over it, as an inline image."""
    scale = width / picture.width
    canvas = picture.convert("RGB").resize((width, max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(canvas, "RGBA")
    for p in tokens.mask("image")[b].nonzero().flatten().tolist():
        box = tokens.box[b, p]
        if int(tokens.image_index[b, p]) == 0 and not bool(box.isnan().any()):
            draw.rectangle([float(x) * scale for x in box.tolist()], outline=(255, 255, 255, 110))
    return f'<img alt="picture with token grid" style="border-radius:6px" src="{picture_uri(canvas)}">'
