"""Gemma 3: window and full layers, two-way attention inside a picture, markers around it."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tiny_models import WORDS, randomize

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
VOCABULARY = {name: i for i, name in enumerate([*SPECIAL, *WORDS])}
WINDOW = 24  # shorter than a prompt with two pictures, longer than one picture


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )


def processor() -> Gemma3Processor:
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return Gemma3Processor(images, tokenizer(), image_seq_length=16)


def model() -> Any:
    """8x8 patches of 16x16 pixels averaged to 4x4 tokens; layers: window, window, full."""
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            max_position_embeddings=256,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=2,
            vision_use_head=False,
        ),
        mm_tokens_per_image=16,
        boi_token_index=VOCABULARY["<start_of_image>"],
        eoi_token_index=VOCABULARY["<end_of_image>"],
        image_token_index=VOCABULARY["<image_soft_token>"],
    )
    torch.manual_seed(0)
    return randomize(Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager"), 3)


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_tower.encoder.layers:
        silence(layer.self_attn.out_proj)


def full(layers: int, d_model: int, heads: int, kv: int, mlp: int, d_head: int, scalar: int) -> Gemma3Config:
    """config.json of google/gemma-3-4b-it, -12b-it and -27b-it."""
    return Gemma3Config(
        text_config=Gemma3TextConfig(
            vocab_size=262208,
            hidden_size=d_model,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            head_dim=d_head,
            query_pre_attn_scalar=scalar,
            sliding_window=1024,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=896,
            patch_size=14,
            vision_use_head=False,
        ),
        mm_tokens_per_image=256,
        boi_token_index=255999,
        eoi_token_index=256000,
        image_token_index=262144,
    )


CASE = Case(
    name="gemma3",
    model=model,
    processor=processor,
    sizes=((16, 16), (20, 28)),
    unmix=unmix,
    blur=2,
    full={
        "4B": lambda: full(34, 2560, 8, 4, 10240, 256, 256),
        "12B": lambda: full(48, 3840, 16, 8, 15360, 256, 256),
        "27B": lambda: full(62, 5376, 32, 16, 21504, 128, 168),
    },
)
