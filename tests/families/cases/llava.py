"""LLaVA 1.5 with a CLIP tower."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tiny_models import make_llava, make_llava_processor, make_tokenizer, randomize


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_tower.encoder.layers:
        silence(layer.self_attn.out_proj)


def full(layers: int, d_model: int, heads: int, mlp: int) -> LlavaConfig:
    """config.json of llava-hf/llava-1.5-7b-hf and -13b-hf."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=d_model,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
        ),
        image_token_index=32000,
    )


def siglip() -> Any:
    """A SigLIP tower whose 4-pixel patches leave 2 of 18 pixels unseen, as 14 leaves 6 of 384; no class token."""
    config = make_llava("full").config
    config.vision_config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=18,
        patch_size=4,
    )
    config.vision_feature_layer = -1
    torch.manual_seed(0)
    return randomize(LlavaForConditionalGeneration._from_config(config), 5)


def siglip_processor() -> LlavaProcessor:
    images = SiglipImageProcessorPil(size={"height": 18, "width": 18})
    return LlavaProcessor(images, make_tokenizer(), patch_size=4, vision_feature_select_strategy="full")


CASE = Case(
    name="llava",
    model=make_llava,
    processor=make_llava_processor,
    unmix=unmix,
    blur=2,
    full={
        "7B": lambda: full(32, 4096, 32, 11008),
        "13B": lambda: full(40, 5120, 40, 13824),
    },
)
SIGLIP = Case(
    name="llava-siglip",
    model=siglip,
    processor=siglip_processor,
    sizes=((18, 18), (40, 54)),
    unmix=unmix,
    blur=4,
)
CASES = [CASE, SIGLIP]
