"""Decoders whose heads are planted by hand: which matters and what draws attention is written down."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import gatelens as gl
from gatelens.families import FixedGrid, Geometry, Layout
from planted_gates import CLASSES, SIDE, Processor
from study_helpers import COLORS, picture
from tiny_models import VOCABULARY

D_MODEL, D_HEAD, LAYERS, HEADS = 64, 16, 2, 4
FREE = D_HEAD // 2 - 1  # a coordinate of a head that turns so slowly that positions play no part
REGISTER = 5  # the image token that leaves the tower large
GROWS = "red"  # the word that grows in the decoder
PROMPT = "<image> the red cat is left of the blue dog and it shows a"

# what the residual stream's coordinates hold
ONE, LARGE_IN_TOWER, GROWS_LATER, GROWN, FIRST, LEVEL = range(6)
CLASS, ANSWER = slice(8, 12), slice(12, 16)
SIZE = 1000.0  # of LEVEL: so large that what heads write does not change the scale of the norms


def sinks_model() -> gl.HookedVLM:
    """Layer 1: head 0 looks at the register, head 1 at the word that grew, head 2 at the first token; head 3 evenly."""
    decoder = _empty()
    embed = decoder.model.embed_tokens.weight
    embed[:, ONE] = 4.0
    embed[VOCABULARY[GROWS], GROWS_LATER] = 4.0
    embed[VOCABULARY["<s>"], FIRST] = 4.0
    mlp = decoder.model.layers[0].mlp
    mlp.gate_proj.weight[0, GROWS_LATER] = 10.0
    mlp.up_proj.weight[0, GROWS_LATER] = 1.0
    mlp.down_proj.weight[GROWN, 0] = 0.125
    attention = decoder.model.layers[1].self_attn
    for head, drawn_by in enumerate((LARGE_IN_TOWER, GROWN, FIRST)):
        attention.q_proj.weight[head * D_HEAD + FREE, ONE] = 4.0
        attention.k_proj.weight[head * D_HEAD + FREE, drawn_by] = 4.0

    def features(pixels: Tensor) -> Tensor:
        out = torch.zeros(len(pixels), SIDE * SIDE, D_MODEL)
        out[..., ONE] = 4.0
        out[:, REGISTER, LARGE_IN_TOWER] = 40.0
        return out

    return _wrapped(decoder, features)


def two_heads_model(worth: dict[tuple[int, int], float]) -> gl.HookedVLM:
    """The class of the picture reaches the answer through these heads, each adding its part to the right logit.

    All heads attend evenly, and nothing reads what another head wrote. A head adds ``worth`` times the image tokens'
    share of the positions.
    """
    decoder = _empty()
    decoder.model.embed_tokens.weight[:, LEVEL] = SIZE
    scale = SIZE / D_MODEL**0.5  # of every norm
    for (layer, head), much in worth.items():
        attention = decoder.model.layers[layer].self_attn
        for i in range(len(CLASSES)):
            attention.v_proj.weight[head * D_HEAD + i, CLASS.start + i] = scale
            attention.o_proj.weight[ANSWER.start + i, head * D_HEAD + i] = much
    for i, name in enumerate(CLASSES):
        decoder.lm_head.weight[VOCABULARY[name], ANSWER.start + i] = scale

    def features(pixels: Tensor) -> Tensor:
        colors = torch.tensor([COLORS[name] for name in CLASSES], dtype=torch.float32) / 255
        number = torch.cdist(pixels.mean((2, 3)), colors).argmin(1)
        out = torch.zeros(len(pixels), SIDE * SIDE, D_MODEL)
        out[..., LEVEL] = SIZE
        out[torch.arange(len(pixels)), :, CLASS.start + number] = 1.0
        return out

    return _wrapped(decoder, features)


def examples(n: int = 4) -> list[gl.data.Example]:
    """Pictures of the classes in turn, under prompts of one length."""
    names = [CLASSES[i % len(CLASSES)] for i in range(n)]
    return [
        gl.data.Example(picture(name, seed=i), PROMPT, (name,), "class", str(i), name)
        for i, name in enumerate(names)
    ]


def _empty() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=D_MODEL, intermediate_size=8, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=D_HEAD, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30}, tie_word_embeddings=False,
    )  # fmt: skip
    decoder = LlamaForCausalLM(config).requires_grad_(False)
    for name, weight in decoder.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    return decoder


def _wrapped(decoder: LlamaForCausalLM, features: Any) -> gl.HookedVLM:
    grid = FixedGrid(SIDE, SIDE, Geometry((16, 16)))
    layout = Layout(VOCABULARY["<image>"], grid, bos_id=VOCABULARY["<s>"])
    return gl.HookedVLM.from_parts(decoder, features, layout, Processor())
