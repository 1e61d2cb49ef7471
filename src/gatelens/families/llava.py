"""LLaVA 1.5: a CLIP or SigLIP vision tower projected into a Llama-shaped decoder, no image markers.

Liu et al. 2023, arXiv 2310.03744. TransformerLens has the adapter. The vision tower is ``vision_encoder.*``;
the decoder's hooks begin with ``blocks.``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gatelens.families.common.base import Family
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import FixedGrid


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a LLaVA checkpoint: one a patch, with the class token when it is kept."""
    vision = config.vision_config
    # "default" drops the first feature, which is the class token only where the tower has one
    class_token = 1 if vision.model_type == "clip_vision_model" else 0
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    left = vision.image_size % vision.patch_size  # a strip no patch covers (14 in 384)
    cell = float(vision.patch_size) if left else None
    plan = FixedGrid.of_patches(vision, processor)
    return Layout(
        placeholder_id=config.image_token_id,
        plan=replace(plan, n_leading=class_token - dropped, cell=cell),
        bos_id=config.text_config.bos_token_id,
        placeholder=getattr(processor, "image_token", "<image>"),
    )


FAMILY = Family(
    name="llava",
    architectures=("LlavaForConditionalGeneration",),
    layout=layout,
    turn="USER: {} ASSISTANT:",
    markers="none",
    grid="24x24 of 336x336 pixels",
    checkpoints=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"),
    note="vision tower and projector",
)
