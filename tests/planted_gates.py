"""Decoders whose gate is planted by hand: the weights are written down, and no training is needed.

Some image tokens tell the class. In layer 0 the planted tokens read them; in layer 1 the last position of the prompt
reads the planted tokens and answers. All other rows read the first position, which says nothing. So the class reaches
the answer through the planted tokens and through nothing else, whatever they are called.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gatelens.families import FixedGrid, Geometry, Layout
from gatelens.model import HookedVLM
from study_helpers import COLORS
from tiny_models import VOCABULARY, make_tokenizer

SIDE = 8  # image tokens in a row and in a column
CLASSES = ("dog", "cat", "red", "blue")  # what TinyData shows
TELLING = range(4)  # image tokens that hold the class
PROMPT = "<image>this animal is a"
WORDS = ("this", "animal", "is", "a")

# what the residual stream's coordinates hold
CLASS, GATHERED, ANSWER = slice(0, 4), slice(4, 8), slice(8, 12)
FIRST, TELLS, PLANTED, LAST, OTHER = 12, 13, 14, 15, 16  # what kind of token it is
NOISE = slice(17, 33)
D_MODEL, D_HEAD = 64, 32


def planted_model(*, image: tuple[int, ...] = (), words: tuple[str, ...] = ()) -> HookedVLM:
    """A decoder in which the class passes through these image tokens and words of :data:`PROMPT`, and nothing else."""
    assert not set(image) & set(TELLING) and "a" not in words
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=D_MODEL, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=D_HEAD, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30}, tie_word_embeddings=False,
    )  # fmt: skip
    decoder = LlamaForCausalLM(config)
    with torch.no_grad():
        _write(decoder, words)
    layout = Layout(
        VOCABULARY["<image>"], FixedGrid(SIDE, SIDE, Geometry((16, 16))), bos_id=VOCABULARY["<s>"]
    )
    return HookedVLM.from_parts(decoder, lambda pixels: _features(pixels, image), layout, Processor())


def _write(decoder: LlamaForCausalLM, words: tuple[str, ...]) -> None:
    for name, weight in decoder.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    embed = decoder.model.embed_tokens.weight
    embed[:, OTHER] = 4.0
    embed[VOCABULARY["<s>"]] = 0
    embed[VOCABULARY["<s>"], FIRST] = 4.0
    for kind, names in ((LAST, ("a",)), (PLANTED, words)):
        for name in names:
            embed[VOCABULARY[name], OTHER] = 0
            embed[VOCABULARY[name], kind] = 4.0
    # the last coordinates of a head turn so slowly that position plays no part in the scores
    free = D_HEAD // 2 - 1
    for layer, (reader, read, source, target) in enumerate(
        ((PLANTED, TELLS, CLASS, GATHERED), (LAST, PLANTED, GATHERED, ANSWER))
    ):
        attention = decoder.model.layers[layer].self_attn
        attention.k_proj.weight[free, read] = 1.0
        attention.k_proj.weight[free, FIRST] = (
            0.5  # what is read by rows that do not look for anything better
        )
        attention.q_proj.weight[free, reader] = 60.0
        for other in {FIRST, TELLS, PLANTED, LAST, OTHER} - {reader}:
            attention.q_proj.weight[free + D_HEAD // 2, other] = 60.0
        attention.k_proj.weight[free + D_HEAD // 2, FIRST] = 1.0
        for i, (a, b) in enumerate(
            zip(range(source.start, source.stop), range(target.start, target.stop), strict=True)
        ):
            attention.v_proj.weight[i, a] = 1.0
            attention.o_proj.weight[b, i] = 0.3  # little, so that what a token is stays plain
    for i, name in enumerate(CLASSES):
        decoder.lm_head.weight[VOCABULARY[name], ANSWER.start + i] = 8.0


def _features(pixels: Tensor, planted: tuple[int, ...]) -> Tensor:
    """The telling tokens hold the class of the picture, by its colour; all hold noise of its own."""
    colors = torch.tensor([COLORS[name] for name in CLASSES], dtype=torch.float32) / 255
    mean = pixels.mean((2, 3))
    number = torch.cdist(mean.float(), colors).argmin(1)
    out = torch.zeros(len(pixels), SIDE * SIDE, D_MODEL)
    for b, picture in enumerate(pixels):
        seed = int((picture.double().abs().sum() * 1e4).item())
        noise = torch.randn(
            SIDE * SIDE, NOISE.stop - NOISE.start, generator=torch.Generator().manual_seed(seed)
        )
        out[b, :, NOISE] = 0.3 * noise
    out[:, :, OTHER] = 4.0
    for kind, places in ((TELLS, list(TELLING)), (PLANTED, list(planted))):
        out[:, places, OTHER] = 0
        out[:, places, kind] = 4.0
    for token in TELLING:
        out[torch.arange(len(pixels)), token, CLASS.start + number] = 4.0
    return out


class Processor:
    """Pictures as they are, and each ``<image>`` once for every feature."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()

    def __call__(self, images: Any = None, text: Any = None, **_: Any) -> dict[str, Tensor]:
        words = [t.replace("<image>", " <image>" * (SIDE * SIDE) + " ") for t in text]
        encoded = dict(self.tokenizer(words, padding=True, padding_side="left", return_tensors="pt"))
        encoded.pop("token_type_ids", None)
        if images is None:
            return encoded
        flat = [one for many in images for one in (many if isinstance(many, list) else [many])]
        pixels = torch.stack([torch.tensor(np.array(image.convert("RGB"))) for image in flat])
        return encoded | {"pixel_values": pixels.permute(0, 3, 1, 2).float() / 255}
