"""The words that a model wrote: where each looked, what its patches say, and what cutting them does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from gatelens.errors import DataError
from gatelens.readouts.written import WordsTable
from gatelens.views.heads_view import MOST_BYTES, HeadsView, pool_for
from gatelens.views.packing import as_base64, pooled, squares_of, summed
from gatelens.views.prompts import prompt_of

MOST_POOLED_BEFORE_MEAN = 2  # tokens along a side; more are shown as one only after heads are averaged


@dataclass(frozen=True, eq=False, repr=False)
class WordsView(HeadsView):
    """Attention, lens and cuts of the words of a generation.

    Attributes:
        of: what it shows.
        averaged: how many heads each row of attention is the mean of; 0 where heads are apart.

    Example:
        >>> generation = model.generate(inputs, return_type="map")
        >>> view = gl.views.words(gl.words_table(model, generation, grid=2))
        >>> view.save(folder / "words.html").name
        'words.html'
    """

    of: WordsTable
    averaged: int = 0

    hint: ClassVar[str] = (
        "Point at a word that was written, or move with Tab and the arrow keys: first where the rows that wrote it "
        "looked, then how its log-probability changes when a block of the picture is hidden from the text. Point at a "
        "patch for its numbers."
    )
    longest: ClassVar[int | None] = 352  # three stand side by side

    def query_name(self, query: int) -> str:
        """The word whose attention a query is."""
        return str(self.of.words["word"][query])

    def data(self) -> dict[str, Any]:
        """What the script of the page reads."""
        effects = self.of.effects.float().numpy()
        cuts = []
        for image in sorted({block.image for block in self.of.blocks}):
            mine = [i for i, block in enumerate(self.of.blocks) if block.image == image]
            width, height = self.prompt.pictures[image].size
            panel = self.prompt.panel(next(part for part in self.parts if part.image == image), self.longest)
            scale = np.array([panel["width"] / width, panel["height"] / height] * 2)
            boxes = np.array([self.of.blocks[i].box for i in mine]) * scale
            cuts.append(
                {
                    "image": image,
                    "boxes": as_base64(boxes.astype(np.float32)),
                    "values": as_base64(effects[mine].T.astype(np.float32)),
                    "n": [len(self.of.blocks[i].positions) for i in mine],
                }
            )
        return {**super().data(), "averaged": self.averaged, "cuts": cuts, "lens": self._lens(), "first": 0}

    def _lens(self) -> dict[str, Any]:
        """The likeliest tokens of each image token by layer, cell by cell; of pooled ones the likeliest alone."""
        lens = self.of.lens.sel(kind="top")
        number = {int(p): i for i, p in enumerate(lens.axes["position"]["position"])}
        top = int(lens.tensor.shape[2]) if self.pool == 1 else 1
        words, ids = np.unique(np.asarray(lens.columns["word"], dtype=str)[..., :top], return_inverse=True)
        chance = np.exp(lens.tensor[..., :top].float().numpy()).astype(np.float32)
        ids = ids.reshape(chance.shape).astype(np.int32)
        panels = []
        for part in self.prompt.parts:
            groups, _ = pooled(part, self.pool)
            at = [number[p] for group in groups for p in group]
            panel = {"ids": as_base64(ids[:, at]), "probability": as_base64(chance[:, at])}
            panels.append({**panel, "ends": np.cumsum([len(group) for group in groups]).tolist()})
        layers = [int(layer) for layer in lens.axes["layer"]["layer"]]
        return {"layers": layers, "top": top, "words": [str(w) for w in words], "panels": panels}

    def chips(self) -> list[dict[str, Any]]:
        """The prompt, whose words are keys alone, and the written words."""
        words = [p for p in self.prompt.words if p < self.of.tokens.prompt_length]
        shown = []
        for chip in super().chips():
            if "picture" in chip:
                shown.append(chip)
            elif chip["at"] in words:
                shown.append({**chip, "key": words.index(chip["at"]), "query": -1})
        for w, word in enumerate(self.of.words["word"]):
            shown.append(
                {
                    "text": word,
                    "key": len(words) + w,
                    "query": w,
                    "at": self.queries[w],
                    "before": "",
                    "starts": not w,
                }
            )
        for i, (kind, where) in enumerate(self.prompt.unplaced.items()):
            key = len(words) + len(self.queries) + i
            shown.append({"text": f"{len(where)} {kind}", "key": key, "query": -1, "at": where[0]})
        return shown


def words(
    table: WordsTable,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Literal["mean"] | None = None,
    pool: int | Literal["auto"] = "auto",
) -> WordsView:
    """The words that a model wrote: point at one to see where it looked, and what hiding a part of the picture does.

    A patch says its weight, the logit lens of its image token, and what cutting its block changes.

    Args:
        table: from ``gl.words_table(model, generation)``.
        layers: which of the table's layers; None is all. The page averages over them, or shows one.
        heads: which heads; ``"mean"`` stores their mean. None is each, or their mean where a page has no room for each.
        pool: as in :func:`gatelens.views.heads`.

    Raises:
        DataError: no such table, layer or head, or a page too large to open.

    Example:
        >>> table = gl.words_table(model, model.generate(inputs, return_type="map"), grid=2)
        >>> gl.views.words(table).save(folder / "words.html").name
        'words.html'
    """
    if not isinstance(table, WordsTable):
        raise DataError(f"words: a {type(table).__name__} is none: give gl.words_table(model, generation)")
    prompt = prompt_of("words", table.tokens, 0, list(table.images) or None)
    rows, shown, chosen, averaged = _rows(table, layers, heads)
    first = table.tokens.prompt_length
    placed = list(zip(table.words["first"], table.words["last"], strict=True))
    keys = [[p] for p in prompt.words if p < first]
    keys += [*(list(range(first + a, first + b + 1)) for a, b in placed), *prompt.unplaced.values()]

    def n_rows() -> int:
        return int(np.prod(rows.shape[:3]))

    room = n_rows() * (len(keys) + squares_of(prompt.parts, MOST_POOLED_BEFORE_MEAN)) <= MOST_BYTES
    if heads is None and not room:
        rows, chosen, averaged = rows.mean(1, keepdim=True), [0], rows.shape[1]
    side = pool_for("words", prompt.parts, n_rows(), len(keys), pool)
    squares = [pooled(part, side) for part in prompt.parts]
    return WordsView(
        "Words and the picture",
        prompt,
        tuple(shown),
        tuple(chosen),
        tuple(first + int(a) for a, _ in placed),
        (),
        side,
        side,
        tuple(part for _, part in squares),
        tuple(summed(rows, groups) for groups, _ in squares),
        summed(rows, keys),
        torch.zeros(0, 0, 0),
        (),
        table,
        averaged,
    )


def _rows(
    table: WordsTable, layers: Sequence[int] | None, heads: Sequence[int] | Literal["mean"] | None
) -> tuple[torch.Tensor, list[int], list[int], int]:
    """Attention of the chosen layers and heads, which these are, and how many heads were averaged."""
    rows = table.attention.float()
    shown = list(table.layers) if layers is None else [int(layer) for layer in layers]
    missing = [layer for layer in shown if layer not in table.layers]
    if missing or not shown:
        raise DataError(f"words: layers {missing or 'none'} asked for, the table has {list(table.layers)}")
    rows = rows[[table.layers.index(layer) for layer in shown]]
    if heads == "mean":
        return rows.mean(1, keepdim=True), shown, [0], rows.shape[1]
    chosen = list(range(rows.shape[1])) if heads is None else [int(h) for h in heads]
    wrong = [h for h in chosen if not 0 <= h < rows.shape[1]]
    if wrong or not chosen:
        raise DataError(f"words: head(s) {wrong or 'none'} asked for, there are 0 to {rows.shape[1] - 1}")
    return rows[:, chosen], shown, chosen, 0
