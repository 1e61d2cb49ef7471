"""The model and the prompt that everything is measured on.

A Chameleon decoder with random weights; its picture is written as drawn ids of the one vocabulary, so that no
vision tower runs and every toolkit gets the same tensors: begin-of-image, 1,024 image tokens, end-of-image, text.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from gatelens import HookedVLM, VLMInputs

BOS, EOS, BOI, EOI, PLACEHOLDER = 1, 2, 3, 4, 5
FIRST_CODE = 8  # ids below are special, then come the image codes, then the words


@dataclass(frozen=True)
class Size:
    """A decoder and its prompt."""

    n_layers: int = 8
    d_model: int = 512
    d_mlp: int = 1376
    n_heads: int = 8
    n_codes: int = 8192
    d_vocab: int = 8500
    n_image: int = 1024
    n_pos: int = 1050

    @property
    def n_text(self) -> int:
        """Positions after the end-of-image token; before the picture stand the first token and its marker."""
        return self.n_pos - self.n_image - 3


SMALL = Size()
TINY = Size(2, 64, 96, 2, 64, 128, 64, 72)  # for trying the scripts
# config.json of facebook/chameleon-7b; 24 words after the picture
CHAMELEON_7B = Size(32, 4096, 11008, 32, 8192, 65536, 1024, 1051)


def chameleon_config(size: Size) -> ChameleonConfig:
    """The real class's config; the VQ encoder, which never runs, is as small as its code allows."""
    codes = {code_name(i): FIRST_CODE + i for i in range(size.n_codes)}
    return ChameleonConfig(
        vocab_size=size.d_vocab,
        hidden_size=size.d_model,
        intermediate_size=size.d_mlp,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        num_key_value_heads=size.n_heads,
        max_position_embeddings=2 * max(size.n_pos, 1024),
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=0,
        vocabulary_map={"<image>": PLACEHOLDER, "<racm3:break>": BOI, "<eoss>": EOI, **codes},
        vq_config={
            "embed_dim": 4,
            "num_embeddings": 16,
            "latent_channels": 4,
            "resolution": 512,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1, 1],
            "num_res_blocks": 1,
        },
    )


def code_name(i: int) -> str:
    """The name of an image code, spelled in letters as Chameleon's vocabulary does."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(i)) + "Z"


def make_transformers(
    size: Size = SMALL,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Any:
    """The model as plain transformers gives it, with weights that make attention far from uniform."""
    with torch.device("meta"):
        hf = ChameleonForConditionalGeneration._from_config(
            chameleon_config(size), attn_implementation=attention, dtype=dtype
        )
    hf.to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            noise = torch.empty_like(weight).normal_(generator=generator)
            if "norm" in name:
                weight.copy_(0.3 * noise).add_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.copy_(noise.mul_(1.2 / weight.shape[-1] ** 0.5))
        _fill_buffers(hf, device)
    return hf.eval().requires_grad_(False)


def _fill_buffers(hf: Any, device: str) -> None:
    """Give buffers, which no checkpoint of random weights holds, the values their modules start with."""
    for name, module in hf.named_modules():
        if not any(True for _ in module.buffers(recurse=False)):
            continue
        if name.endswith("rotary_emb"):
            fresh = type(module)(module.config)
            for key, value in fresh.named_buffers(recurse=False):
                setattr(module, key, value.to(device))
            module.original_inv_freq = module.inv_freq
        elif not name.startswith("model.vqmodel"):
            raise RuntimeError(f"buffers of {name} are not filled: give them values here")


def twin_of(hf: Any, attention: str) -> Any:
    """The same weights (shared, nothing here writes to them) in modules of their own, untouched by hooks."""
    twin = copy.deepcopy(hf, {id(p): p for p in hf.parameters()})
    twin.set_attn_implementation(attention)
    return twin


def make_ids(size: Size = SMALL, seed: int = 0, device: str = "cpu") -> Tensor:
    """Int[1, pos]: the first token, a picture of random codes between its markers, random words."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(FIRST_CODE, FIRST_CODE + size.n_codes, (size.n_image,), generator=generator)
    words = torch.randint(FIRST_CODE + size.n_codes, size.d_vocab, (size.n_text,), generator=generator)
    ids = torch.cat([torch.tensor([BOS, BOI]), codes, torch.tensor([EOI]), words])
    return ids[None].to(device)


def make_hooked(hf: Any, size: Size = SMALL) -> tuple[HookedVLM, VLMInputs]:
    """The model under gatelens, and the prompt as its inputs."""
    model = HookedVLM.from_module(hf)
    return model, model.inputs(make_ids(size, device=str(model.device)))


def n_parameters(hf: Any) -> int:
    """Of the decoder with its embedding and head; the VQ encoder never runs."""
    return sum(p.numel() for name, p in hf.named_parameters() if "vqmodel" not in name)


def with_tokens(size: Size, n_image: int) -> Size:
    """The same model, with another number of image tokens before the same number of words."""
    return replace(size, n_image=n_image, n_pos=size.n_pos - size.n_image + n_image)


def save(hf: Any, folder: Path) -> None:
    """Weights and config as from_pretrained reads them."""
    hf.save_pretrained(folder)
    gc.collect()
