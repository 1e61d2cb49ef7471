"""LLaVA-NeXT: a CLIP tower, tiles of 16x16 pixels, a Mistral decoder."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from PIL.Image import Resampling
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
    Qwen2Config,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tiny_models import VOCABULARY, make_tokenizer, randomize

PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]


def model() -> Any:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            projection_dim=16,
        ),
        text_config=MistralConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            sliding_window=None,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=VOCABULARY["<image>"],
        image_grid_pinpoints=PINPOINTS,
    )
    torch.manual_seed(0)
    return randomize(LlavaNextForConditionalGeneration._from_config(config, attn_implementation="eager"), 4)


def processor() -> LlavaNextProcessor:
    """Averaging over boxes instead of a cubic keeps what a pixel bleeds into to its neighbours."""
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=PINPOINTS,
        resample=Resampling.BOX,
    )
    return LlavaNextProcessor(
        images,
        make_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_tower.encoder.layers:
        silence(layer.self_attn.out_proj)


def full(text: Any, image_token: int) -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=text,
        image_token_index=image_token,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    )


def mistral_7b() -> LlavaNextConfig:
    """config.json of llava-hf/llava-v1.6-mistral-7b-hf."""
    text = MistralConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        sliding_window=None,
    )
    return full(text, 32000)


def vicuna_13b() -> LlavaNextConfig:
    """config.json of llava-hf/llava-v1.6-vicuna-13b-hf."""
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
    )
    return full(text, 32000)


def next_72b() -> LlavaNextConfig:
    """config.json of llava-hf/llava-next-72b-hf: Qwen1.5-72B, which has no grouped queries."""
    text = Qwen2Config(
        vocab_size=152064,
        hidden_size=8192,
        intermediate_size=24576,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=64,
    )
    return full(text, 151646)


CASE = Case(
    name="llava-next",
    model=model,
    processor=processor,
    sizes=((30, 22), (18, 44)),  # 2x2 tiles with rows of padding; 3 tiles one under the other
    unmix=unmix,
    blur=1,
    full={"mistral-7B": mistral_7b, "vicuna-13B": vicuna_13b, "72B": next_72b},
)
