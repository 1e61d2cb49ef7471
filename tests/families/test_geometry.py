"""Pixel boxes against the image processors themselves: a picture of its own coordinates goes through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from gatelens.families import Geometry

N = 4  # cells a side
SIDE = 64  # processed pixels a side
PLAIN = {"do_normalize": False, "do_rescale": False}
CROP = {"crop_size": {"height": SIDE, "width": SIDE}}
PROCESSORS = {
    "chameleon": ChameleonImageProcessorPil(size={"shortest_edge": SIDE}, **CROP, **PLAIN),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, **CROP, **PLAIN),
    "clip resized larger than the crop": CLIPImageProcessorPil(size={"shortest_edge": 80}, **CROP, **PLAIN),
    "clip resized smaller than the crop": CLIPImageProcessorPil(size={"shortest_edge": 48}, **CROP, **PLAIN),
    "squeezed": CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False, **PLAIN),
    "crop alone": CLIPImageProcessorPil(do_resize=False, **CROP, **PLAIN),
    "padded to square": LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": SIDE}, **CROP, **PLAIN),
}


def processed(processor: object, axis: int, size: tuple[int, int]) -> np.ndarray:
    """A picture whose red is its x, green its y, blue full, as the model sees it: [3, SIDE, SIDE]."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = (
        np.arange(width)[None, :],
        np.arange(height)[:, None],
        255,
    )
    return np.asarray(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0])  # type: ignore[operator]


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(64, 64), (100, 60), (61, 203), (200, 199), (30, 90)])
def test_boxes_match_what_the_cells_show(name: str, size: tuple[int, int]) -> None:
    seen = processed(PROCESSORS[name], 0, size)
    boxes = Geometry.of(PROCESSORS[name], (SIDE, SIDE)).boxes(size, N, N).view(N, N, 4)
    cell = SIDE // N
    checked = 0
    for r in range(N):
        for c in range(N):
            patch = seen[:, r * cell : (r + 1) * cell, c * cell : (c + 1) * cell]
            x0, y0, x1, y1 = boxes[r, c].tolist()
            if (
                patch[2].min() < 250
            ):  # partly outside the picture: the mean says nothing, the clip is tested below
                continue
            checked += 1
            tolerance = 1.5
            assert abs(patch[0].mean() - ((x0 + x1) / 2 - 0.5)) < tolerance
            assert abs(patch[1].mean() - ((y0 + y1) / 2 - 0.5)) < tolerance
    assert checked > 0 or name in ("crop alone", "clip resized smaller than the crop", "padded to square")


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(64, 64), (100, 60), (61, 203), (30, 90)])
def test_boxes_tile_and_stay_in_the_picture(name: str, size: tuple[int, int]) -> None:
    boxes = Geometry.of(PROCESSORS[name], (SIDE, SIDE)).boxes(size, N, N).view(N, N, 4)
    assert boxes.min() >= 0 and boxes[..., 2].max() <= size[0] and boxes[..., 3].max() <= size[1]
    assert torch.equal(boxes[:, :-1, 2], boxes[:, 1:, 0]) and torch.equal(boxes[:-1, :, 3], boxes[1:, :, 1])
    assert (boxes[..., 2] >= boxes[..., 0]).all() and (boxes[..., 3] >= boxes[..., 1]).all()


def test_without_a_processor_pixels_are_the_models_own() -> None:
    boxes = Geometry.of(None, (SIDE, SIDE)).boxes((SIDE, SIDE), 2, 2)
    assert boxes.tolist() == [[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]]


def test_centre_crop_leaves_the_sides_out() -> None:
    wide = Geometry.of(PROCESSORS["clip"], (SIDE, SIDE)).boxes((128, 64), 1, 1)
    assert wide.tolist() == [[32, 0, 96, 64]]
