"""The words of a description, and where in the picture each of them looked.

A word is written by the row before it: the prompt's last row writes the first token, a generated row the one after
itself. So the attention of a word is that of the rows that write its tokens.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.data import Example
from gatelens.engine import generate
from gatelens.engine.generation import eos_ids
from gatelens.inputs import VLMInputs
from gatelens.measures.localisation import ImageAttention, layer_bands, localise, paint, token_edges
from gatelens.measures.objects import Vocabulary
from gatelens.measures.token_types import TokenTypeShare
from gatelens.model import HookedVLM
from gatelens.plots.pictures import picture_uri
from gatelens.tokens import TokenMap

MOST_CELLS = 36  # along one side of the map a page shows
BYTES_SHOWN = 270_000  # of attention for one picture on a page
ALL_LAYERS = "all layers"
_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]+")


@dataclass(frozen=True)
class Description:
    """A description of one picture: its text, and the new tokens up to the end of sequence."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Described:
    """The descriptions of one batch.

    Attributes:
        descriptions: one an example.
        attention: of the rows that wrote each token, on the image tokens.
        types: the token-type table of the batch, empty when no description has a second token.
    """

    descriptions: list[Description]
    attention: ImageAttention
    types: pd.DataFrame


def describe(model: HookedVLM, inputs: VLMInputs, max_new_tokens: int) -> Described:
    """Unmodified greedy descriptions of one batch, watched while they are written."""
    n_layers = int(model.cfg.n_layers)
    attention, shares = ImageAttention(inputs.tokens, n_layers), TokenTypeShare(n_layers)
    count = shares.see(inputs.tokens)

    def see(layer: int, pattern: Float[Tensor, "batch head 1 key"], position: int) -> None:
        attention(layer, pattern, position)
        count(layer, pattern, position)

    out = generate(model, inputs, max_new_tokens=max_new_tokens, see=see)
    shares.add(out.tokens)
    types = shares.table() if int(shares.n_pictures.min()) else pd.DataFrame()
    ends = set(eos_ids(model))
    descriptions = []
    for text, row in zip(out.texts, out.token_ids.tolist(), strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        descriptions.append(Description(text, row[:stop]))
    return Described(descriptions, attention, types)


class Words:
    """The words of a description, and the rows that wrote them.

    Attributes:
        text: the description; it may differ at its ends from what stands in tables.
        spans: first character of each word, and the one after its last.
    """

    def __init__(self, description: Description, decode: Callable[[list[int]], str]) -> None:
        self.text = decode(description.ids) if description.ids else ""
        self._edges = token_edges(description.ids, decode) if description.ids else [0]
        self.spans = [(m.start(), m.end()) for m in _WORD.finditer(self.text) if self.rows(*m.span())]

    def rows(self, start: int, stop: int) -> list[int]:
        """Numbers of the new tokens that spell ``text[start:stop]``: the rows that write them have the same."""
        pairs = enumerate(zip(self._edges, self._edges[1:], strict=False))
        return [k for k, (a, b) in pairs if b > a and a < stop and b > start]


def localisation_rows(
    words: Words,
    attention: ImageAttention,
    tokens: TokenMap,
    example: int,
    vocabulary: Vocabulary,
    masks: Mapping[str, np.ndarray],
) -> list[pd.DataFrame]:
    """One table (a row a band of layers) for the first mention of every named object that has a mask."""
    bands = layer_bands(attention.n_layers)
    tables, seen = [], set()
    for mention in vocabulary.mentions(words.text):
        if mention.name in seen or mention.name not in masks or not masks[mention.name].any():
            continue
        seen.add(mention.name)
        looked = attention.of(example, words.rows(mention.start, mention.stop))
        table = localise(looked, tokens, masks[mention.name], example, bands=bands)
        table.insert(0, "object", mention.name)
        tables.append(table)
    return tables


def word_maps(
    words: Words,
    attention: ImageAttention,
    tokens: TokenMap,
    example: int,
    picture: Example,
    vocabulary: Vocabulary,
    masks: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """What a page needs to show where every word looked.

    Returns:
        ``bands``: names of "all layers" and of bands of layers; ``grid`` (columns, rows); ``words``: ``text``, the
        text ``before`` it, the ``object`` it names, ``values`` (base64 of bytes [band, row, column], each band's
        maximum is 255) and ``mass`` (share of all attention that goes to the image, by band); ``marks``: box of each
        object's mask, 0 to 1; ``id, prompt, picture`` (a data URI) and the text ``after`` the last word.
    """
    size = tokens.image_sizes[example][0]
    where = tokens.positions("image[0]", example)
    boxes, tiles = tokens.box[example, where], tokens.tile[example, where]
    grid = _grid(boxes, size)
    scaled = boxes * torch.tensor([grid[0] / size[0], grid[1] / size[1]] * 2)
    bands = _bands(attention.n_layers, len(words.spans) * grid[0] * grid[1])
    mentions = vocabulary.mentions(words.text)
    shown, end = [], 0
    for start, stop in words.spans:
        looked = attention.of(example, words.rows(start, stop))
        values = torch.stack([looked[list(band)].mean(0) for band in bands.values()])
        named = next((m.name for m in mentions if m.start < stop and start < m.stop), "")
        shown.append(
            {
                "text": words.text[start:stop],
                "before": words.text[end:start],
                "object": named,
                "values": _as_bytes(paint(values, scaled, grid, tiles)),
                "mass": [round(float(m), 3) for m in values.sum(-1)],
            }
        )
        end = stop
    assert picture.image is not None
    return {
        "id": picture.id,
        "prompt": picture.prompt,
        "picture": picture_uri(picture.image, 320, enlarge=True),
        "grid": list(grid),
        "bands": list(bands),
        "words": shown,
        "after": words.text[end:],
        "marks": {name: _box(mask) for name, mask in masks.items() if mask.any()},
    }


def _bands(n_layers: int, n_bytes: int) -> dict[str, range]:
    """All layers, and as many bands of layers as a page has room for, by name."""
    most = max(1, BYTES_SHOWN // max(1, n_bytes))
    parts = layer_bands(n_layers, most - 1) if most > 2 else []
    return {ALL_LAYERS: range(n_layers), **{band_name(band[0], band[-1]): band for band in parts}}


def band_name(first: int, last: int) -> str:
    """``layer 3``, or ``layers 4–7``."""
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def _as_bytes(heat: Float[np.ndarray, "band row column"]) -> str:
    """A byte a cell, as base64; the maximum of each band is 255."""
    peak = heat.max(axis=(1, 2), keepdims=True)
    level = np.divide(heat, peak, out=np.zeros_like(heat), where=peak > 0)
    return base64.b64encode((255 * level).round().astype(np.uint8).tobytes()).decode()


def _grid(boxes: Float[Tensor, "token 4"], size: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of a map about as fine as the image tokens."""
    placed = boxes[~boxes.isnan().any(-1)]
    counts = []
    for low, high, length in ((0, 2, size[0]), (1, 3, size[1])):
        side = float((placed[:, high] - placed[:, low]).median()) if len(placed) else float(length)
        counts.append(int(min(MOST_CELLS, max(1, round(length / max(side, 1e-6))))))
    return counts[0], counts[1]


def _box(mask: np.ndarray) -> list[float]:
    """Left, top, right and bottom of a mask, from 0 to 1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return [round(float(e), 4) for e in edges]
