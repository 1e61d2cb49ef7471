"""Builders of tiny models with random weights in the real transformers classes; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<sep>", "<image>", "<racm3:break>", "<eoss>"]
WORDS = [
    "this",
    "animal",
    "is",
    "a",
    "dog",
    "cat",
    "what",
    "color",
    "the",
    "red",
    "blue",
    "left",
    "of",
    "?",
    ".",
    "it",
    "shows",
    "and",
    "yes",
    "no",
]
N_CODES = 16


def code_name(i: int) -> str:
    """Name of VQ code ``i`` in Chameleon's vocabulary: digits spelled as letters."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(i)) + "Z"


VOCABULARY = {name: i for i, name in enumerate([*SPECIAL, *(code_name(i) for i in range(N_CODES)), *WORDS])}


def make_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="<sep>",
        additional_special_tokens=["<image>", "<racm3:break>", "<eoss>"],
    )


def randomize(model: Any, seed: int) -> Any:
    """Weights large enough that attention is far from uniform, norms away from one."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "vqmodel" in name:
            continue  # as initialised, its codes differ between pictures
        if weight.ndim == 1 or "q_norm" in name or "k_norm" in name:
            weight.data = weight.data + 0.3 * noise
        else:
            weight.data = noise * 1.2 / weight.shape[-1] ** 0.5
    return model.eval()


def make_chameleon(swin_norm: bool = False, kv_heads: int = 2) -> ChameleonForConditionalGeneration:
    """4x4 image tokens a picture of 16x16 pixels; grouped-query attention with query and key norms."""
    config = ChameleonConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        vocabulary_map=dict(VOCABULARY),
        swin_norm=swin_norm,
        vq_config={
            "embed_dim": 8,
            "num_embeddings": N_CODES,
            "latent_channels": 8,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1,
        },
    )
    torch.manual_seed(0)
    return randomize(ChameleonForConditionalGeneration._from_config(config, attn_implementation="eager"), 1)


def make_chameleon_processor() -> ChameleonProcessor:
    images = ChameleonImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, rescale_factor=0.0078
    )
    return ChameleonProcessor(images, make_tokenizer(), image_seq_length=16)


def make_llava(strategy: str = "default", kv_heads: int = 2) -> LlavaForConditionalGeneration:
    """4x4 patches of a picture of 16x16 pixels, with a CLIP tower of two layers."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_id=VOCABULARY["<image>"],
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return randomize(LlavaForConditionalGeneration._from_config(config, attn_implementation="eager"), 2)


def make_llava_processor(strategy: str = "default") -> LlavaProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        images,
        make_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    )


def make_picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())
