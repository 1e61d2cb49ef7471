"""Gemma 3: a SigLIP tower pooled to a square of tokens between literal markers; layers that see a window or all.

Gemma Team 2025, arXiv 2503.19786. TransformerLens has the adapter. The tokens of one picture attend to each
other in both directions; five layers of six see only a window of the last positions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gatelens.families.common.base import Family, ids_of
from gatelens.families.common.geometry import Geometry
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import FixedGrid
from gatelens.families.common.processing import Pictures, picture_tensors, prepare_batch


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a Gemma 3 checkpoint: the tower's patches, averaged to ``mm_tokens_per_image``."""
    side = int(config.mm_tokens_per_image**0.5)
    geometry = Geometry.of_processor(processor, config.vision_config.image_size)
    return Layout(
        placeholder_id=config.image_token_id,
        plan=FixedGrid(side, side, geometry),
        boi_ids=ids_of(config.boi_token_id),
        eoi_ids=ids_of(config.eoi_token_id),
        bos_id=config.text_config.bos_token_id,
        placeholder=getattr(processor, "boi_token", "<start_of_image>"),
        two_way="image",
    )


def process(processor: Any, pictures: Pictures, texts: list[str]) -> dict[str, Tensor]:
    """The processor takes one list of pictures a prompt and stumbles over a prompt without any.

    Pan-and-scan is off: its crops would be in the prompt as separate pictures, with words between them.
    """
    made = picture_tensors(processor, pictures, do_pan_and_scan=False)
    made.pop("num_crops", None)
    written = [processor.full_image_sequence] * sum(map(len, pictures))
    return prepare_batch(processor, texts, written, processor.boi_token, **made)


def complete(hf: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token types tell which positions are of a picture; without them they would attend backwards only."""
    if "token_type_ids" in tensors:
        return {}
    return {"token_type_ids": (tensors["input_ids"] == hf.config.image_token_id).long()}


def adjust(bridge: Any) -> None:
    """Queries and keys are normed as [batch, head, pos, d_head]."""
    for block in bridge.blocks:
        block.attn.norm_after_transpose = True


FAMILY = Family(
    name="gemma3",
    architectures=("Gemma3ForConditionalGeneration",),
    layout=layout,
    complete=complete,
    adjust=adjust,
    process=process,
    turn="<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    markers="<start_of_image> … <end_of_image>",
    grid="16x16 of 896x896 pixels",
    checkpoints=("google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it"),
    note="two-way attention inside a picture; window and full layers; pan-and-scan is left off",
)
