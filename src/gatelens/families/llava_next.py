"""LLaVA-NeXT (1.6): LLaVA with tiles. The whole picture first, then one grid over all tiles with newlines.

Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next. The newline features that end the rows of the
grid are learnt and show nothing: their role is ``row_break``. TransformerLens has the adapter.
"""

from __future__ import annotations

from typing import Any

from gatelens.families.common.anyres import SIZES, AnyRes
from gatelens.families.common.base import Family
from gatelens.families.common.layout import Layout


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a LLaVA-NeXT checkpoint: everything is in its config."""
    vision = config.vision_config
    pinpoints = tuple((height, width) for height, width in config.image_grid_pinpoints)
    return Layout(
        placeholder_id=config.image_token_id,
        plan=AnyRes(vision.image_size, vision.patch_size, pinpoints),
        bos_id=config.text_config.bos_token_id,
        placeholder=getattr(processor, "image_token", "<image>"),
        evidence=(SIZES,),
    )


FAMILY = Family(
    name="llava-next",
    architectures=("LlavaNextForConditionalGeneration",),
    layout=layout,
    turn="[INST] {} [/INST]",
    markers="none; a newline feature after each row of tiles",
    grid="24x24 of the whole, then up to 48x48 or 24x72 of tiles of 336x336 pixels",
    checkpoints=(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-hf/llava-next-72b-hf",
    ),
    note="vision tower and projector; tiles",
)
