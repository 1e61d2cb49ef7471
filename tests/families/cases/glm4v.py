"""GLM-4V: pictures of any size, positions in three streams, norms on both sides of attention and MLP."""

from __future__ import annotations

from typing import Any

from case import Case
from transformers import Glm4vConfig, Glm4vForConditionalGeneration
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from cases.qwen_vl import SIZES, TEXT, model, tokenizer, unmix, vision
from gatelens.families.common.processing import ImageTextParts
from tiny_models import WORDS

SPECIAL = (
    "<|endoftext|>",
    "<|user|>",
    "<unk>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|image|>",
    "<|video|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
VOCABULARY = {name: i for i, name in enumerate([*SPECIAL, *WORDS])}


def processor() -> ImageTextParts:
    """Sides in whole tokens of 14x14 pixels, 4 to 24 tokens a picture; its limits count a picture as two frames."""
    images = Glm4vImageProcessorPil(
        patch_size=7, merge_size=2, size={"shortest_edge": 2 * 4 * 14**2, "longest_edge": 2 * 24 * 14**2}
    )
    return ImageTextParts(images, tokenizer(VOCABULARY, "<|endoftext|>", "<|user|>"))


def tiny(seed: int = 1) -> Any:
    """Half of each head is rotated, as in the checkpoint."""
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    return model(
        Glm4vForConditionalGeneration,
        Glm4vConfig(
            text_config=TEXT
            | {
                "hidden_size": 64,
                "vocab_size": len(VOCABULARY),
                "eos_token_id": VOCABULARY["<|user|>"],
                "pad_token_id": VOCABULARY["<|endoftext|>"],
                "rope_parameters": rope,
            },
            vision_config=vision(hidden_size=16, out_hidden_size=64, intermediate_size=24, image_size=28),
            image_token_id=VOCABULARY["<|image|>"],
            video_token_id=VOCABULARY["<|video|>"],
            image_start_token_id=VOCABULARY["<|begin_of_image|>"],
            image_end_token_id=VOCABULARY["<|end_of_image|>"],
            video_start_token_id=VOCABULARY["<|begin_of_video|>"],
            video_end_token_id=VOCABULARY["<|end_of_video|>"],
        ),
        seed,
    )


def full() -> Glm4vConfig:
    """config.json of zai-org/GLM-4.1V-9B-Thinking."""
    return Glm4vConfig(
        text_config={
            "vocab_size": 151552,
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "max_position_embeddings": 65536,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [8, 12, 12],
            },
        },
        vision_config={
            "depth": 24,
            "hidden_size": 1536,
            "intermediate_size": 13696,
            "out_hidden_size": 4096,
            "num_heads": 12,
            "image_size": 336,
            "patch_size": 14,
        },
    )


CASE = Case(
    name="glm-4v",
    model=tiny,
    processor=processor,
    sizes=SIZES,
    unmix=unmix,
    blur=3,
    full={"4.1V-9B": full},
)
