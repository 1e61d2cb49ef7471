"""A Llava of two layers whose weights are written by hand: how a picture's sign reaches one word is known.

What stands in the residual stream, by dimension: 0 the sign of the picture's red, 3 of its green, both ±; 1 what head
L0H1 makes of the red, 5 what the MLP or L0H2 does, 2 what the logits read, 4 what L0H0 makes of the green, 7 whether
this is the first token; 8 and on are the same for all pictures. From a picture to the one with red and green turned
over, all that changes is signs, so no norm changes, and nothing but the planted path moves the logits:

``v``: red → values of L0H1 → values of L1H2 → logits.
``mlp``: red → values of L0H1 → MLP of layer 0 → values of L1H2 → logits.
``k``: red → values of L0H1 → keys of L1H2 → logits. The key decides how much L1H2 reads of the first token.
``two``: as ``v``, and beside it the same way once more, through L0H2 and L1H1; each carries half.

All else is there and busy: L0H0 and L1H3 carry the green to dimensions that these logits do not read; the other heads
and the MLPs write random numbers that are the same for all pictures.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

import gatelens as gl
from gatelens.data import Example, Pair
from tiny_models import VOCABULARY, make_llava, make_llava_processor

Plant = Literal["v", "mlp", "k", "two"]
RIGHT, WRONG = "dog", "cat"
PROMPT = "<image> is it a"
RED, FROM_A, TO_LOGITS, GREEN, GREEN_2, FROM_B, GREEN_3, FIRST, REST = range(9)
D_HEAD = 8

EDGES: dict[Plant, set[tuple[str, str]]] = {
    "v": {("embed", "L0H1 v"), ("L0H1", "L1H2 v"), ("L1H2", "logits")},
    "mlp": {("embed", "L0H1 v"), ("L0H1", "L0 mlp"), ("L0 mlp", "L1H2 v"), ("L1H2", "logits")},
    "k": {("embed", "L0H1 v"), ("L0H1", "L1H2 k"), ("L1H2", "logits")},
    "two": {
        ("embed", "L0H1 v"),
        ("L0H1", "L1H2 v"),
        ("L1H2", "logits"),
        ("embed", "L0H2 v"),
        ("L0H2", "L1H1 v"),
        ("L1H1", "logits"),
    },
}
NODES: dict[Plant, set[str]] = {
    "v": {"L0H1", "L1H2"},
    "mlp": {"L0H1", "L0 mlp", "L1H2"},
    "k": {"L0H1", "L1H2"},
    "two": {"L0H1", "L0H2", "L1H1", "L1H2"},
}


def planted(plant: Plant) -> Any:
    """The model."""
    hf = make_llava(kv_heads=4)
    decoder = hf.model.language_model
    del decoder.layers[2:]
    decoder.config.num_hidden_layers = hf.config.text_config.num_hidden_layers = 2
    random = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    with torch.no_grad():
        _tower(hf)
        words = decoder.embed_tokens.weight
        words[:, :REST] = 0
        words[:, REST:] = 3 * drawn(len(words), 24)
        words[VOCABULARY["<s>"], FIRST] = 6.0
        hf.lm_head.weight.copy_(0.1 * drawn(*hf.lm_head.weight.shape))
        for word, sign in ((RIGHT, 1.0), (WRONG, -1.0)):
            hf.lm_head.weight[VOCABULARY[word], :REST] = 0
            hf.lm_head.weight[VOCABULARY[word], TO_LOGITS] = sign
        for layer in decoder.layers:
            _constants(layer, drawn)
        for norm in decoder.modules():
            if type(norm).__name__ == "LlamaRMSNorm":
                norm.weight.fill_(1.0)
        first, second = decoder.layers
        _head(first, 0, GREEN, GREEN_2)
        _head(second, 3, GREEN_2, GREEN_3)
        _head(first, 1, RED, FROM_A)
        read = FROM_A
        if plant == "mlp":
            read = FROM_B
            first.mlp.gate_proj.weight[0], first.mlp.up_proj.weight[0] = 0, 0
            first.mlp.gate_proj.weight[0, REST:] = drawn(24)
            first.mlp.up_proj.weight[0, FROM_A] = 4.0
            first.mlp.down_proj.weight[:, 0] = 0
            first.mlp.down_proj.weight[FROM_B, 0] = 4.0
        if plant == "k":
            _head(second, 2, FIRST, TO_LOGITS)
            # the slowest rotation, so that only what L0H1 wrote tells the keys apart
            row, asks = 2 * D_HEAD + 3, words[VOCABULARY["a"], REST:] / 20
            second.self_attn.q_proj.weight[row, REST:] = asks
            second.self_attn.k_proj.weight[row, FROM_A] = 4.0
        else:
            _head(second, 2, read, TO_LOGITS)
        if plant == "two":
            _head(first, 2, RED, FROM_B)
            _head(second, 1, FROM_B, TO_LOGITS)
    return hf


def _tower(hf: Any) -> None:
    """Image tokens: ±1 times a number for red in dimension 0 and green in 3, random constants from 8 on."""
    tower = getattr(hf.model.vision_tower, "vision_model", hf.model.vision_tower)
    for layer in tower.encoder.layers:
        for part in (layer.self_attn.out_proj, layer.mlp.fc2):
            part.weight.zero_(), part.bias.zero_()
    embeddings = tower.embeddings
    embeddings.patch_embedding.weight.zero_()
    embeddings.position_embedding.weight.zero_()
    for channel, own in ((0, 0), (1, 2)):
        for dimension, sign in ((own, 1.0), (own + 1, -1.0)):  # so that a layer norm finds a mean of zero
            low, high = _normed(channel)
            embeddings.patch_embedding.weight[dimension, channel] = sign / 16  # the mean of a patch of 4 × 4
            scale = 2.0 / (high - low)
            embeddings.patch_embedding.weight[dimension, channel] *= scale
            embeddings.position_embedding.weight[:, dimension] = -sign * scale * (high + low) / 2
    tower.pre_layrnorm.weight.fill_(1.0)
    tower.pre_layrnorm.bias.zero_()
    projector = hf.model.multi_modal_projector
    for part in (projector.linear_1, projector.linear_2):
        part.weight.zero_(), part.bias.zero_()
    for number, (own, to) in enumerate(((0, RED), (2, GREEN))):
        for side, sign in enumerate((1.0, -1.0)):  # gelu(x) − gelu(−x) = x
            projector.linear_1.weight[2 * number + side, own] = sign
            projector.linear_2.weight[to, 2 * number + side] = sign
    projector.linear_2.bias[REST:] = 3 * torch.randn(24, generator=torch.Generator().manual_seed(4))


def _normed(channel: int) -> tuple[float, float]:
    """A black and a white pixel as the processor gives them."""
    processor = make_llava_processor().image_processor
    mean, std = processor.image_mean[channel], processor.image_std[channel]
    return -mean / std, (1 - mean) / std


def _constants(layer: Any, drawn: Any) -> None:
    """Heads and an MLP that read and write what is the same for all pictures, each position its own."""
    attention, mlp = layer.self_attn, layer.mlp
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
        part.weight.copy_(0.3 * drawn(*part.weight.shape))
        part.weight[:, :REST] = 0
    for part in (attention.o_proj, mlp.down_proj):
        part.weight.copy_(0.3 * drawn(*part.weight.shape))
        part.weight[:REST] = 0


def _head(layer: Any, head: int, reads: int, writes: int) -> None:
    """A head that attends evenly, and moves one dimension."""
    attention, rows = layer.self_attn, slice(D_HEAD * head, D_HEAD * (head + 1))
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        part.weight[rows] = 0
    attention.o_proj.weight[:, rows] = 0
    attention.v_proj.weight[D_HEAD * head, reads] = 3.0
    attention.o_proj.weight[writes, D_HEAD * head] = 3.0


def pairs() -> list[Pair]:
    """Red and green turned over."""
    found = []
    for i, (red, green) in enumerate(((255, 255), (255, 0))):
        sides = [
            Example(Image.new("RGB", (16, 16), color), PROMPT, (word,), "class", f"{i}{word}", word)
            for color, word in (((red, green, 0), RIGHT), ((255 - red, 255 - green, 0), WRONG))
        ]
        found.append(Pair(*sides, differ="red and green", target=RIGHT, base=WRONG))
    return found


def model_of(plant: Plant) -> gl.HookedVLM:
    """The model, wrapped."""
    return gl.HookedVLM.from_module(planted(plant), make_llava_processor())
