"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures of any size, positions in three streams."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from gatelens.families.common.processing import ImageTextParts
from tiny_models import WORDS, randomize

SPECIAL = (
    "<|endoftext|>",
    "<|im_end|>",
    "<unk>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = {name: i for i, name in enumerate([*SPECIAL, *WORDS])}
MARKERS = {
    "image_token_id": VOCABULARY["<|image_pad|>"],
    "video_token_id": VOCABULARY["<|video_pad|>"],
    "vision_start_token_id": VOCABULARY["<|vision_start|>"],
    "vision_end_token_id": VOCABULARY["<|vision_end|>"],
}
TEXT: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY["<|im_end|>"],
    "pad_token_id": VOCABULARY["<|endoftext|>"],
}


def tokenizer(vocabulary: dict[str, int], pad: str, end: str) -> PreTrainedTokenizerFast:
    """Words, and markers that need no space around them; nothing is put before a prompt."""
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=pad,
        eos_token=end,
        unk_token="<unk>",
        additional_special_tokens=[name for name in vocabulary if name.startswith("<|")],
    )


def processor(patch: int = 7) -> ImageTextParts:
    """Sides in whole tokens of two by two patches, 4 to 24 tokens a picture."""
    side = 2 * patch
    images = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size={"shortest_edge": 4 * side**2, "longest_edge": 24 * side**2}
    )
    return ImageTextParts(images, tokenizer(VOCABULARY, "<|endoftext|>", "<|im_end|>"))


def model(kind: Any, config: Any, seed: int) -> Any:
    """``seed``: one with which the model does not end its answer at once."""
    torch.manual_seed(0)
    return randomize(kind._from_config(config, attn_implementation="eager"), seed)


def vision(**more: Any) -> dict[str, Any]:
    return {"depth": 3, "num_heads": 2, "patch_size": 7, "spatial_merge_size": 2} | more


def qwen2(seed: int = 1) -> Any:
    return model(
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig(
            text_config=TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
            vision_config=vision(embed_dim=16, hidden_size=32, mlp_ratio=2),
            **MARKERS,
        ),
        seed,
    )


def qwen25(seed: int = 6) -> Any:
    """Windows of two by two tokens: the tower puts its patches in another order in between."""
    return model(
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig(
            text_config=TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
            vision_config=vision(
                hidden_size=16,
                intermediate_size=24,
                out_hidden_size=32,
                window_size=28,
                fullatt_block_indexes=[1],
            ),
            **MARKERS,
        ),
        seed,
    )


def qwen3(seed: int = 1) -> Any:
    """Two layers of the tower go into the decoder beside its last; heads are wider than d_model / n_heads."""
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return model(
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig(
            text_config=TEXT | {"head_dim": 16, "rope_parameters": rope},
            vision_config=vision(
                hidden_size=16,
                intermediate_size=24,
                out_hidden_size=32,
                num_position_embeddings=16,
                deepstack_visual_indexes=[0, 1],
            ),
            **MARKERS,
        ),
        seed,
    )


def unmix(hf: Any) -> None:
    """Without the tower's attention a token is its four patches."""
    for block in hf.model.visual.blocks:
        silence(block.attn.proj)


def full2(layers: int, d_model: int, heads: int, kv: int, mlp: int) -> Qwen2VLConfig:
    """config.json of Qwen/Qwen2-VL-7B-Instruct and -72B-Instruct."""
    return Qwen2VLConfig(
        text_config={
            "vocab_size": 152064,
            "hidden_size": d_model,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": d_model, "num_heads": 16},
    )


def full25(layers: int, d_model: int, heads: int, kv: int, mlp: int, tower: int) -> Qwen2_5_VLConfig:
    """config.json of Qwen/Qwen2.5-VL-7B-Instruct and -72B-Instruct."""
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 152064,
            "hidden_size": d_model,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": tower,
            "out_hidden_size": d_model,
            "num_heads": 16,
        },
    )


def full3() -> Qwen3VLConfig:
    """config.json of Qwen/Qwen3-VL-8B-Instruct."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision_config={"out_hidden_size": 4096},
    )


SIZES = ((53, 33), (36, 80))  # 4x2 and 3x6 tokens of 14 pixels, by shrinking and by stretching

CASES = [
    Case(
        name="qwen2-vl",
        model=qwen2,
        processor=processor,
        sizes=SIZES,
        unmix=unmix,
        blur=3,
        full={
            "7B": lambda: full2(28, 3584, 28, 4, 18944),
            "72B": lambda: full2(80, 8192, 64, 8, 29568),
        },
    ),
    Case(
        name="qwen2.5-vl",
        model=qwen25,
        processor=processor,
        sizes=SIZES,
        unmix=unmix,
        blur=3,
        full={
            "7B": lambda: full25(28, 3584, 28, 4, 18944, 3420),
            "72B": lambda: full25(80, 8192, 64, 8, 29568, 3456),
        },
    ),
    Case(
        name="qwen3-vl",
        model=qwen3,
        processor=processor,
        sizes=SIZES,
        unmix=unmix,
        blur=3,
        full={"8B": full3},
    ),
]
