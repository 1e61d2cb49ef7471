"""InternVL: tiles of 24x24 pixels, 3x3 tokens each, a thumbnail after them."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from PIL.Image import Resampling
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from gatelens.families.common.processing import ImageTextParts
from tiny_models import WORDS, randomize

SPECIAL = ("<|endoftext|>", "<|im_end|>", "<unk>", "<img>", "</img>", "<IMG_CONTEXT>")
VOCABULARY = {name: i for i, name in enumerate([*SPECIAL, *WORDS])}
TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY["<|im_end|>"],
    "pad_token_id": VOCABULARY["<|endoftext|>"],
    "tie_word_embeddings": False,
}


def model(text: Any, **tower: Any) -> Any:
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=24,
            patch_size=4,
            **tower,
        ),
        text_config=text,
        image_token_id=VOCABULARY["<IMG_CONTEXT>"],
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return randomize(InternVLForConditionalGeneration._from_config(config, attn_implementation="eager"), 6)


def processor() -> ImageTextParts:
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<img>", "</img>", "<IMG_CONTEXT>"],
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": 24, "width": 24}, max_patches=6, resample=Resampling.BOX
    )
    return ImageTextParts(images, tokenizer)


def unmix(hf: Any) -> None:
    for layer in hf.model.vision_tower.encoder.layer:
        silence(layer.attention.projection_layer)


def full(text: Any, tower: dict[str, Any]) -> InternVLConfig:
    vision = InternVLVisionConfig(image_size=448, patch_size=14, **tower)
    return InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=151667, tie_word_embeddings=False
    )


def v3_8b() -> InternVLConfig:
    """config.json of OpenGVLab/InternVL3-8B-hf: InternViT-300M and Qwen2.5-7B."""
    text = Qwen2Config(
        vocab_size=151674,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    return full(text, {"attention_bias": True})


def v3_78b() -> InternVLConfig:
    """config.json of OpenGVLab/InternVL3-78B-hf: InternViT-6B and Qwen2.5-72B."""
    text = Qwen2Config(
        vocab_size=151674,
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    tower = {
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_hidden_layers": 45,
        "num_attention_heads": 25,
    }
    return full(text, tower | {"use_qk_norm": True, "norm_type": "rms_norm"})


CASES = [
    Case(
        name="internvl",
        model=lambda: model(Qwen2Config(**TEXT), attention_bias=True),
        processor=processor,
        sizes=((50, 30), (22, 23)),  # 3x2 tiles and a thumbnail; one tile alone
        unmix=unmix,
        blur=1,
        full={"3-8B": v3_8b, "3-78B": v3_78b},
    ),
    Case(
        name="internvl-llama-6b-tower",  # InternVL2-Llama3-76B: norms of queries and keys in the tower
        model=lambda: model(LlamaConfig(**TEXT), use_qk_norm=True, norm_type="rms_norm"),
        processor=processor,
        sizes=((20, 28), (63, 20)),  # 2x3 tiles; 3 tiles beside each other
        unmix=unmix,
        blur=1,
    ),
    Case(
        name="internvl-qwen3",  # InternVL3.5: norms of queries and keys in the decoder
        model=lambda: model(Qwen3Config(**TEXT, head_dim=8), attention_bias=True),
        processor=processor,
        sizes=((28, 20), (13, 50)),
        unmix=unmix,
        blur=1,
    ),
]
