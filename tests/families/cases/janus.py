"""Janus and Janus-Pro, reading pictures."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from tiny_models import WORDS, randomize

NAMED = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
VOCABULARY = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", *NAMED.values(), *WORDS])}


def processor() -> JanusProcessor:
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=NAMED,
    )
    images = JanusImageProcessorPil(size={"height": 64, "width": 64}, min_size=2)
    return JanusProcessor(images, tokenizer, num_image_tokens=16)


def model() -> Any:
    """4x4 patches of a picture of 64x64 pixels. ``q_norm`` is left off, as in every checkpoint."""
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "mlp_ratio": 2.0,
            "projection_dim": 32,
            "num_image_tokens": 16,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 8,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
        image_token_id=VOCABULARY["<image_placeholder>"],
    )
    torch.manual_seed(0)
    return randomize(JanusForConditionalGeneration._from_config(config, attn_implementation="eager"), 7)


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_model.encoder.layers:
        silence(layer.self_attn.projection_layer)


def full(layers: int, d_model: int, heads: int, mlp: int) -> JanusConfig:
    """config.json of deepseek-community/Janus-1.3B, Janus-Pro-1B and Janus-Pro-7B."""
    return JanusConfig(
        text_config=LlamaConfig(
            vocab_size=102400,
            hidden_size=d_model,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=16384,
            bos_token_id=100000,
            eos_token_id=100001,
        ),
        vision_config={"projection_dim": d_model},
        vq_config={"projection_dim": d_model, "image_token_embed_dim": d_model},
    )


CASE = Case(
    name="janus",
    model=model,
    processor=processor,
    sizes=((80, 40), (50, 88)),  # neither square: above and below, or left and right, the square is filled
    unmix=unmix,
    blur=3,
    full={
        "1.3B-and-Pro-1B": lambda: full(24, 2048, 16, 5632),
        "Pro-7B": lambda: full(30, 4096, 32, 11008),
    },
)
