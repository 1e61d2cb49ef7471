"""Pictures of any size as merged patches, and positions in three streams (time, height, width).

What Qwen-VL and GLM-4V share. A picture is resized so that its sides hold whole tokens of ``merge`` x ``merge``
patches; ``image_grid_thw`` says how many patches, and a row of ``pixel_values`` is one patch. An image token has
its own position in each of three streams; text after a picture goes on from the highest of them in all three,
so a picture of 20 x 30 tokens takes 600 places in the prompt and 30 positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gatelens.errors import InputError
from gatelens.families.common.plan import Picture, PicturePlan, resized_grid
from gatelens.families.common.processing import picture_tensors, prepare_batch

GRID = "image_grid_thw"


@dataclass(frozen=True)
class MergedPatches:
    """A token for each ``merge`` x ``merge`` patches of ``patch`` x ``patch`` processed pixels, row by row."""

    patch: int
    merge: int

    def __call__(self, picture: Picture) -> PicturePlan:
        """A grid as large as the picture's row of ``image_grid_thw`` says.

        Raises:
            InputError: there is no such row, or it is of a video.
        """
        if GRID not in picture.tensors:
            raise InputError(f"placeholders without {GRID}: give it with pixel_values, one row per picture")
        time, height, width = (int(n) for n in picture.tensors[GRID])
        if time != 1:
            raise InputError(f"{GRID} has {time} frames: video is not supported, give pictures")
        rows, cols = height // self.merge, width // self.merge
        processed = (width * self.patch, height * self.patch)
        return resized_grid(picture, rows, cols, processed, pixel_rows=height * width)


def process_by_grid(placeholder: str) -> Callable[[Any, list[list[Any]], list[str]], dict[str, Tensor]]:
    """A ``Family.process``: as many placeholders for a picture as its patches make tokens."""

    def process(processor: Any, pictures: list[list[Any]], texts: list[str]) -> dict[str, Tensor]:
        tensors = picture_tensors(processor, pictures)
        merged = processor.image_processor.merge_size**2
        written = [placeholder * (int(thw.prod()) // merged) for thw in tensors.get(GRID, ())]
        return prepare_batch(processor, texts, written, placeholder, **tensors)

    return process


def three_streams(hf: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``mm_token_type_ids`` [batch, pos] and ``position_ids`` [3, batch, pos] by the model's own rule.

    The caller's position ids are kept where they have streams.

    Raises:
        InputError: for video, and for pictures with nothing between them, which that rule takes for one picture.
    """
    if any("video" in name for name in tensors):
        raise InputError("video is not supported: give pictures")
    types = (tensors["input_ids"] == hf.config.image_token_id).long()
    if tensors["position_ids"].ndim == 3:
        return {"mm_token_type_ids": types}
    begins = types.clone()
    begins[:, 1:] -= types[:, :-1]
    stretches, grids = int((begins == 1).sum()), tensors.get(GRID)
    n_pictures = 0 if grids is None else len(grids)
    if stretches != n_pictures:
        raise InputError(
            f"{n_pictures} picture(s) are in {stretches} place(s): put the markers around each picture"
        )
    positions, _ = hf.model.get_rope_index(
        tensors["input_ids"],
        mm_token_type_ids=types,
        image_grid_thw=grids,
        attention_mask=tensors["attention_mask"],
    )
    return {"mm_token_type_ids": types, "position_ids": positions}
