"""PaliGemma with a Gemma and with a Gemma 2 decoder."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tiny_models import WORDS, randomize

VOCABULARY = {n: i for i, n in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "\n", *WORDS, "<image>"])}
IMAGE = VOCABULARY["<image>"]


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", AddedToken("\n", normalized=False, special=True)],
    )


def processor() -> PaliGemmaProcessor:
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16}, image_seq_length=16)
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, tokenizer())


def model(second: bool) -> Any:
    """4x4 patches of 16x16 pixels; as in the checkpoints the placeholder has a row of its own at the end."""
    common: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
    }
    text = (
        Gemma2Config(
            **common,
            query_pre_attn_scalar=16,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            attn_logit_softcapping=5.0,  # the checkpoints' 50 would hardly bend scores this small
            final_logit_softcapping=5.0,
        )
        if second
        else GemmaConfig(**common)
    )
    config = PaliGemmaConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            vision_use_head=False,
        ),
        projection_dim=32,
        hidden_size=32,
        image_token_index=IMAGE,
    )
    torch.manual_seed(0)
    return randomize(PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="eager"), 4)


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_tower.encoder.layers:
        silence(layer.self_attn.out_proj)


def full(text: Any, pixels: int) -> PaliGemmaConfig:
    return PaliGemmaConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=pixels,
            patch_size=14,
            vision_use_head=False,
        ),
        projection_dim=text.hidden_size,
        hidden_size=text.hidden_size,
        image_token_index=257152,
    )


def gemma() -> GemmaConfig:
    """config.json of google/paligemma-3b-mix-224."""
    return GemmaConfig(
        vocab_size=257216,
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
    )


def gemma2(
    layers: int, d_model: int, heads: int, kv: int, mlp: int, d_head: int, scalar: int
) -> Gemma2Config:
    """config.json of google/paligemma2-3b-mix-224, -10b- and -28b-."""
    return Gemma2Config(
        vocab_size=257216,
        hidden_size=d_model,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=d_head,
        query_pre_attn_scalar=scalar,
    )


CASES = [
    Case(
        name="paligemma",
        model=lambda: model(False),
        processor=processor,
        unmix=unmix,
        blur=2,
        full={"3B": lambda: full(gemma(), 224), "3B-896": lambda: full(gemma(), 896)},
    ),
    Case(
        name="paligemma2",
        model=lambda: model(True),
        processor=processor,
        unmix=unmix,
        blur=2,
        full={
            "3B": lambda: full(gemma2(26, 2304, 8, 4, 9216, 256, 256), 224),
            "10B": lambda: full(gemma2(42, 3584, 16, 8, 14336, 256, 256), 224),
            "28B": lambda: full(gemma2(46, 4608, 32, 16, 36864, 128, 144), 224),
        },
    ),
]
