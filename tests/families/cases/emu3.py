"""Emu3: pictures of any shape as rows of VQ tokens."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

from tiny_models import WORDS, randomize

NAMED = {
    "image_token": "<image>",
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
    "eol_token": "<|extra_200|>",
}
N_CODES = 16
SIZES = ((32, 32), (45, 27))  # 4x4 tokens, and 3 rows of 6: the second is resized to 48x24


def code_name(i: int) -> str:
    return f"<|visual token {i:06d}|>"


NAMES = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *NAMED.values(),
    *map(code_name, range(N_CODES)),
    *"0123456789*",
    *WORDS,
]
VOCABULARY = {name: i for i, name in enumerate(NAMES)}


def processor() -> Emu3Processor:
    """The size in a picture's header is read digit by digit, as by the real tokenizer."""
    raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=NAMED,
    )
    return Emu3Processor(Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=64 * 64), tokenizer)


def latents(hf: Any, pixels: Tensor) -> Tensor:
    """What the VQ encoder holds of each token before it is rounded to a code: Float[picture, row, col, dim]."""
    vq = hf.model.vqmodel
    frames = pixels.unsqueeze(1).repeat(1, vq.config.temporal_downsample_factor, 1, 1, 1)
    return vq.quant_conv(vq.encoder(frames).transpose(1, 2))[:, :, 0].permute(0, 2, 3, 1)


def model() -> Any:
    """An untrained VQ encoder gives every pixel nearly the same code: its codebook is spread over what it sees."""
    config = Emu3Config(
        vocabulary_map=dict(VOCABULARY),
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vq_config={
            "codebook_size": N_CODES,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "hidden_size": 32,
        },
    )
    torch.manual_seed(0)
    hf = randomize(Emu3ForConditionalGeneration._from_config(config, attn_implementation="eager"), 1)
    images = processor().image_processor
    pictures = [Case("", model, processor, SIZES).picture(0, seed) for seed in range(8)]
    with torch.no_grad():
        seen = latents(hf, images(pictures, return_tensors="pt")["pixel_values"].float()).flatten(0, 2)
        chosen = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:N_CODES]
        hf.model.vqmodel.quantize.embedding.weight.copy_(seen[chosen])
    return hf


class NoNorm(nn.Module):
    """A copy, because the encoder goes on to change what a norm gave it in place."""

    def forward(self, hidden: Tensor, quantized: Tensor | None = None) -> Tensor:
        return hidden.clone()


def unmix(hf: Any) -> None:
    """Norms and attention let every pixel touch every latent, convolutions those of the cells around it.

    Without the former, and with the taps of the latter that stay within a cell, each latent sees its own pixels.
    """
    for module in hf.model.vqmodel.encoder.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            kept = torch.zeros_like(module.weight)
            if (
                module.stride[-1] == 2
            ):  # two by two pixels become one; the third row and column are the neighbours'
                kept[..., :2, :2] = 1
            else:
                kept[..., module.kernel_size[-1] // 2, module.kernel_size[-1] // 2] = 1
            module.weight.data *= kept
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, NoNorm())
            if name == "out_proj":
                silence(child)


def features(hooked: Any, inputs: Any) -> Tensor:
    """The latents of each picture, without those of the padding beside smaller pictures."""
    found = latents(hooked.hf, inputs.tensors["pixel_values"])
    kept = [
        one[: int(height) // 8, : int(width) // 8].flatten(0, 1)
        for one, (height, width) in zip(found, inputs.tensors["image_sizes"], strict=True)
    ]
    return torch.cat(kept)


def full() -> Emu3Config:
    """config.json of Emu3-community/Emu3-Chat-hf: transformers' defaults, and these ids in its vocabulary map.

    Which of the spare ids ``<image>`` has is ours to choose here: nothing in the shapes depends on it.
    """
    markers = {
        "<image>": 151646,
        "<|extra_200|>": 151846,
        "<|extra_201|>": 151847,
        "<|image token|>": 151851,
        "<|image start|>": 151852,
        "<|image end|>": 151853,
    }
    return Emu3Config(vocabulary_map=markers | {code_name(i): 151854 + i for i in range(32768)})


CASE = Case(
    name="emu3",
    model=model,
    processor=processor,
    sizes=SIZES,
    unmix=unmix,
    features=features,
    blur=3,
    full={"8B": full},
)
