"""LLaVA-OneVision: the tiles of LLaVA-NeXT, up to 36 of them, shrunk to the features of 9; a Qwen2 decoder.

Li et al. 2024, arXiv 2408.03326. A picture alone in its prompt is cut into tiles; of several, each is one tile,
padded to a square. ``batch_num_images``, one number per prompt (0 for text alone), tells the model which; without
it every picture is cut. TransformerLens has the adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatelens.families.common.anyres import COUNT, SIZES, AnyRes
from gatelens.families.common.base import Family
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import Picture
from gatelens.families.common.processing import Pictures, prepare_batch


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a LLaVA-OneVision checkpoint: everything is in its config."""
    vision = config.vision_config
    plan = AnyRes(
        vision.image_size,
        vision.patch_size,
        tuple((height, width) for height, width in config.image_grid_pinpoints),
        most=int(config.vision_aspect_ratio.removeprefix("anyres_max_")),
        lone=True,
    )
    placeholder = getattr(processor, "image_token", "<image>")

    def process(parts: Any, pictures: Pictures, texts: list[str]) -> dict[str, Tensor]:
        with_pictures = [list(one) for one in pictures if one]
        made = dict(parts.image_processor(with_pictures, return_tensors="pt")) if with_pictures else {}
        if made:
            made[COUNT] = torch.tensor([len(one) for one in pictures])
        counts = [(picture.size, torch.tensor(len(one))) for one in pictures for picture in one]
        written = [placeholder * len(plan(Picture(size, 0, {COUNT: count}))) for size, count in counts]
        return prepare_batch(parts, texts, written, placeholder, **made)

    return Layout(
        placeholder_id=config.image_token_id,
        plan=plan,
        bos_id=config.text_config.bos_token_id,
        placeholder=placeholder,
        evidence=(SIZES,),
        evidence_by_prompt=(COUNT,),
        process=process,
    )


FAMILY = Family(
    name="llava-onevision",
    architectures=("LlavaOnevisionForConditionalGeneration",),
    layout=layout,
    turn="<|im_start|>user {}<|im_end|><|im_start|>assistant\n",
    markers="none; a newline feature after each row of tiles",
    grid="27x27 of the whole, then up to about 81x81 of tiles of 384x384 pixels",
    checkpoints=("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava-hf/llava-onevision-qwen2-72b-ov-hf"),
    note="vision tower and projector; tiles, shrunk when many",
)
