"""Tiny models of the real classes whose picture side is written down: it says what each patch shows, and no more.

A shell is a ``LlavaForConditionalGeneration`` or ``ChameleonForConditionalGeneration`` with its processor. Its vision
tower or image tokenizer reads the mean colour of a patch, and the embedding of an image token is a sum of three rows
of one table: of its vote for ``a``, its vote for ``b``, and its mark. The decoder is written by
:mod:`gatelens.bench.circuits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
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

from gatelens.bench.pictures import GRID, MARK_LEVELS, MARKS, N_PATCHES, PATCH, VALUE_LEVELS, VALUES

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<sep>", "<image>", "<racm3:break>", "<eoss>")
WORDS = (
    "this", "picture", "shows", "one", "thing", "that", "we", "know", "from", "before", "and", "it", "looks", "like",
    "some", "old", "friend", "of", "ours", "who", "the", "name", "for", "kind",
)  # fmt: skip
ENDS = ("is", "was")  # the last word, which answers: of the first and of the second question
NAMES = (
    "cat", "dog", "fox", "owl", "bee", "cow", "hen", "pig", "ant", "bat", "elk", "emu", "eel", "ram", "yak", "ape",
)  # fmt: skip
N_CODES = VALUES * VALUES * MARKS
N_LAYERS, N_HEADS, D_HEAD, D_MODEL, D_MLP = 4, 6, 16, 96, 64
ROPE_THETA = 1e30  # all but a head's first pair of coordinates turn so slowly that position plays no part
_LARGE = 100.0  # a constant beside which a colour is small, so that a norm scales all tokens alike
CLASSES = ("llava", "chameleon")


def code_name(number: int) -> str:
    """Name of an image token in Chameleon's vocabulary: its number spelled in letters."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(number)) + "Z"


def vocabulary(name: str) -> dict[str, int]:
    """Word to id in models of a class; only Chameleon's has codes of images."""
    codes = [code_name(i) for i in range(N_CODES)] if name == "chameleon" else []
    return {word: i for i, word in enumerate([*SPECIAL, *codes, *WORDS, *ENDS, *NAMES])}


@dataclass(frozen=True, eq=False)
class Shell:
    """A model whose decoder is yet to be written, and what is needed to write it.

    Attributes:
        hf: the model of transformers, and its ``processor``.
        words: word to id.
        layers, embedding, norms: of the decoder.
    """

    name: str
    hf: Any
    processor: Any
    words: dict[str, int]

    @property
    def decoder(self) -> Any:
        """The part that has ``layers`` and ``embed_tokens``."""
        return self.hf.model.language_model if self.name == "llava" else self.hf.model

    def write_image_tokens(self, table: Float[Tensor, "row d_model"]) -> None:
        """What an image token is to the decoder: rows of votes for ``a``, of votes for ``b``, of marks."""
        (_write_projector if self.name == "llava" else _write_codes)(self, table)


def shell(name: str) -> Shell:
    """An empty model: every weight of its decoder is 0, every norm 1."""
    words = vocabulary(name)
    if name == "llava":
        hf, processor = _llava(words), _llava_processor(words)
    else:
        hf, processor = _chameleon(words), _chameleon_processor(words)
    hf.eval().requires_grad_(False)
    made = Shell(name, hf, processor, words)
    for part in (made.decoder.embed_tokens, made.decoder.layers, hf.lm_head):
        for key, weight in part.named_parameters():
            weight.fill_(1.0 if "norm" in key and key.endswith("weight") else 0.0)
    return made


def _decoder(words: dict[str, int]) -> dict[str, Any]:
    return {
        "vocab_size": len(words), "hidden_size": D_MODEL, "intermediate_size": D_MLP, "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS, "num_key_value_heads": N_HEADS, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip


def _tokenizer(words: dict[str, int]) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        sep_token="<sep>", additional_special_tokens=["<image>", "<racm3:break>", "<eoss>"],
    )  # fmt: skip


_PIXELS = {
    "size": {"shortest_edge": GRID * PATCH}, "crop_size": {"height": GRID * PATCH, "width": GRID * PATCH},
    "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


# -- LLaVA


def _llava(words: dict[str, int]) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=GRID * PATCH,
        patch_size=PATCH, projection_dim=8,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**_decoder(words)), image_token_id=words["<image>"],
        vision_feature_select_strategy="default", vision_feature_layer=-1, pad_token_id=0,
    )  # fmt: skip
    hf = LlavaForConditionalGeneration._from_config(config)
    with torch.no_grad():
        _write_tower(hf.model.vision_tower)
    return hf


def _llava_processor(words: dict[str, int]) -> LlavaProcessor:
    return LlavaProcessor(
        CLIPImageProcessorPil(**_PIXELS), _tokenizer(words), patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def _write_tower(tower: Any) -> None:
    """Features are the patch's mean colour: ``(r, -r, g, -g, b, -b)`` and a constant, so that the norm is a scale."""
    tower = getattr(tower, "vision_model", tower)
    for weight in tower.encoder.parameters():
        weight.zero_()
    embeddings = tower.embeddings
    for weight in embeddings.parameters():
        weight.zero_()
    for channel in range(3):
        for sign in (0, 1):
            embeddings.patch_embedding.weight[2 * channel + sign, channel] = (1 - 2 * sign) / PATCH**2
    embeddings.position_embedding.weight[:, 6:] = torch.tensor([_LARGE, -_LARGE])
    tower.pre_layrnorm.weight.fill_(_LARGE / 2)  # a norm divides by the root of the mean square, _LARGE / 2
    tower.pre_layrnorm.bias.zero_()


def _write_projector(shell: Shell, table: Float[Tensor, "row d_model"]) -> None:
    """Steps at the middles between levels, of which the rows of the levels are sums."""
    projector = shell.hf.model.multi_modal_projector
    for weight in projector.parameters():
        weight.zero_()
    gain, unit, first = 30.0, 0, 0  # a GELU so steep is a ramp
    for channel, levels in enumerate((VALUE_LEVELS, VALUE_LEVELS, MARK_LEVELS)):
        rows = table[first : first + len(levels)]
        projector.linear_2.bias += rows[0]
        width = (levels[1] - levels[0]) / 4
        for i, (low, high) in enumerate(pairwise(levels)):
            for side in (1, -1):  # from 0 to 1 between a width before the middle and one after it
                projector.linear_1.weight[unit, 2 * channel] = gain / (2 * width)
                projector.linear_1.bias[unit] = gain / (2 * width) * (side * width - (low + high) / 2)
                projector.linear_2.weight[:, unit] = side / gain * (rows[i + 1] - rows[i])
                unit += 1
        first += len(levels)


# -- Chameleon


def _chameleon(words: dict[str, int]) -> ChameleonForConditionalGeneration:
    config = ChameleonConfig(
        **_decoder(words), vocabulary_map=dict(words), swin_norm=False,
        vq_config={
            "embed_dim": 4, "num_embeddings": N_CODES, "latent_channels": 4, "resolution": GRID * PATCH,
            "base_channels": 128, "channel_multiplier": [1, 1, 1], "num_res_blocks": 0, "attn_type": "none",
        },
    )  # fmt: skip
    hf = ChameleonForConditionalGeneration._from_config(config)
    with torch.no_grad():
        _write_tokenizer(hf.model.vqmodel)
    return hf


def _chameleon_processor(words: dict[str, int]) -> ChameleonProcessor:
    return ChameleonProcessor(
        ChameleonImageProcessorPil(**_PIXELS), _tokenizer(words), image_seq_length=N_PATCHES
    )


def _write_tokenizer(vq: Any) -> None:
    """The code of a patch is the nearest of all combinations of levels to its mean colour."""
    encoder = vq.encoder
    for part in (encoder, vq.quant_conv):
        for weight in part.parameters():
            weight.zero_()
    for channel in range(3):  # a group of the norm is (x, -x, large, -large), so that it is a scale
        start = 4 * channel
        encoder.conv_in.weight[start, channel, 1, 1], encoder.conv_in.weight[start + 1, channel, 1, 1] = 1, -1
        encoder.conv_in.bias[start + 2 : start + 4] = torch.tensor([_LARGE, -_LARGE])
        encoder.conv_out.weight[channel, start, 1, 1] = 1
        vq.quant_conv.weight[channel, channel, 0, 0] = 1
    for level in encoder.down[:-1]:
        for i in range(12):
            level.downsample.conv.weight[i, i, :2, :2] = 0.25
    encoder.norm_out.weight.fill_(_LARGE / 2**0.5)
    encoder.norm_out.bias.fill_(10.0)  # where x · sigmoid(x) is x
    encoder.conv_out.bias.fill_(-10.0)
    encoder.conv_out.bias[3] = 0
    vq.quantize.embedding.weight.zero_()
    for code in range(N_CODES):
        a, b, mark = levels_of(code)
        vq.quantize.embedding.weight[code, :3] = torch.tensor(
            [VALUE_LEVELS[a], VALUE_LEVELS[b], MARK_LEVELS[mark]]
        )


def levels_of(code: int) -> tuple[int, int, int]:
    """The votes and the mark that a code stands for."""
    return code // MARKS // VALUES, code // MARKS % VALUES, code % MARKS


def _write_codes(shell: Shell, table: Float[Tensor, "row d_model"]) -> None:
    for code in range(N_CODES):
        a, b, mark = levels_of(code)
        row = table[a] + table[VALUES + b] + table[2 * VALUES + mark]
        shell.decoder.embed_tokens.weight[shell.words[code_name(code)]] = row
