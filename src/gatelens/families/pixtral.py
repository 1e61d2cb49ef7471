"""Pixtral: pictures of any size, a literal token after every row of patches, a Mistral decoder.

Agrawal et al. 2024, arXiv 2410.07073. In transformers it is a LLaVA with another vision tower.
TransformerLens' adapter takes every LLaVA tower for CLIP's or SigLIP's and fails on this one; the adapter here
serves all three. ``[IMG_BREAK]`` stands after every row but the last, where ``[IMG_END]`` does; neither shows
anything of the picture. transformers' processor cannot be built without torchvision, and is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.llava import LlavaArchitectureAdapter

from gatelens.bridge.adapters import ListedComponent
from gatelens.errors import InputError, ModelError
from gatelens.families.common.base import Family, ids_of, token_id
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import Picture, PicturePlan, resized_grid
from gatelens.families.common.processing import Pictures, picture_tensors, prepare_batch

PLACEHOLDER, BREAK, END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
# where Mistral's vocabularies have the three (tokenizer.json of mistral-community/pixtral-12b)
PUBLISHED = {PLACEHOLDER: 10, BREAK: 12, END: 13}


class TiedTower(GeneralizedComponent):
    """A tower whose last hidden state is its output: what ``hook_out`` makes of it is what the projector reads."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if out.hidden_states is not None:
            out.hidden_states = (*out.hidden_states[:-1], out.last_hidden_state)
        return out


def tower() -> GeneralizedComponent:
    """Pixtral's tower: hooks on patches, on the stream between layers, and on what the projector reads."""
    parts = {
        "patch_embed": GeneralizedComponent(name="patch_conv"),
        "layers": ListedComponent(name="transformer.layers"),
    }
    return TiedTower(name="model.vision_tower", submodules=parts)


class LlavaTowersArchitectureAdapter(LlavaArchitectureAdapter):
    """TransformerLens adapter for LlavaForConditionalGeneration, whatever its tower."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        if _has_pixtral_tower(cfg):
            assert self.component_mapping is not None
            self.component_mapping["vision_encoder"] = tower()


def _has_pixtral_tower(config: Any) -> bool:
    return getattr(getattr(config, "vision_config", None), "model_type", None) == "pixtral"


@dataclass(frozen=True)
class MarkedRows:
    """A token for each ``side`` x ``side`` processed pixels; a marker between rows says how many there are."""

    side: int
    placeholder_id: int

    def __call__(self, picture: Picture) -> PicturePlan:
        """A grid of the rows between the markers.

        Raises:
            InputError: the rows differ in length.
        """
        lengths = [
            len(list(same)) for token, same in groupby(picture.ids, self.placeholder_id.__eq__) if token
        ]
        rows, cols = len(lengths), lengths[0]
        if set(lengths) != {cols}:
            raise InputError(
                f"a picture has rows of {min(lengths)} to {max(lengths)} {PLACEHOLDER}: "
                f"write rows of one length, {BREAK} between them and {END} after the last"
            )
        return resized_grid(picture, rows, cols, (cols * self.side, rows * self.side))


def process(side: int, processor: Any, pictures: Pictures, texts: list[str]) -> dict[str, Tensor]:
    """Tensors of a left-padded batch; ``pixel_values`` are padded to the widest and highest of the pictures."""
    made = picture_tensors(processor, pictures, patch_size=side)
    grids = (made["image_sizes"] // side).tolist() if made else []
    written = [BREAK.join([PLACEHOLDER * cols] * rows) + END for rows, cols in grids]
    return prepare_batch(processor, texts, written, PLACEHOLDER, **made)


def layout(config: Any, processor: Any = None, merge: int = 1) -> Layout:
    """Image tokens of a checkpoint with Pixtral's tower; ``merge`` x ``merge`` patches make a token.

    Raises:
        ModelError: there is no tokenizer and the vocabulary is not Mistral's.
    """
    tokenizer, image_id = getattr(processor, "tokenizer", None), config.image_token_id
    known = PUBLISHED if tokenizer is None and image_id == PUBLISHED[PLACEHOLDER] else {}
    ids = {name: known.get(name, token_id(tokenizer, name)) for name in (BREAK, END)}
    if None in ids.values():
        raise ModelError(
            f"no ids for {BREAK} and {END}: give from_module a processor whose tokenizer has them as tokens"
        )
    side = config.vision_config.patch_size * merge
    return Layout(
        placeholder_id=image_id,
        plan=MarkedRows(side, image_id),
        eoi_ids=ids_of(ids[END]),
        inner_ids=ids_of(ids[BREAK]),
        bos_id=config.text_config.bos_token_id,
        placeholder=PLACEHOLDER,
        process=partial(process, side),
    )


FAMILY = Family(
    name="pixtral",
    architectures=("LlavaForConditionalGeneration",),
    when=_has_pixtral_tower,
    layout=layout,
    adapter=LlavaTowersArchitectureAdapter,
    turn="[INST]{}[/INST]",
    markers=f"{BREAK} between rows … {END}",
    grid="any shape, a token for 16x16 resized pixels, up to 64x64",
    checkpoints=("mistral-community/pixtral-12b",),
    note="a LLaVA with a tower of 2D rotary positions",
)
