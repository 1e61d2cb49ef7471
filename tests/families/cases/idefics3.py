"""Idefics3 and SmolVLM: tiles named by ordinary text or by tokens of their own, pictures cut up or whole."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from gatelens.families.common.processing import ImageTextParts
from tiny_models import WORDS, randomize

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
PIECES = ["<", ">", "_", "-", "row", "col", "global", "img", "1", "2", "3", "\n", "\n\n"]
NAMES = ["<global-img>", *(f"<row_{row}_col_{col}>" for row in (1, 2, 3) for col in (1, 2, 3))]
VOCABULARY = {name: i for i, name in enumerate([*SPECIAL, *PIECES, *WORDS, *NAMES])}


def tokenizer(names: bool) -> PreTrainedTokenizerFast:
    """Words and signs. ``names``: whether tiles' names are tokens (SmolVLM 256M) or text (Idefics3-8B)."""
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" +"), "removed"),
            pre_tokenizers.Split(Regex(r"\n+|[a-z]+|[0-9]|[<>_?.-]"), "isolated"),
        ]
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:] + (NAMES if names else []),
    )


def images(kind: Any, **more: Any) -> Any:
    """Tiles of 16 pixels, three along the longer side; ``resample=0`` blurs least."""
    return kind(size={"longest_edge": 48}, max_image_size={"longest_edge": 16}, resample=0, **more)


def idefics3_processor() -> Idefics3Processor:
    return Idefics3Processor(images(Idefics3ImageProcessorPil), tokenizer(names=False), image_seq_len=4)


def smolvlm_processor() -> ImageTextParts:
    return ImageTextParts(images(SmolVLMImageProcessorPil), tokenizer(names=True))


def whole_processor() -> ImageTextParts:
    return ImageTextParts(images(SmolVLMImageProcessorPil, do_image_splitting=False), tokenizer(names=True))


def model(kind: Any, config: Any, seed: int) -> Any:
    """Tiles of 4x4 patches, four of which make a token."""
    tiny = config(
        text_config=LlamaConfig(
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
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        image_token_id=VOCABULARY["<image>"],
        scale_factor=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return randomize(kind._from_config(tiny, attn_implementation="eager"), seed)


def idefics3() -> Any:
    return model(Idefics3ForConditionalGeneration, Idefics3Config, 10)


def smolvlm() -> Any:
    return model(SmolVLMForConditionalGeneration, SmolVLMConfig, 8)


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_model.encoder.layers:
        silence(layer.self_attn.out_proj)


SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
SIGLIP_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}


def full_idefics3() -> Idefics3Config:
    """config.json of HuggingFaceM4/Idefics3-8B-Llama3."""
    return Idefics3Config(
        text_config=LlamaConfig(
            vocab_size=128259,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        ),
        vision_config=SIGLIP | {"image_size": 364},
        image_token_id=128257,
        scale_factor=2,
    )


def full_smolvlm(config: Any, size: str, vocabulary: int, image_id: int) -> Any:
    """config.json of HuggingFaceTB's SmolVLM-256M-Instruct, SmolVLM-Instruct and SmolVLM2-2.2B-Instruct."""
    small = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    large = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
    heads = (9, 3) if size == "256M" else (32, 32)
    return config(
        text_config=LlamaConfig(
            **(small if size == "256M" else large),
            vocab_size=vocabulary,
            num_attention_heads=heads[0],
            num_key_value_heads=heads[1],
            head_dim=64,
        ),
        vision_config=SIGLIP_BASE | {"image_size": 512} if size == "256M" else SIGLIP | {"image_size": 384},
        image_token_id=image_id,
        scale_factor=4 if size == "256M" else 3,
    )


SIZES = ((60, 40), (35, 63))  # 2x3 tiles of 20 pixels' side; 3x2, after a resize that keeps no proportions

CASES = [
    Case(
        name="idefics3",
        model=idefics3,
        processor=idefics3_processor,
        sizes=SIZES,
        unmix=unmix,
        blur=2,
        full={
            "8B": full_idefics3,
            "smolvlm-256M": lambda: full_smolvlm(Idefics3Config, "256M", 49280, 49190),
            "smolvlm-2.2B": lambda: full_smolvlm(Idefics3Config, "2.2B", 49155, 49153),
        },
    ),
    Case(
        name="smolvlm",
        model=smolvlm,
        processor=smolvlm_processor,
        sizes=SIZES,
        unmix=unmix,
        blur=2,
        full={
            "256M": lambda: full_smolvlm(SmolVLMConfig, "256M", 49280, 49190),
            "2.2B": lambda: full_smolvlm(SmolVLMConfig, "2.2B", 49280, 49190),
        },
    ),
    Case(
        name="smolvlm-whole",
        model=smolvlm,
        processor=whole_processor,
        sizes=SIZES,
        unmix=unmix,
        blur=2,
    ),
]
