"""LLaVA 1.5 with a CLIP tower."""

from __future__ import annotations

from typing import Any

from case import Case, silence
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from tiny_models import make_llava, make_llava_processor


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
