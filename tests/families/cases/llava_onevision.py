"""LLaVA-OneVision: a SigLIP tower whose patches leave a strip of each tile unseen, a Qwen2 decoder."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from PIL.Image import Resampling
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from gatelens.families.common.processing import ImageTextParts
from tiny_models import VOCABULARY, make_tokenizer, randomize

PINPOINTS = [[16 * rows, 16 * cols] for rows in (1, 2, 3) for cols in (1, 2, 3)]


def model(most: int = 9) -> Any:
    """3x3 patches of 5x5 pixels from tiles of 16x16."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=5,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=VOCABULARY["<image>"],
        video_token_index=VOCABULARY["<unk>"],
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=f"anyres_max_{most}",
    )
    torch.manual_seed(0)
    return randomize(
        LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation="eager"), 5
    )


def processor() -> ImageTextParts:
    images = LlavaOnevisionImageProcessorPil(
        size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS, resample=Resampling.BOX
    )
    return ImageTextParts(images, make_tokenizer())


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_tower.encoder.layers:
        silence(layer.self_attn.out_proj)


def full(layers: int, d_model: int, heads: int, kv: int, mlp: int) -> LlavaOnevisionConfig:
    """config.json of llava-hf/llava-onevision-qwen2-7b-ov-hf and -72b-ov-hf."""
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=152128,
            hidden_size=d_model,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
        ),
        image_token_index=151646,
        video_token_index=151647,
        image_grid_pinpoints=[[384 * rows, 384 * cols] for rows in range(1, 7) for cols in range(1, 7)],
    )


CASES = [
    Case(
        name="llava-onevision",
        model=model,
        processor=processor,
        sizes=((30, 22), (18, 44)),  # 2x2 tiles with rows of padding; 3x2 with columns of padding
        unmix=unmix,
        blur=1,
        full={
            "7B": lambda: full(28, 3584, 28, 4, 18944),
            "72B": lambda: full(80, 8192, 64, 8, 29568),
        },
    ),
    Case(
        name="llava-onevision-shrunk",
        model=lambda: model(most=2),
        processor=processor,
        sizes=((41, 47), (18, 44)),  # 3x3 tiles shrunk to the features of two; 3x2 tiles alike
        unmix=unmix,
        blur=6,  # a token interpolates up to one feature beyond its share
    ),
]
