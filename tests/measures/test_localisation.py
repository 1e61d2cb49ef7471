"""Localisation on planted maps, against brute force, and on attention that a model really paid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gatelens.data.emoji_scenes import EmojiScenes
from gatelens.data.scenes import CLASSES
from gatelens.engine import generate
from gatelens.errors import DataError
from gatelens.measures.localisation import (
    ImageAttention,
    covered,
    dilate,
    layer_bands,
    localise,
    maximum_hits,
    paint,
    scaled_tolerance,
    token_edges,
    word_rows,
)
from gatelens.measures.objects import Vocabulary
from gatelens.measures.stats import summary
from gatelens.model import HookedVLM
from gatelens.tokens import Role, TokenMap


def grid_boxes(rows: int, cols: int, width: float, height: float) -> torch.Tensor:
    return torch.tensor(
        [
            [c * width / cols, r * height / rows, (c + 1) * width / cols, (r + 1) * height / rows]
            for r in range(rows)
            for c in range(cols)
        ]
    )


def token_map(boxes: torch.Tensor, size: tuple[int, int], tile: torch.Tensor | None = None) -> TokenMap:
    """One example: a system token, the image tokens, a query token."""
    n = len(boxes)
    roles = torch.tensor([[Role.SYSTEM, *[Role.IMAGE] * n, Role.QUERY]])
    image = roles == Role.IMAGE
    flat = torch.where(image, 0, -1)
    box = torch.full((1, n + 2, 4), float("nan"))
    box[0, 1:-1] = boxes
    tiles = flat.clone()
    if tile is not None:
        tiles[0, 1:-1] = tile
    return TokenMap(roles, flat, flat, flat, box, ((size,),), (("",) * (n + 2),), n + 2, tile=tiles)


def brute_paint(values: Any, boxes: Any, size: tuple[int, int], nominal: list[float]) -> np.ndarray:
    """Pixel by pixel, box by box."""
    out = np.zeros((size[1], size[0]))
    for value, (x0, y0, x1, y1), area in zip(values, boxes.tolist(), nominal, strict=True):
        if math.isnan(x0) or x1 <= x0 or y1 <= y0:
            continue
        for y in range(size[1]):
            for x in range(size[0]):
                wide = max(0.0, min(x1, x + 1) - max(x0, x))
                high = max(0.0, min(y1, y + 1) - max(y0, y))
                out[y, x] += float(value) * wide * high / area
    return out


@pytest.mark.parametrize(("rows", "cols", "size"), [(3, 5, (17, 11)), (4, 4, (16, 16)), (8, 9, (7, 6))])
def test_paint_against_brute_force(rows: int, cols: int, size: tuple[int, int]) -> None:
    boxes = grid_boxes(rows, cols, *size)
    values = torch.rand(2, rows * cols, generator=torch.Generator().manual_seed(0))
    area = size[0] * size[1] / (rows * cols)
    heat = paint(values, boxes, size)
    for layer in range(2):
        expected = brute_paint(values[layer], boxes, size, [area] * len(boxes))
        np.testing.assert_allclose(heat[layer], expected, atol=1e-6)
    np.testing.assert_allclose(heat.sum(axis=(1, 2)), values.sum(-1), rtol=1e-5)


def tiled(size: tuple[int, int] = (12, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    """An overview of 2x3 cells over the whole, two pieces of 2x2 and 2x2 cells beside each other, a newline."""
    left, right = grid_boxes(2, 2, 6, 8), grid_boxes(2, 2, 6, 8)
    right[:, [0, 2]] += 6
    newline = torch.full((1, 4), float("nan"))
    boxes = torch.cat([grid_boxes(2, 3, *size), left, right, newline])
    return boxes, torch.tensor([0] * 6 + [1] * 4 + [2] * 4 + [0])


def test_overlapping_tiles_add_up() -> None:
    boxes, tile = tiled()
    values = torch.rand(1, 15, generator=torch.Generator().manual_seed(1))
    heat = paint(values, boxes, (12, 8), tile)
    expected = brute_paint(values[0], boxes, (12, 8), [16.0] * 6 + [12.0] * 8 + [1.0])
    np.testing.assert_allclose(heat[0], expected, atol=1e-6)
    assert heat.sum() == pytest.approx(float(values[0, :-1].sum())), "all but the newline's is painted"
    assert covered(boxes, (12, 8)).all()


def test_a_cell_clipped_by_the_edge_is_not_brightened() -> None:
    """Cells of 4x4 pixels, the last column half over padding: equal attention must not peak there."""
    boxes = grid_boxes(2, 3, 12, 8)
    boxes[:, 2] = boxes[:, 2].clamp(max=10)
    heat = paint(torch.ones(1, 6), boxes, (10, 8))
    assert heat.max() == pytest.approx(heat.min()) == pytest.approx(1 / 16)


def test_planted_map_is_found_exactly() -> None:
    tokens = token_map(grid_boxes(8, 8, 64, 64), (64, 64))
    mask = np.zeros((64, 64), dtype=bool)
    mask[16:32, 24:40] = True  # cells (2..3, 3..4)
    attention = torch.full((4, 64), 0.01)
    attention[0, 2 * 8 + 3] = 0.3  # inside
    attention[1, 1 * 8 + 3] = 0.3  # the cell above: rows 8..15, of which 4 pixels on are near
    attention[2, 7 * 8 + 7] = 0.3  # far away
    # layer 3 has no preference
    table = localise(attention, tokens, mask)
    chance = 256 / 4096
    near = dilate(mask, 4.0)
    assert table["hit"].tolist() == pytest.approx([1, 0, 0, chance])
    assert table["near"].tolist() == pytest.approx([1, 0.5, 0, near.mean()])
    assert table["chance"].unique().tolist() == pytest.approx([chance])
    assert table["chance_near"].unique().tolist() == pytest.approx([near.mean()])
    assert table["mass"].tolist() == pytest.approx([0.93, 0.93, 0.93, 0.64])
    assert table["in_mask"].tolist() == pytest.approx([0.33 / 0.93, 0.04 / 0.93, 0.04 / 0.93, chance])
    assert table["seen"].unique().tolist() == [1]
    banded = localise(attention, tokens, mask, bands=[range(2), range(2, 4)])
    assert banded["hit"].tolist() == [0.5, 0.0], "of two equal maxima half the pixels lie in the mask"
    assert banded[["first", "last"]].values.tolist() == [[0, 1], [2, 3]]


def test_chance_is_what_random_maps_score() -> None:
    """Over all places the maximum can be in, the mean hit is the chance level, to rounding."""
    rng = np.random.default_rng(0)
    for rows, cols, size in ((4, 4, (20, 12)), (5, 3, (30, 30))):
        tokens = token_map(grid_boxes(rows, cols, *size), size)
        mask = rng.random((size[1], size[0])) < 0.2
        table = localise(torch.eye(rows * cols), tokens, mask, tolerance=1.0)
        assert table["hit"].mean() == pytest.approx(table["chance"][0])
        assert table["near"].mean() == pytest.approx(table["chance_near"][0])


def test_what_no_token_sees_counts_neither_way() -> None:
    """A centre crop hides the left and right quarter of the picture."""
    boxes = grid_boxes(2, 2, 8, 8)
    boxes[:, [0, 2]] += 4
    tokens = token_map(boxes, (16, 8))
    assert covered(boxes, (16, 8)).sum() == 64
    mask = np.zeros((8, 16), dtype=bool)
    mask[:, :8] = True
    table = localise(torch.ones(1, 4), tokens, mask, tolerance=0)
    assert (table["hit"][0], table["chance"][0], table["seen"][0]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("radius", [0, 0.5, 1, 1.5, 2, 3.7, 30])
def test_dilate_against_brute_force(radius: float) -> None:
    mask = np.random.default_rng(3).random((9, 13)) < 0.06
    ys, xs = mask.nonzero()
    expected = [
        [
            min((y - b) ** 2 + (x - a) ** 2 for a, b in zip(xs, ys, strict=True)) <= radius**2
            for x in range(13)
        ]
        for y in range(9)
    ]
    assert (dilate(mask, radius) == np.array(expected)).all()


def test_tolerance_scales_with_the_picture() -> None:
    assert scaled_tolerance((640, 480)) == 40 and scaled_tolerance((64, 64)) == 4


def test_bands() -> None:
    assert layer_bands(80) == [range(i, i + 10) for i in range(0, 80, 10)]
    assert layer_bands(6) == [range(i, i + 1) for i in range(6)]
    assert [n for band in layer_bands(28, 5) for n in band] == list(range(28))


def test_maximum_of_a_black_map_is_everywhere() -> None:
    seen, mask = np.ones((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    mask[0] = True
    assert maximum_hits(np.zeros((1, 4, 4)), mask, seen).tolist() == [0.25]


def mean_by_layer(tables: list[pd.DataFrame]) -> pd.DataFrame:
    words = pd.concat(tables)
    chance = words.groupby(["first", "last"]).chance.mean()
    return summary(words, ["first", "last"], "hit", unit=None, names=("hit", "low", "high")).join(
        chance, on=["first", "last"]
    )


def test_means() -> None:
    tokens = token_map(grid_boxes(2, 2, 4, 4), (4, 4))
    mask = np.zeros((4, 4), dtype=bool)
    mask[:2, :2] = True
    tables = [localise(torch.eye(4)[i : i + 1].repeat(2, 1), tokens, mask, tolerance=0) for i in (0, 0, 0, 3)]
    table = mean_by_layer(tables)
    assert table["hit"].tolist() == [0.75, 0.75] and table["n"].tolist() == [4, 4]
    assert (table.low < 0.75).all() and (table.high > 0.75).all()


@pytest.mark.parametrize(
    ("attention", "mask", "more", "message"),
    [
        (torch.ones(1, 3), np.ones((4, 4)), {}, "does not fit 4 image tokens"),
        (torch.ones(1, 4), np.ones((3, 4)), {}, r"mask \(3, 4\) does not fit the picture of 4x4 pixels"),
        (torch.ones(1, 4), np.zeros((4, 4)), {}, "mask is empty"),
        (torch.ones(1, 4), np.ones((4, 4)), {"bands": [range(1, 2)]}, "not among 1 layers"),
        (torch.ones(1, 4), np.ones((4, 4)), {"tolerance": -1}, "radius -1 is negative"),
    ],
)
def test_errors(attention: Any, mask: Any, more: Any, message: str) -> None:
    tokens = token_map(grid_boxes(2, 2, 4, 4), (4, 4))
    with pytest.raises(DataError, match=message):
        localise(attention, tokens, mask, **more)


def test_tokens_without_a_place() -> None:
    tokens = token_map(torch.full((4, 4), float("nan")), (4, 4))
    with pytest.raises(DataError, match="no image token has a place"):
        localise(torch.ones(1, 4), tokens, np.ones((4, 4), dtype=bool))


PIECES = ["a", " small", " sun", "flower", ",", " ", "t", "wo", " pan", "das", ""]


def test_words_and_their_rows() -> None:
    def decode(ids: list[int]) -> str:
        return "".join(PIECES[i] for i in ids)

    ids = list(range(len(PIECES)))
    text = decode(ids)
    edges = token_edges(ids, decode)
    assert edges == [0, 1, 7, 11, 17, 18, 19, 20, 22, 26, 29, 29]
    at = text.index("sunflower")
    assert word_rows(ids, decode, at, at + 9) == [2, 3]
    assert word_rows(ids, decode, at, at + 9, own=True) == [3, 4]
    at = text.index("pandas")
    assert word_rows(ids, decode, at, at + 6) == [8, 9]
    with pytest.raises(DataError, match="no token spells characters 40–41"):
        word_rows(ids, decode, 40, 41)


def test_half_a_character_belongs_to_the_token_that_completes_it() -> None:
    whole = "é!".encode()

    def decode(ids: list[int]) -> str:
        return bytes(whole[i] for i in ids).decode("utf-8", "replace")

    assert token_edges([0, 1, 2], decode) == [0, 0, 1, 2]


def test_recorded_attention_is_the_models_own(tiny: HookedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows recorded while decoding equal the patterns of the grown prompt, in a padded batch of two sizes."""
    step = HookedVLM.forward_step

    def without(self: Any, *args: Any, **kwargs: Any) -> Any:  # random weights may write the placeholder
        logits, past = step(self, *args, **kwargs)
        return logits.index_fill(-1, torch.tensor([self.layout.placeholder_id]), -1e9), past

    monkeypatch.setattr(HookedVLM, "forward_step", without)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    inputs = tiny.prepare([picture, picture], ["this <image> animal is a", "<image> what"])
    n_layers = int(tiny.cfg.n_layers)
    seen = ImageAttention(inputs.tokens, n_layers)
    generation = generate(tiny, inputs, max_new_tokens=3, stop_at_eos=False, see=seen)
    n_pos = inputs.tokens.n_pos
    mask = torch.cat([inputs.tensors["attention_mask"], torch.ones(2, 2, dtype=torch.long)], 1)
    ids = torch.cat([inputs.tensors["input_ids"], generation.token_ids[:, :2]], 1)
    rest = {
        k: v
        for k, v in inputs.tensors.items()
        if k not in ("input_ids", "attention_mask", "position_ids", "image_sizes")
    }
    grown = tiny.inputs(input_ids=ids, attention_mask=mask, **rest)
    _, cache = tiny.run_with_cache(grown, lambda name: name.endswith("hook_pattern"))
    for b in range(2):
        where = inputs.tokens.positions("image", b)
        for row in range(3):
            got = seen.of(b, [row])
            want = torch.stack(
                [
                    cache[f"blocks.{n}.attn.hook_pattern"][b, :, n_pos - 1 + row, where].mean(0)
                    for n in range(n_layers)
                ]
            )
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.of(b, [0, 2]), (seen.of(b, [0]) + seen.of(b, [2])) / 2)
    with pytest.raises(DataError, match=r"rows \[3\] were not seen"):
        seen.of(0, [2, 3])


@pytest.mark.organism
@pytest.mark.parametrize(("organism", "sees"), [("llava", True), ("gated", False)])
def test_words_of_the_organisms(organism: str, sees: bool) -> None:
    """The word of an object looks at it where text reads the image tokens, and not where it can't."""
    model = HookedVLM.from_pretrained(f"organism:{organism}")
    examples = EmojiScenes().examples("caption", 12)
    inputs = model.prepare([e.image for e in examples], [e.prompt for e in examples])
    seen = ImageAttention(inputs.tokens, int(model.cfg.n_layers))
    generation = generate(model, inputs, max_new_tokens=40, see=seen)
    vocabulary, tables, shares = Vocabulary(CLASSES), [], []
    for b, example in enumerate(examples):
        live = generation.tokens.roles[b, inputs.tokens.n_pos :] == Role.GENERATED
        ids = generation.token_ids[b][live].tolist()
        masks = {o.name: m for o, m in zip(example.meta["objects"], example.meta["masks"], strict=True)}
        for mention in vocabulary.mentions(generation.texts[b]):
            if mention.name in masks:
                rows = word_rows(ids, lambda part: model.decode(part)[0], mention.start, mention.stop)
                tables.append(localise(seen.of(b, rows), inputs.tokens, masks[mention.name], b))
                shares.append(seen.of(b, rows).sum(-1))
    table, share = mean_by_layer(tables), torch.stack(shares).mean(0)
    assert table["n"].min() >= 8
    best = table.loc[table["hit"].idxmax()]
    assert best["chance"] < 0.2
    if sees:
        assert best["hit"] > 0.7 and share.max() > 0.2
    else:
        assert best["hit"] < 0.7 and share.max() < 0.1
