"""The words of a description, and where in the picture each of them looked.

The attention of a word is that of the rows that write its tokens (:class:`~gatelens.measures.written_words.Words`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.engine import generate
from gatelens.engine.generation import eos_ids
from gatelens.inputs import VLMInputs
from gatelens.measures.localisation import ImageAttention, layer_bands, localise, paint
from gatelens.measures.objects import Vocabulary
from gatelens.measures.token_types import TokenTypeShare
from gatelens.measures.written_words import Words
from gatelens.model import HookedVLM
from gatelens.tokens import TokenMap

MOST_CELLS = 36  # along one side of the map a page shows
BYTES_SHOWN = 270_000  # of attention for one picture on a page
ALL_LAYERS = "all layers"


@dataclass(frozen=True)
class Descriptions:
    """The descriptions of a batch.

    Attributes:
        tokens: the prompts'.
        texts: one per prompt.
        ids: new tokens up to the end of sequence.
        words: of each description.
        attention: of the rows that wrote each token, on the image tokens.
        types: the token-type table of the batch, empty when no description has a second token.
        type_shares: what it averages, by picture (:meth:`~gatelens.measures.token_types.TokenTypeShare.by_picture`).
    """

    tokens: TokenMap
    texts: list[str]
    ids: list[list[int]]
    words: list[Words]
    attention: ImageAttention
    types: pd.DataFrame
    type_shares: pd.DataFrame

    def localised(
        self, i: int, vocabulary: Vocabulary, masks: Mapping[str, np.ndarray]
    ) -> list[pd.DataFrame]:
        """One table (a row a band of layers) for the first mention of every named object that has a mask."""
        words, bands = self.words[i], layer_bands(self.attention.n_layers)
        tables, seen = [], set()
        for mention in vocabulary.mentions(words.text):
            if mention.name in seen or mention.name not in masks or not masks[mention.name].any():
                continue
            seen.add(mention.name)
            looked = self.attention.of(i, words.rows(mention.start, mention.stop))
            table = localise(looked, self.tokens, masks[mention.name], i, bands=bands)
            table.insert(0, "object", mention.name)
            tables.append(table)
        return tables

    def word_maps(self, i: int, vocabulary: Vocabulary) -> dict[str, Any]:
        """Where every word of a description looked, for a page.

        Returns:
            ``bands``: names of "all layers" and of bands of layers; ``grid`` (columns, rows); ``words``: ``text``,
            the text ``before`` it, the ``object`` it names, ``values`` (base64 of bytes [band, row, column], each
            band's maximum is 255) and ``mass`` (share of all attention that goes to the image, by band); the text
            ``after`` the last word.
        """
        words, tokens = self.words[i], self.tokens
        size, where = tokens.image_sizes[i][0], tokens.positions("image[0]", i)
        boxes, tiles = tokens.box[i, where], tokens.tile[i, where]
        grid = _grid(boxes, size)
        scaled = boxes * torch.tensor([grid[0] / size[0], grid[1] / size[1]] * 2)
        bands = _bands(self.attention.n_layers, len(words.spans) * grid[0] * grid[1])
        mentions = vocabulary.mentions(words.text)
        shown, end = [], 0
        for start, stop in words.spans:
            looked = self.attention.of(i, words.rows(start, stop))
            values = torch.stack([looked[list(band)].mean(0) for band in bands.values()])
            shown.append(
                {
                    "text": words.text[start:stop],
                    "before": words.text[end:start],
                    "object": next((m.name for m in mentions if m.start < stop and start < m.stop), ""),
                    "values": _as_bytes(paint(values, scaled, grid, tiles)),
                    "mass": [round(float(m), 3) for m in values.sum(-1)],
                }
            )
            end = stop
        return {"grid": list(grid), "bands": list(bands), "words": shown, "after": words.text[end:]}


def describe(model: HookedVLM, inputs: VLMInputs, max_new_tokens: int) -> Descriptions:
    """Unmodified greedy descriptions of one batch, watched while they are written."""
    n_layers = int(model.cfg.n_layers)
    attention, shares = ImageAttention(inputs.tokens, n_layers), TokenTypeShare(n_layers)
    count = shares.see(inputs.tokens)

    def see(layer: int, pattern: Float[Tensor, "batch head 1 key"], position: int) -> None:
        attention(layer, pattern, position)
        count(layer, pattern, position)

    out = generate(model, inputs, max_new_tokens=max_new_tokens, see=see)
    shares.add(out.tokens)
    seen = int(shares.n_pictures.min()) > 0
    types, each = (shares.table(), shares.by_picture()) if seen else (pd.DataFrame(), pd.DataFrame())
    ends = set(eos_ids(model))
    ids = [list(takewhile(lambda token: token not in ends, row)) for row in out.token_ids.tolist()]
    words = [Words(one, lambda some: model.decode(some)[0]) for one in ids]
    return Descriptions(inputs.tokens, out.texts, ids, words, attention, types, each)


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
