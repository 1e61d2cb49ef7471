"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures of any size, positions in three streams, a Qwen decoder.

Wang et al. 2024, arXiv 2409.12191; Bai et al. 2025, arXiv 2502.13923 and 2511.21631. TransformerLens has no
adapter for the first, and those for the other two fire the hooks on attention scores and patterns for reading
only and refuse to load without torchvision. transformers hands the attention cosines and sines already mixed
from the three streams, so a Llama-shaped decoder is all there is to say.

**Qwen3-VL's deepstack.** Features of ``len(deepstack_visual_indexes)`` (3) layers of the vision tower are added
to the residual stream at the image tokens, one after each of the first decoder blocks, outside the blocks. So
``blocks.{l+1}.hook_resid_pre`` is ``blocks.{l}.hook_resid_post`` plus ``vision_encoder.deepstack_mergers.{l}``'s
output there, for these l: the picture enters the stream four times. An edit of ``resid_post`` of such a block, at
an image token, comes before the addition; to set what the next block reads, edit its ``resid_pre``.
"""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter

from gatelens.bridge.adapters import ListedComponent, NestedDecoderAdapter, NormedQueriesAdapter
from gatelens.bridge.merged_tower import merged_tower
from gatelens.families.common.base import Family, ids_of
from gatelens.families.common.layout import Layout
from gatelens.families.common.mrope import GRID, MergedPatches, process_by_grid, three_streams

PLACEHOLDER, BOI, EOI = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


class Qwen2VLArchitectureAdapter(NestedDecoderAdapter, LlamaArchitectureAdapter):
    """TransformerLens adapter for Qwen2VLForConditionalGeneration."""

    biases = True  # of the query, key and value projections

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.default_prepend_bos = False
        self.weight_processing_conversions = {**self._qkvo_weight_conversions(include_biases=self.biases)}

    def vision_components(self) -> dict[str, GeneralizedComponent]:
        return merged_tower(self.cfg, ("fc1", "fc2"))


class Qwen25VLArchitectureAdapter(Qwen2VLArchitectureAdapter):
    """TransformerLens adapter for Qwen2_5_VLForConditionalGeneration: a gated MLP in the tower."""

    def vision_components(self) -> dict[str, GeneralizedComponent]:
        return merged_tower(self.cfg, ("gate_proj", "up_proj", "down_proj"))


class Qwen3VLArchitectureAdapter(NormedQueriesAdapter, Qwen2VLArchitectureAdapter):
    """TransformerLens adapter for Qwen3VLForConditionalGeneration: query and key norms, deepstack."""

    biases = False

    def vision_components(self) -> dict[str, GeneralizedComponent]:
        return merged_tower(
            self.cfg,
            ("linear_fc1", "linear_fc2"),
            pos_embed=GeneralizedComponent(name="pos_embed"),
            # one way into the decoder for each layer of the tower that deepstack reads
            deepstack_mergers=ListedComponent(name="deepstack_merger_list"),
        )


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a Qwen-VL checkpoint; everything is in its config."""
    vision = config.vision_config
    return Layout(
        placeholder_id=config.image_token_id,
        plan=MergedPatches(vision.patch_size, vision.spatial_merge_size),
        boi_ids=ids_of(config.vision_start_token_id),
        eoi_ids=ids_of(config.vision_end_token_id),
        placeholder=PLACEHOLDER,
        written=BOI + PLACEHOLDER + EOI,
        evidence=(GRID,),
    )


def _family(
    name: str, architecture: str, adapter: type[ArchitectureAdapter], system: str, side: int, **more: Any
) -> Family:
    return Family(
        name=name,
        architectures=(architecture,),
        layout=layout,
        adapter=adapter,
        process=process_by_grid(PLACEHOLDER),
        complete=three_streams,
        turn=system + CHATML,
        markers=f"{BOI} … {EOI}",
        grid=f"any shape, a token for {side}x{side} resized pixels",
        **more,
    )


FAMILIES = (
    _family(
        "qwen2-vl",
        "Qwen2VLForConditionalGeneration",
        Qwen2VLArchitectureAdapter,
        SYSTEM,
        28,
        checkpoints=("Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-72B-Instruct"),
        note="mRoPE",
    ),
    _family(
        "qwen2.5-vl",
        "Qwen2_5_VLForConditionalGeneration",
        Qwen25VLArchitectureAdapter,
        SYSTEM,
        28,
        checkpoints=("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct"),
        note="mRoPE; window attention in the tower",
    ),
    _family(
        "qwen3-vl",
        "Qwen3VLForConditionalGeneration",
        Qwen3VLArchitectureAdapter,
        "",
        32,
        adds_later=True,
        checkpoints=("Qwen/Qwen3-VL-8B-Instruct",),
        note="mRoPE; deepstack adds picture features after the first blocks too",
    ),
)
