"""GLM-4V: pictures of any size, positions in three streams, a GLM-4 decoder with norms on both sides.

GLM-V Team 2025, arXiv 2507.01006. A block normalises what attention and MLP read (``ln1``, ``ln2``) and again
what they give (``ln1_post``, ``ln2_post``): ``hook_attn_out`` and ``hook_mlp_out`` are what is added to the
stream, after the second norm. Gate and up projection are one matrix in the checkpoint; TransformerLens splits
it, and ``mlp.hook_pre`` and ``mlp.hook_pre_linear`` are its halves. TransformerLens' own adapter fires the hooks on
attention scores and patterns for reading only and refuses to load without torchvision; this one is that of the
text model GLM-4, whose decoder is the same.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.glm4 import Glm4ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.phi3 import Phi3ArchitectureAdapter

from gatelens.bridge.adapters import NestedDecoderAdapter
from gatelens.bridge.merged_tower import merged_tower
from gatelens.families.common.base import Family, ids_of
from gatelens.families.common.layout import Layout
from gatelens.families.common.mrope import GRID, MergedPatches, process_by_grid, three_streams

PLACEHOLDER, BOI, EOI = "<|image|>", "<|begin_of_image|>", "<|end_of_image|>"


class Glm4vArchitectureAdapter(NestedDecoderAdapter, Glm4ArchitectureAdapter):
    """TransformerLens adapter for Glm4vForConditionalGeneration: GLM-4's decoder, and a vision tower."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        # cosines and sines come from the model with each one twice in a row, the streams already mixed
        self.cfg.rotary_interleaved_cos_sin = True
        assert self.component_mapping is not None
        self.component_mapping["blocks"].submodules["mlp"].split_gate_up_matrix = halves

    def vision_components(self) -> dict[str, GeneralizedComponent]:
        downsample = GeneralizedComponent(name="downsample")
        return merged_tower(self.cfg, ("gate_proj", "up_proj", "down_proj"), downsample=downsample)


def halves(mlp: Any) -> tuple[nn.Linear, nn.Linear]:
    """Gate and up projection of the joint matrix, also of a model without weights, which TransformerLens refuses."""
    joint = mlp.gate_up_proj
    if joint.weight.device.type != "meta":
        return Phi3ArchitectureAdapter._split_gate_up(mlp)
    gate, up = (
        nn.Linear(joint.in_features, joint.out_features // 2, bias=False, device="meta") for _ in "gu"
    )
    return gate, up


def freeze(bridge: Any) -> None:
    """The halves of the gate-and-up matrix are parameters made while wrapping, after all others were frozen."""
    bridge.original_model.requires_grad_(False)


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a GLM-4V checkpoint; everything is in its config."""
    vision = config.vision_config
    return Layout(
        placeholder_id=config.image_token_id,
        plan=MergedPatches(vision.patch_size, vision.spatial_merge_size),
        boi_ids=ids_of(config.image_start_token_id),
        eoi_ids=ids_of(config.image_end_token_id),
        placeholder=PLACEHOLDER,
        written=BOI + PLACEHOLDER + EOI,
        evidence=(GRID,),
    )


FAMILY = Family(
    name="glm-4v",
    architectures=("Glm4vForConditionalGeneration",),
    layout=layout,
    adapter=Glm4vArchitectureAdapter,
    process=process_by_grid(PLACEHOLDER),
    complete=three_streams,
    adjust=freeze,
    turn="[gMASK]<sop><|user|>\n{}<|assistant|>\n",
    markers=f"{BOI} … {EOI}",
    grid="any shape, a token for 28x28 resized pixels",
    checkpoints=("zai-org/GLM-4.1V-9B-Thinking",),
    note="mRoPE; norms before and after attention and MLP",
)
