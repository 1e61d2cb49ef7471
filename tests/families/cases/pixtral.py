"""Pixtral 12B and Mistral Small 3.1: rows of any number and length, alone and with patches merged."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from gatelens.families.common.processing import ImageTextParts
from tiny_models import WORDS, randomize

MARKERS = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
VOCABULARY = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", *MARKERS, *WORDS])}
TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # wider than hidden_size / heads, as in both checkpoints
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
}


def tokenizer(vocabulary: dict[str, int] = VOCABULARY) -> PreTrainedTokenizerFast:
    """Words, and markers that need no space around them."""
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=MARKERS,
    )


def processor() -> ImageTextParts:
    """Sides up to 48 pixels; the patches it is made for are not the model's, which come with each call."""
    images = PixtralImageProcessorPil(size={"longest_edge": 48}, patch_size=16, resample=2)
    return ImageTextParts(images, tokenizer())


def vision(patch: int) -> PixtralVisionConfig:
    return PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=48,
        patch_size=patch,
    )


def pixtral() -> Any:
    config = LlavaConfig(
        vision_config=vision(8),
        text_config=MistralConfig(**TEXT),
        image_token_id=VOCABULARY["[IMG]"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    return randomize(LlavaForConditionalGeneration._from_config(config, attn_implementation="eager"), 5)


def mistral3() -> Any:
    config = Mistral3Config(
        vision_config=vision(4),
        text_config=MistralConfig(**TEXT),
        image_token_index=VOCABULARY["[IMG]"],
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return randomize(Mistral3ForConditionalGeneration._from_config(config, attn_implementation="eager"), 6)


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_tower.transformer.layers:
        silence(layer.attention.o_proj)


def full_text(mlp: int, longest: int) -> MistralConfig:
    """What the decoders of both checkpoints share."""
    return MistralConfig(
        vocab_size=131072,
        hidden_size=5120,
        intermediate_size=mlp,
        num_hidden_layers=40,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": "default", "rope_theta": 1e9},
        rms_norm_eps=1e-5,
        sliding_window=None,
    )


def full_pixtral() -> LlavaConfig:
    """config.json of mistral-community/pixtral-12b."""
    return LlavaConfig(
        vision_config=PixtralVisionConfig(image_size=1024, patch_size=16, hidden_act="silu"),
        text_config=full_text(14336, 1024000),
        image_token_index=10,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def full_mistral3() -> Mistral3Config:
    """config.json of mistralai/Mistral-Small-3.1-24B-Instruct-2503."""
    return Mistral3Config(
        vision_config=PixtralVisionConfig(image_size=1540, patch_size=14, hidden_act="silu"),
        text_config=full_text(32768, 131072),
        image_token_index=10,
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )


SIZES = ((44, 27), (60, 101))  # 6x4 tokens, a little enlarged; 4x6, made half as large

CASES = [
    Case(
        name="pixtral",
        model=pixtral,
        processor=processor,
        sizes=SIZES,
        unmix=unmix,
        blur=2.5,
        full={"12B": full_pixtral},
    ),
    Case(
        name="mistral3",
        model=mistral3,
        processor=processor,
        sizes=SIZES,
        unmix=unmix,
        blur=2.5,
        full={"24B": full_mistral3},
    ),
]
