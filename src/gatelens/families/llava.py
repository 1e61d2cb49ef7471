"""LLaVA 1.5: a CLIP or SigLIP vision tower projected into a Llama-shaped decoder, no image markers.

Liu et al. 2023, arXiv 2310.03744. TransformerLens has the adapter. The vision tower is ``vision_encoder.*``;
the decoder's hooks begin with ``blocks.``.
"""

from __future__ import annotations

from typing import Any

from .base import Family
from .geometry import Geometry
from .layout import Layout


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a LLaVA checkpoint: one a patch, with the class token when it is kept."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    # "default" drops the first feature, which is the class token only where the tower has one
    class_token = 1 if vision.model_type == "clip_vision_model" else 0
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    return Layout(
        placeholder_id=config.image_token_id,
        rows=side,
        cols=side,
        n_leading=class_token - dropped,
        geometry=Geometry.of(getattr(processor, "image_processor", None), (vision.image_size,) * 2),
        bos_id=config.text_config.bos_token_id,
        placeholder=getattr(processor, "image_token", "<image>"),
    )


FAMILY = Family(
    name="llava",
    architectures=("LlavaForConditionalGeneration",),
    layout=layout,
    note="vision tower and projector; gate: the first position after the last image token",
)
