"""VILA-U by the general route: a Llama decoder of transformers, and its tower, which transformers does not have.

Wu et al. 2024, arXiv 2409.04429, section 3.1. The tower: a SigLIP encoder, whose feature of each of 16x16
positions is rounded to 4 codes of one codebook by residual quantisation (Lee et al. 2022, arXiv 2203.01941);
the sum of the codes' embeddings, projected to the width of the decoder, stands between ``<im_start>`` and
``<im_end>``. Here it has 4x4 positions and a codebook of 64, and is otherwise built the same way.
"""

from __future__ import annotations

from typing import Any

import torch
from case import Case, silence
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gatelens.families import FixedGrid, Geometry, Layout
from gatelens.model import HookedVLM
from tiny_models import WORDS, randomize

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<im_start>", "<im_end>"]
VOCABULARY = {name: i for i, name in enumerate([*SPECIAL, *WORDS])}
PIXELS, SIDE = 64, 4


class ResidualQuantiser(nn.Module):
    """Rounds a vector to ``depth`` codes, each to what those before it left over."""

    def __init__(self, n_codes: int, width: int, depth: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(n_codes, width)
        self.depth = depth

    def codes(self, features: Float[Tensor, "picture pos width"]) -> Int[Tensor, "picture pos depth"]:
        rest, found = features, []
        for _ in range(self.depth):
            distances = torch.cdist(rest, self.codebook.weight.expand(len(rest), -1, -1))
            found.append(distances.argmin(-1))
            rest = rest - self.codebook(found[-1])
        return torch.stack(found, dim=-1)

    def forward(self, features: Float[Tensor, "picture pos width"]) -> Float[Tensor, "picture pos width"]:
        return self.codebook(self.codes(features)).sum(-2)


class Tower(nn.Module):
    """Pixels to what the decoder reads at a picture's positions."""

    def __init__(self, vision: SiglipVisionConfig, n_codes: int, depth: int, d_model: int) -> None:
        super().__init__()
        self.encoder = SiglipVisionModel(vision)
        self.quantiser = ResidualQuantiser(n_codes, vision.hidden_size, depth)
        self.projector = nn.Sequential(
            nn.Linear(vision.hidden_size, d_model), nn.GELU(), nn.Linear(d_model, d_model)
        )

    def encoded(self, pixel_values: Tensor) -> Float[Tensor, "picture pos width"]:
        """As in the published code, of the last layer but one."""
        return self.encoder(pixel_values, output_hidden_states=True).hidden_states[-2]

    def forward(self, pixel_values: Tensor) -> Float[Tensor, "picture pos d_model"]:
        return self.projector(self.quantiser(self.encoded(pixel_values)))


class PlainVilaU(nn.Module):
    """What gatelens is compared with: the parts put together by hand, called as transformers' models are."""

    def __init__(self, language_model: Any, tower: Tower) -> None:
        super().__init__()
        self.language_model = language_model
        self.tower = tower

    @property
    def config(self) -> Any:
        return self.language_model.config

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        embeds = self.language_model.model.embed_tokens(input_ids)
        if pixel_values is not None:
            embeds[input_ids == VOCABULARY["<image>"]] = self.tower(pixel_values).flatten(0, 1)
        return embeds

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None, **rest: Any) -> Any:
        return self.language_model(inputs_embeds=self.embed(input_ids, pixel_values), **rest)

    def generate(self, input_ids: Tensor, pixel_values: Tensor | None = None, **rest: Any) -> Tensor:
        """Prompt and new tokens; transformers leaves out the prompt when it is given embeddings."""
        new = self.language_model.generate(inputs_embeds=self.embed(input_ids, pixel_values), **rest)
        return torch.cat([input_ids, new], dim=1)


class VilaUProcessor:
    """Pictures squeezed to a square; ``<image>`` becomes markers around as many placeholders as positions."""

    def __init__(self, pixels: int, n_tokens: int) -> None:
        raw = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            additional_special_tokens=SPECIAL[4:],
        )
        square = {"height": pixels, "width": pixels}
        self.image_processor = CLIPImageProcessorPil(size=square, crop_size=square)
        self.written = "<im_start>" + "<image>" * n_tokens + "<im_end>"

    def __call__(self, images: Any, text: list[str], **kwargs: Any) -> dict[str, Any]:
        texts = [one.replace("<image>", self.written) for one in text]
        tensors = dict(self.tokenizer(texts, **kwargs))
        return tensors | (dict(self.image_processor(images, return_tensors="pt")) if images else {})


def processor() -> VilaUProcessor:
    return VilaUProcessor(PIXELS, SIDE * SIDE)


def model() -> PlainVilaU:
    """The codebook is spread over what an untrained encoder sees and over what its first codes leave of that."""
    decoder = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=PIXELS // SIDE,
        vision_use_head=False,
    )
    torch.manual_seed(0)
    language_model = LlamaForCausalLM._from_config(decoder, attn_implementation="eager")
    plain = randomize(PlainVilaU(language_model, Tower(vision, n_codes=64, depth=4, d_model=32)), 6)
    images = processor().image_processor
    pictures = [CASE.picture(i, seed) for i in (0, 1) for seed in range(8)]
    codebook = plain.tower.quantiser.codebook.weight
    with torch.no_grad():
        seen = plain.tower.encoded(images(pictures, return_tensors="pt")["pixel_values"]).flatten(0, 1)
        chosen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:32]]
        codebook[:32] = chosen
        codebook[32:] = (seen - chosen[torch.cdist(seen, chosen).argmin(-1)])[-32:]
    return plain


def layout(images: Any = None, pixels: int = PIXELS, side: int = SIDE) -> Layout:
    return Layout(
        placeholder_id=VOCABULARY["<image>"],
        plan=FixedGrid(side, side, Geometry.of(images, (pixels, pixels))),
        boi_ids=frozenset({VOCABULARY["<im_start>"]}),
        eoi_ids=frozenset({VOCABULARY["<im_end>"]}),
        bos_id=1,
    )


def wrap(plain: PlainVilaU, parts: VilaUProcessor) -> HookedVLM:
    return HookedVLM.from_parts(
        plain.language_model, plain.tower, layout(parts.image_processor), processor=parts
    )


def unmix(plain: PlainVilaU) -> None:
    for layer in plain.tower.encoder.encoder.layers:
        silence(layer.self_attn.out_proj)


CASE = Case(
    name="vila-u",
    model=model,
    processor=processor,
    sizes=((80, 40), (50, 88)),
    unmix=unmix,
    blur=3,
    wrap=wrap,
)
