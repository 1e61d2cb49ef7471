"""What each word of a generation comes from: where it looked, what the image tokens say, what cutting them does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gatelens.engine import look, sweep
from gatelens.engine.generation import Generation, eos_ids
from gatelens.errors import InputError
from gatelens.inputs import VLMInputs
from gatelens.interventions import knockout
from gatelens.interventions.arguments import Layers, as_indices
from gatelens.interventions.base import resolve_indices
from gatelens.interventions.knockouts import KnockoutMethod
from gatelens.measures.written_words import Words
from gatelens.model import HookedVLM
from gatelens.readouts.lens import LogitLens, logit_lens
from gatelens.tokens import SelectorLike, TokenMap


@dataclass(frozen=True, eq=False)
class ImageBlock:
    """Image tokens that are cut together: those whose middle is in one cell of a grid over the picture.

    Attributes:
        image: which picture of the prompt.
        positions: of the tokens; where a picture is shown whole and in tiles, of both.
        box: what they cover, in pixels of the original picture, x0, y0, x1, y1.
    """

    image: int
    positions: tuple[int, ...]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False, repr=False)
class WordsTable:
    """The words that a model wrote after one prompt.

    Attributes:
        words: a row a word: ``word``, ``before`` (the text between it and the last word), ``first`` and ``last`` (its
            new tokens), ``log_prob`` (nats, the sum over its tokens).
        attention: Float[layer, head, word, key]: of the rows that write a word's tokens, their mean.
        layers: of the attention.
        blocks: image tokens that were cut together.
        effects: Float[block, word]: change of a word's log-probability in nats with the block cut; the words before
            it are held. A small block hides a part of an object, and the rest makes up for it: 20 to 40 % of the
            organisms' content words lose 0.1 nats to one of 4 × 4.
        lens: the logit lens of the image tokens.
        tokens: the prompt's map with the new positions.
        images: the pictures of the prompt.

    Example:
        >>> written = model.generate(inputs, max_new_tokens=3, return_type="map")
        >>> words = gl.words_table(model, written, grid=2)
        >>> words.words["word"].tolist(), words.effects.shape
        (['sunflower'], torch.Size([4, 1]))
    """

    words: pd.DataFrame
    attention: Float[Tensor, "layer head word key"]
    layers: tuple[int, ...]
    blocks: tuple[ImageBlock, ...]
    effects: Float[Tensor, "block word"]
    lens: LogitLens
    tokens: TokenMap
    images: tuple[Image.Image, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a word and block: ``word, log_prob, image, x0, y0, x1, y1, n_tokens, attention`` (mean over layers
        and heads) and ``effect``."""
        rows = []
        for b, block in enumerate(self.blocks):
            paid = self.attention[..., list(block.positions)].float().sum(-1).mean((0, 1))
            for w, (word, log_prob) in enumerate(
                zip(self.words["word"], self.words["log_prob"], strict=True)
            ):
                place = (block.image, *block.box, len(block.positions))
                rows.append((word, log_prob, *place, float(paid[w]), float(self.effects[b, w])))
        columns = ["word", "log_prob", "image", "x0", "y0", "x1", "y1", "n_tokens", "attention", "effect"]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        text = "".join(
            before + word for before, word in zip(self.words["before"], self.words["word"], strict=True)
        )
        return f"WordsTable({len(self.words)} words, {len(self.blocks)} blocks of image tokens: {text!r:.70})"


@torch.no_grad()
def words_table(
    model: HookedVLM,
    generation: Generation,
    example: int = 0,
    *,
    grid: int = 4,
    queries: SelectorLike = "text | gate",
    layers: Layers = None,
    how: KnockoutMethod = "mask",
    top: int = 3,
    progress: bool = False,
) -> WordsTable:
    """What each word that was written comes from.

    The words are held and the prompt is run again: for attention, for the lens, and for each block of image tokens.

    Args:
        generation, example: ``model.generate(inputs, return_type="map")`` without interventions; which of its prompts.
        grid: the maximum number of blocks across and down a picture.
        queries: the rows that a block is hidden from; by default all that read the picture, except its own tokens.
        layers: where attention is kept and blocks are hidden; None is all.
        how: as of :func:`gatelens.knockout`.
        top: how many tokens of the lens to keep.

    Raises:
        InputError: no words were written, the prompt has no picture, or the places of its tokens are unknown.

    Example:
        >>> gl.words_table(model, model.generate(inputs, return_type="map"), grid=2)
        WordsTable(1 words, 4 blocks of image tokens: 'sunflower')
    """
    (example,) = generation.tokens.examples([example])
    prompt, inputs = generation.prompt.select([example]), generation.inputs.select([example])
    if not prompt.tokens.image_sizes[0]:
        raise InputError(f"words_table: prompt {example} has no picture")
    if type(grid) is not int or grid < 1:
        raise InputError(f"words_table: grid={grid!r}: give the blocks along a side, from 1 on")
    ends = set(eos_ids(model))
    ids = list(takewhile(lambda token: token not in ends, generation.token_ids[example].tolist()))
    words = Words(ids, lambda some: model.decode(some)[0])
    if not words.spans:
        raise InputError(f"words_table: after prompt {example} no word was written")
    rows = [words.rows(*span) for span in words.spans]
    first = prompt.tokens.n_pos - 1  # the row that writes the first new token
    which = resolve_indices(as_indices(layers, "layers"), int(model.cfg.n_layers), "layers", "words_table")
    blocks = blocks_of(inputs.tokens, grid)
    metrics = {f"word {w}": _log_prob(mine, [ids[k] for k in mine], first) for w, mine in enumerate(rows)}
    cuts = [None, *(knockout(queries, list(b.positions), layers=list(which), how=how) for b in blocks)]
    found = sweep(model, inputs, {"block": cuts}, metrics, progress=progress)
    values = torch.tensor(found[list(metrics)].to_numpy(dtype=np.float64))
    return WordsTable(
        _spelled(words, rows, values[0].tolist()),
        _attention(model, inputs, rows, first, sorted(which)),
        tuple(sorted(which)),
        tuple(blocks),
        (values[1:] - values[0]).float(),
        logit_lens(model, prompt, at="image", top=top),
        inputs.tokens,
        tuple(prompt.images[0]) if prompt.images else (),
    )


def blocks_of(tokens: TokenMap, grid: int) -> list[ImageBlock]:
    """The image tokens of a prompt alone in its batch, in at most ``grid`` × ``grid`` blocks a picture.

    Raises:
        InputError: no image token has a known place.
    """
    found = []
    for image, (width, height) in enumerate(tokens.image_sizes[0]):
        where = [p for p in tokens.positions(f"image[{image}]") if not bool(tokens.box[0, p].isnan().any())]
        if not where:
            continue
        boxes = tokens.box[0, where].double().numpy()
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        # the finest tokens decide how many blocks there can be: no more than tokens side by side
        fine = tokens.tile[0, where].numpy() > 0
        fine = fine if fine.any() else ~fine
        counts = [min(grid, len(np.unique(middles[fine, axis].round(3)))) for axis in (0, 1)]
        cells = [
            np.clip((middles[:, axis] / side * n).astype(int), 0, n - 1)
            for axis, (side, n) in enumerate(zip((width, height), counts, strict=True))
        ]
        for cell in sorted({(int(y), int(x)) for x, y in zip(*cells, strict=True)}):
            mine = (cells[1] == cell[0]) & (cells[0] == cell[1])
            shown = boxes[mine & fine] if (mine & fine).any() else boxes[mine]
            box = (*shown[:, :2].min(0).tolist(), *shown[:, 2:].max(0).tolist())
            found.append(ImageBlock(image, tuple(int(where[i]) for i in mine.nonzero()[0]), box))
    if not found:
        raise InputError(
            "words_table: these image tokens have no place in the picture (their box is unknown)"
        )
    return found


def _spelled(words: Words, rows: Sequence[Sequence[int]], log_probs: Sequence[float]) -> pd.DataFrame:
    """The words of a WordsTable."""
    ended = [0, *(stop for _, stop in words.spans)]
    return pd.DataFrame(
        {
            "word": [words.text[a:b] for a, b in words.spans],
            "before": [words.text[end:a] for end, (a, _) in zip(ended, words.spans, strict=False)],
            "first": [mine[0] for mine in rows],
            "last": [mine[-1] for mine in rows],
            "log_prob": log_probs,
        }
    )


def _log_prob(
    rows: Sequence[int], ids: Sequence[int], first: int
) -> Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]:
    """A metric: the log-probability of a word, given what comes before each of its tokens."""

    def log_prob(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        row = logits[:, [first + k for k in rows]].float().log_softmax(-1)
        return row[:, range(len(ids)), list(ids)].sum(-1)

    return log_prob


def _attention(
    model: HookedVLM, inputs: VLMInputs, rows: Sequence[Sequence[int]], first: int, layers: Sequence[int]
) -> Float[Tensor, "layer head word key"]:
    """The attention of the rows that write each word."""
    kept: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
    wanted = {first + k for mine in rows for k in mine}

    def see(layer: int, pattern: Float[Tensor, "batch head some key"], low: int) -> None:
        for i in range(pattern.shape[2]):
            if low + i in wanted:
                row = pattern[0, :, i].detach().float().cpu()
                kept[layer][low + i] = torch.nn.functional.pad(row, (0, inputs.tokens.n_pos - row.shape[-1]))

    mask = torch.zeros(inputs.tokens.batch_size, inputs.tokens.n_pos, dtype=torch.bool)
    mask[0, sorted(wanted)] = True
    look(model, inputs, mask, see, layers=list(layers))
    return torch.stack([_of_words(kept[layer], rows, first) for layer in layers])


def _of_words(
    kept: Mapping[int, Float[Tensor, "head key"]], rows: Sequence[Sequence[int]], first: int
) -> Float[Tensor, "head word key"]:
    return torch.stack([torch.stack([kept[first + k] for k in mine]).mean(0) for mine in rows], dim=1)
