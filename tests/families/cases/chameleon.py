"""Chameleon, with norms before (7B) and after (34B) attention and MLP."""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from torch import Tensor, nn
from transformers import ChameleonConfig

from tiny_models import make_chameleon, make_chameleon_processor, make_picture


def model(swin_norm: bool = False) -> Any:
    """An untrained VQ encoder gives every pixel nearly the same code: its codebook is spread over what it sees."""
    hf = make_chameleon(swin_norm)
    images = make_chameleon_processor().image_processor
    pixels = torch.cat([images(make_picture(seed=s), return_tensors="pt")["pixel_values"] for s in range(8)])
    with torch.no_grad():
        seen = latents(hf, pixels).transpose(0, 1).flatten(1).T
        codebook = hf.model.vqmodel.quantize.embedding.weight
        chosen = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[: len(codebook)]
        codebook.copy_(seen[chosen])
    return hf


def latents(hf: Any, pixels: Tensor) -> Tensor:
    vq = hf.model.vqmodel
    return vq.quant_conv(vq.encoder(pixels))


def unmix(hf: Any) -> None:
    """Group norms and attention let every pixel touch every latent; without them only convolutions do."""
    for module in hf.model.vqmodel.encoder.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
            if name == "proj_out":
                silence(child)


def features(hooked: Any, inputs: Any) -> Tensor:
    """What the VQ encoder holds of each token before it is rounded to a code."""
    return latents(hooked.hf, inputs.tensors["pixel_values"]).flatten(2).transpose(1, 2).flatten(0, 1)


def full(layers: int, d_model: int, heads: int, kv: int, mlp: int, swin: bool) -> ChameleonConfig:
    """config.json of the checkpoints (facebook/chameleon-7b, -30b); the vocabulary map has their markers."""
    return ChameleonConfig(
        vocab_size=65536,
        hidden_size=d_model,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=4096,
        swin_norm=swin,
        vocabulary_map={"<image>": 8711, "<racm3:break>": 8197, "<eoss>": 8196}
        | {"IMGIMG" + "".join(chr(ord("A") + int(d)) for d in str(i)) + "Z": 4 + i for i in range(8192)},
    )


CASES = [
    Case(
        name="chameleon",
        model=model,
        processor=make_chameleon_processor,
        unmix=unmix,
        features=features,
        local=False,
        blur=2,
        full={
            "7B": lambda: full(32, 4096, 32, 32, 11008, False),
            "34B": lambda: full(48, 8192, 64, 8, 22016, True),
        },
    ),
    Case(
        name="chameleon-34b",
        model=lambda: model(swin_norm=True),
        processor=make_chameleon_processor,
        unmix=unmix,
        features=features,
        local=False,
        blur=2,
    ),
]
