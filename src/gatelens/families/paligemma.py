"""PaliGemma and PaliGemma 2: a SigLIP tower, a Gemma or Gemma 2 decoder, and a prompt that attends both ways.

Beyer et al. 2024, arXiv 2407.07726; Steiner et al. 2024, arXiv 2412.03555. TransformerLens has no adapter.
Pictures stand first, without markers, then the beginning-of-sequence token, the words and a newline. Only what
is generated attends backwards alone. Positions count from 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    RMSNormalizationBridge,
    SiglipVisionEncoderBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.gemma2 import Gemma2ArchitectureAdapter

from gatelens.bridge.adapters import NestedDecoderAdapter
from gatelens.families.common.base import Family
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import FixedGrid
from gatelens.families.common.processing import Pictures, picture_tensors, prepare_batch
from gatelens.tokens import position_ids


class PaliGemmaArchitectureAdapter(NestedDecoderAdapter, Gemma2ArchitectureAdapter):
    """TransformerLens adapter for PaliGemmaForConditionalGeneration; Gemma 2's blocks have four norms, Gemma's two."""

    def vision_components(self) -> dict[str, GeneralizedComponent]:
        return {
            "vision_encoder": SiglipVisionEncoderBridge(name="model.vision_tower", config=self.cfg),
            "vision_projector": VisionProjectionBridge(name="model.multi_modal_projector"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        super().prepare_model(hf_model)
        if hf_model.config.text_config.model_type == "gemma":
            assert self.component_mapping is not None
            kept = self.component_mapping["blocks"].submodules
            self.component_mapping["blocks"] = BlockBridge(
                name="model.language_model.layers",
                submodules={
                    "ln1": kept["ln1"],
                    "ln2": RMSNormalizationBridge(name="post_attention_layernorm", config=self.cfg),
                    "attn": kept["attn"],
                    "mlp": kept["mlp"],
                },
            )


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a PaliGemma checkpoint: every patch of the tower is one."""
    return Layout(
        placeholder_id=config.image_token_id,
        plan=FixedGrid.of_patches(config.vision_config, processor),
        bos_id=config.text_config.bos_token_id,
        two_way="prompt",
    )


def process(processor: Any, pictures: Pictures, texts: list[str]) -> dict[str, Tensor]:
    """As PaliGemma was trained: the beginning-of-sequence token after the last picture, a newline at the end.

    The processor writes the same, but wants a picture in every prompt.
    """
    bos = processor.tokenizer.bos_token
    written = []
    for text in texts:
        before, picture, after = text.rpartition(processor.image_token)
        written.append(f"{before}{picture}{bos}{after}\n")
    made = picture_tensors(processor, pictures)
    tokens = [processor.image_token * processor.image_seq_length] * sum(map(len, pictures))
    return prepare_batch(processor, written, tokens, processor.image_token, **made)


def complete(hf: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions from 1, and the whole prompt as what attends both ways, unless the caller says otherwise."""
    added: dict[str, Tensor] = {}
    from_zero = position_ids(tensors["attention_mask"])
    if torch.equal(tensors["position_ids"], from_zero):
        added["position_ids"] = from_zero + 1
    if "token_type_ids" not in tensors:
        added["token_type_ids"] = torch.zeros_like(tensors["input_ids"])
    return added


FAMILY = Family(
    name="paligemma",
    architectures=("PaliGemmaForConditionalGeneration",),
    layout=layout,
    adapter=PaliGemmaArchitectureAdapter,
    process=process,
    complete=complete,
    markers="none",
    grid="16x16 of 224x224 pixels (32x32 of 448, 64x64 of 896)",
    checkpoints=(
        "google/paligemma-3b-mix-224",
        "google/paligemma2-3b-mix-224",
        "google/paligemma2-28b-mix-224",
    ),
    note="the whole prompt attends both ways; Gemma or Gemma 2 decoder (softcap, window layers)",
)
