"""Tiles against transformers itself: pictures of their own coordinates go through processor and packing."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from transformers import LlavaNextConfig, LlavaOnevisionConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from gatelens.errors import InputError
from gatelens.families.common.anyres import AnyRes
from gatelens.families.common.plan import Picture
from gatelens.families.common.processing import ImageTextParts, picture_tensors, prepare_batch
from gatelens.families.internvl import Tiles
from gatelens.model import HookedVLM
from gatelens.tokens import Role

sys.path.insert(0, str(Path(__file__).parent))
from cases import internvl, llava_next, llava_onevision

PLAIN = {"do_normalize": False, "do_rescale": False, "resample": Resampling.BOX}
SIZES = [(30, 22), (18, 44), (41, 47), (250, 60), (61, 203), (200, 199), (16, 16), (7, 90)]


def step(width: int, height: int) -> float:
    """Pixels for each shade: a byte cannot hold the coordinates of a large picture one by one."""
    return max(1, max(width, height) / 255)


def coordinates(width: int, height: int) -> Image.Image:
    """Red is the pixel's x, green its y, in steps; blue is full."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    shades = 1 / step(width, height)
    pixels[..., 0] = np.round(np.arange(width) * shades)[None]
    pixels[..., 1] = np.round(np.arange(height) * shades)[:, None]
    return Image.fromarray(pixels)


def patch_means(pixels: Tensor, patch: int) -> Tensor:
    """[tiles, 3, side, side] -> [tiles, patches, 3], as a tower cuts them."""
    return torch.nn.functional.avg_pool2d(pixels.float(), patch).flatten(2).transpose(1, 2)


def check(shown: Tensor, boxes: Tensor, tolerance: float, pixels: float = 1) -> None:
    """What each token shows in the mean is the middle of its box, for tokens that show no padding."""
    inside = shown[:, 2] > 254.9
    assert inside.sum() > len(shown) / 3
    middle = torch.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], dim=-1) / 2 - 0.5
    assert (shown[:, :2] * pixels - middle)[inside].abs().max() < tolerance
    outside = shown[:, 2] < 0.1
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (area[outside] < 1e-3).all() and (area[~outside] > 0).all()


def packed(pixels: Tensor, size: tuple[int, int], plan: AnyRes, kind: str) -> Tensor:
    """Patch means through transformers' packing; newlines are nan."""
    newline = torch.full((3,), float("nan"))
    names = {
        "vision_config": {"image_size": plan.side, "patch_size": plan.patch},
        "image_grid_pinpoints": [list(p) for p in plan.pinpoints],
    }
    found, sizes = [patch_means(pixels, plan.patch)], torch.tensor([[size[1], size[0]]])
    with torch.device("meta"):
        holder: Any = torch.nn.Module()
    if kind == "next":
        holder.config = LlavaNextConfig(**names)
        out, _ = LlavaNextModel.pack_image_features(holder, found, sizes, "default", newline)
    else:
        holder.config = LlavaOnevisionConfig(**names)
        out, _ = LlavaOnevisionModel.pack_image_features(
            holder, found, sizes, newline, f"anyres_max_{plan.most}"
        )
    return out[0]


def squares(side: int, most: int) -> tuple[tuple[int, int], ...]:
    return tuple((side * rows, side * cols) for rows in range(1, most + 1) for cols in range(1, most + 1))


NEXT_REAL = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
ANYRES = {
    "next": (AnyRes(16, 4, tuple((a, b) for a, b in llava_next.PINPOINTS)), "next"),
    "next-real": (AnyRes(336, 14, NEXT_REAL), "next"),
    "onevision": (AnyRes(16, 5, squares(16, 3), most=9, lone=True), "onevision"),
    "onevision-shrunk": (AnyRes(16, 5, squares(16, 3), most=2, lone=True), "onevision"),
    "onevision-real": (AnyRes(384, 14, squares(384, 3), most=9, lone=True), "onevision"),
    "onevision-real-shrunk": (AnyRes(384, 14, squares(384, 3), most=1, lone=True), "onevision"),
}


LARGE = [(1000, 700), (500, 1100), (1300, 450)]
SIZED = [(name, size) for name in ANYRES for size in (LARGE if "real" in name else SIZES)]


@pytest.mark.parametrize("name, size", SIZED)
def test_any_resolution_is_placed_as_transformers_packs_it(name: str, size: tuple[int, int]) -> None:
    plan, kind = ANYRES[name]
    pinpoints = [list(p) for p in plan.pinpoints]
    if kind == "next":
        images: Any = LlavaNextImageProcessorPil(
            size={"shortest_edge": plan.side},
            crop_size={"height": plan.side, "width": plan.side},
            image_grid_pinpoints=pinpoints,
            **PLAIN,
        )
    else:
        images = LlavaOnevisionImageProcessorPil(
            size={"height": plan.side, "width": plan.side}, image_grid_pinpoints=pinpoints, **PLAIN
        )
    pixels = images([coordinates(*size)], return_tensors="pt")["pixel_values"][0]
    shown = packed(pixels, size, plan, kind)
    placed = plan(Picture(size, 0))
    assert len(placed) == len(shown)
    assert torch.equal(placed.breaks, shown[:, 0].isnan())
    real = ~placed.breaks
    if "shrunk" in name and size not in ((16, 16), (7, 90)):  # these have too few tiles
        assert len(placed) < len(dataclasses.replace(plan, most=99)(Picture(size, 0)))
    half_a_cell = plan.patch / 2 * (size[0] / plan.side)  # of the overview; the others are smaller
    check(shown[real], placed.box[real], 1 + 0.25 * half_a_cell, step(*size))
    # places are unique, from zero up in every tile, and boxes follow them
    keys = torch.stack([placed.tile, placed.row, placed.col], dim=-1)[real]
    assert len(keys.unique(dim=0)) == len(keys)
    for tile in placed.tile[real].unique().tolist():
        mine = real & (placed.tile == tile)
        rows, cols = placed.row[mine], placed.col[mine]
        assert len(rows) == (int(rows.max()) + 1) * (int(cols.max()) + 1)
        boxes = placed.box[mine]
        assert (boxes[:, 0].diff()[cols.diff() > 0] >= 0).all() and (
            boxes[:, 1].diff()[rows.diff() > 0] >= 0
        ).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side, n, most", [(24, 3, 6), (448, 16, 12)])
def test_internvl_tiles_show_their_boxes(size: tuple[int, int], side: int, n: int, most: int) -> None:
    images = GotOcr2ImageProcessorPil(size={"height": side, "width": side}, max_patches=most, **PLAIN)
    made = images([coordinates(*size)], return_tensors="pt", crop_to_patches=True)
    placed = Tiles((side, side), n, most=most)(Picture(size, 0))
    shown = patch_means(made["pixel_values"], side // n).flatten(0, 1)
    assert placed.pixel_rows == len(made["pixel_values"]) and len(placed) == len(shown)
    check(shown, placed.box, 1.01)
    assert (placed.tile[-n * n :] == 0).all()  # the thumbnail, or the only tile
    assert placed.tile.max() == (placed.pixel_rows - 1 if placed.pixel_rows > 1 else 0)


def test_several_pictures_of_a_prompt_are_padded_squares_in_onevision() -> None:
    plan, size = ANYRES["onevision-real"][0], (200, 100)
    images = LlavaOnevisionImageProcessorPil(size={"height": 384, "width": 384}, **PLAIN)
    made = images([[coordinates(*size)] * 2], return_tensors="pt")
    placed = plan(Picture(size, 0, {"batch_num_images": torch.tensor(2)}))
    assert len(placed) == 27 * 27 + 1 and placed.breaks.nonzero().tolist() == [[27 * 27]]
    shown = patch_means(made["pixel_values"][0], 14)[0]
    boxes, inside = placed.box[:-1], shown[:, 2] > 254.9
    middle = torch.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], dim=-1) / 2 - 0.5
    assert inside.sum() > 300 and (shown[:, :2] - middle)[inside].abs().max() < 1.01
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (area[:27] == 0).all() and (area[13 * 27 : 14 * 27] > 0).all()


MODELS = {"llava-next": llava_next, "llava-onevision": llava_onevision, "internvl": internvl}


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Any:
    module = MODELS[request.param]
    return getattr(module, "CASE", None) or module.CASES[0]


@pytest.fixture(scope="module")
def model(case: Any) -> HookedVLM:
    return HookedVLM.from_module(case.model(), case.processor())


def test_tensors_alone_are_enough(case: Any, model: HookedVLM) -> None:
    made = model.prepare(
        [[case.picture(0)], [case.picture(1), case.picture(0)]], [case.texts[1], case.texts[2]]
    )
    bare = model.inputs(**{k: v for k, v in made.tensors.items() if k != "position_ids"})
    for name in ("roles", "row", "col", "tile", "image_index"):
        assert torch.equal(getattr(bare.tokens, name), getattr(made.tokens, name)), name
    if case.name == "internvl":  # only the overview has boxes, in pixels of a tile
        known = ~bare.tokens.box[..., 0].isnan()
        assert torch.equal(known, (made.tokens.tile == 0) & (made.tokens.row >= 0))
        assert bare.tokens.box[known].max() == 24
    else:  # image_sizes tells the size of the picture
        assert torch.equal(bare.tokens.box.nan_to_num(), made.tokens.box.nan_to_num())
        with pytest.raises(InputError, match="placeholders without image_sizes"):
            model.inputs(input_ids=made.tensors["input_ids"], pixel_values=made.tensors["pixel_values"])


def test_prompts_without_pictures_ride_along(case: Any, model: HookedVLM) -> None:
    pictures = [[], [case.picture(1)], [case.picture(0), case.picture(1)]]
    texts = ["what color is it", case.texts[0], case.texts[2]]
    together = model.prepare(pictures, texts)
    logits = model(together)
    for i, (one, text) in enumerate(zip(pictures, texts, strict=True)):
        alone = model(model.prepare([one], [text]))[0]
        assert (logits[i, -alone.shape[0] :] - alone).abs().max() <= 1e-5
        assert (model(together.select([i]))[0, -1] - alone[-1]).abs().max() <= 1e-5


def test_map_says_tiles_and_separators(case: Any, model: HookedVLM) -> None:
    shown = {
        "llava-next": "whole 4x4 + 4 tiles of 3x4 tokens, 6 separators, picture of 30x22 pixels",
        "llava-onevision": "whole 3x3 + 4 tiles of 2x3 tokens, 4 separators, picture of 30x22 pixels",
        "internvl": "whole 3x3 + 6 tiles of 3x3 tokens, picture of 50x30 pixels",
    }
    assert shown[case.name] in str(model.prepare(case.picture(0), case.texts[0]).tokens.show())


def test_parts_are_what_was_saved(case: Any, tmp_path: Path) -> None:
    processor = case.processor()
    processor.image_processor.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    parts = ImageTextParts.from_pretrained(str(tmp_path))
    assert type(parts.image_processor) is type(processor.image_processor)
    mine, theirs = (picture_tensors(p, [[case.picture(0)], []]) for p in (parts, processor))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    text = case.texts[0]
    assert parts.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]


def test_placeholders_become_as_many_as_a_picture_has_tokens() -> None:
    parts = internvl.processor()
    made = prepare_batch(
        parts, ["a <image>", "<image> is <image>"], ["<img>", "dog", "cat dog"], "<image>", more=torch.ones(1)
    )
    words = [parts.tokenizer.convert_ids_to_tokens(row) for row in made["input_ids"].tolist()]
    assert words == [["<|endoftext|>", "<|endoftext|>", "a", "<img>"], ["dog", "is", "cat", "dog"]]
    assert made["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]] and made["more"].tolist() == [1]
    with pytest.raises(InputError, match="prompts have 1 <image> and 2 picture"):
        prepare_batch(parts, ["<image>"], ["a", "b"], "<image>")


def test_roles_of_internvl_markers() -> None:
    model = HookedVLM.from_module(internvl.CASES[0].model(), internvl.processor())
    tokens = model.prepare(internvl.CASES[0].picture(1), "this <image> is").tokens
    R = Role
    assert tokens.roles[0].tolist() == [R.SYSTEM, R.BOI, *[R.IMAGE] * 9, R.EOI, R.QUERY]
    bare = HookedVLM.from_module(internvl.CASES[0].model())
    assert bare.layout.boi_ids == model.layout.boi_ids and bare.layout.eoi_ids == model.layout.eoi_ids
