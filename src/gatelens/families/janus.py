"""Janus and Janus-Pro, seeing: a SigLIP tower and an aligner in front of a Llama decoder, literal markers.

Wu et al. 2024, arXiv 2410.13848; Chen et al. 2025, arXiv 2501.17811. The two sides of Janus have encoders of
their own: pictures it reads come through the tower, at placeholders; pictures it draws are VQ codes with
embeddings and a head of their own (``model.generation_*``), which have no ids in the vocabulary of the text
and are left as they are. The published processors put a system prompt before every prompt.
"""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge.generalized_components import (
    SiglipVisionEncoderBridge,
    SiglipVisionEncoderLayerBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter

from gatelens.bridge.adapters import NestedDecoderAdapter, tower_attention
from gatelens.families.common.base import Family, ids_of, token_id
from gatelens.families.common.geometry import Geometry
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import FixedGrid

PLACEHOLDER, BOI, EOI = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
# the tokenizer all published checkpoints share (special tokens of deepseek-ai/Janus-Pro-1B), for want of it
PUBLISHED = {PLACEHOLDER: 100581, BOI: 100016, EOI: 100593}


class JanusArchitectureAdapter(NestedDecoderAdapter, LlamaArchitectureAdapter):
    """TransformerLens adapter for JanusForConditionalGeneration."""

    def vision_components(self) -> dict[str, GeneralizedComponent]:
        layers = SiglipVisionEncoderLayerBridge(
            name="vision_model.encoder.layers",
            config=self.cfg,
            submodules={"attn": tower_attention(self.cfg, "self_attn", "projection_layer")},
        )
        return {
            "vision_encoder": SiglipVisionEncoderBridge(
                name="model.vision_model", config=self.cfg, submodules={"encoder_layers": layers}
            ),
            "vision_projector": VisionProjectionBridge(name="model.aligner"),
        }


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a Janus checkpoint. Its config names the placeholder only, its tokenizer the markers."""
    tokenizer = getattr(processor, "tokenizer", None)
    published = tokenizer is None and config.image_token_id == PUBLISHED[PLACEHOLDER]

    def marker(attribute: str, name: str) -> int | None:
        return PUBLISHED[name] if published else token_id(tokenizer, getattr(processor, attribute, name))

    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return Layout(
        placeholder_id=config.image_token_id,
        plan=FixedGrid(side, side, geometry(processor, vision.image_size)),
        boi_ids=ids_of(marker("image_start_token", BOI)),
        eoi_ids=ids_of(marker("image_end_token", EOI)),
        bos_id=config.text_config.bos_token_id,
        placeholder=getattr(processor, "image_token", PLACEHOLDER),
    )


def geometry(processor: Any, side: int) -> Geometry:
    """The longer side is resized to the model's, the rest of the square filled."""
    images = getattr(processor, "image_processor", None)
    if images is None or not images.do_resize:
        return Geometry((side, side))
    return Geometry((side, side), longest=side, least=images.min_size)


FAMILY = Family(
    name="janus",
    architectures=("JanusForConditionalGeneration",),
    layout=layout,
    adapter=JanusArchitectureAdapter,
    turn="<|User|>: {}\n\n<|Assistant|>:",
    markers=f"{BOI} … {EOI}",
    grid="24x24 of 384x384 pixels",
    checkpoints=(
        "deepseek-community/Janus-Pro-1B",
        "deepseek-community/Janus-Pro-7B",
        "deepseek-community/Janus-1.3B",
    ),
    note="pictures it reads; those it draws have a vocabulary, embeddings and a head of their own",
)
