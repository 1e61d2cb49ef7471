"""InternVL 2, 2.5 and 3: tiles of one size between ``<img>`` and ``</img>``, an overview after them.

Chen et al. 2024, arXiv 2404.16821 and 2412.05271; Zhu et al. 2025, arXiv 2504.10479. A picture is resized to the
grid of at most 12 tiles nearest to its shape and cut; with more than one, a thumbnail of the whole comes last
(tile 0 of the map). Each tile is 16x16 tokens, a token being 2x2 patches side by side (pixel shuffle). The
decoder is Qwen2, Qwen3, Llama or InternLM2 converted to Llama.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    LinearBridge,
    RMSNormalizationBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.vision_encoder import vision_attention_config
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from gatelens.families.common.base import Family, ids_of, token_id
from gatelens.families.common.geometry import Geometry
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import Picture, Plan, Size, chain, grid
from gatelens.families.common.processing import Pictures, picture_tensors, prepare_batch

BOI, EOI, PLACEHOLDER = "<img>", "</img>", "<IMG_CONTEXT>"
MARKERS = (("start_image_token", BOI), ("end_image_token", EOI))  # the tokenizer's own names for them


class VisionTower(GeneralizedComponent):
    """The tower as a whole; transformers passes the pixels by name, and ``hook_in`` wants them first."""

    hook_aliases: ClassVar[dict[str, str]] = {"hook_vision_embed": "embeddings.hook_out"}

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        return super().forward(pixel_values, **kwargs)


class VisionLayer(GeneralizedComponent):
    """A block of the vision tower; the scales of its two branches are applied after ``hook_out`` of each."""

    is_list_item = True
    hook_aliases: ClassVar[dict[str, str]] = {
        "hook_resid_pre": "hook_in",
        "hook_resid_post": "hook_out",
        "hook_attn_out": "attn.hook_out",
        "hook_mlp_out": "mlp.hook_out",
    }


class InternVLArchitectureAdapter(LlamaArchitectureAdapter):
    """TransformerLens adapter for InternVLForConditionalGeneration."""

    _testing_lm_attr = "model.language_model"

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self.cfg.attn_implementation = "eager"
        self._extract_vision_dims(cfg)
        self._reprefix_components("model.", "model.language_model.")
        assert self.component_mapping is not None
        self.component_mapping["vision_encoder"] = VisionTower(
            name="model.vision_tower",
            submodules={
                "embeddings": GeneralizedComponent(name="embeddings"),
                "encoder_layers": VisionLayer(
                    name="encoder.layer",
                    submodules={
                        "ln1": GeneralizedComponent(name="layernorm_before"),
                        "attn": self._tower_attention(),
                        "ln2": GeneralizedComponent(name="layernorm_after"),
                        "mlp": GeneralizedComponent(
                            name="mlp",
                            submodules={"in": LinearBridge(name="fc1"), "out": LinearBridge(name="fc2")},
                        ),
                    },
                ),
            },
        )
        self.component_mapping["vision_projector"] = VisionProjectionBridge(
            name="model.multi_modal_projector"
        )

    def _build_attention_bridge(self) -> AttentionBridge:
        norms = {
            name: RMSNormalizationBridge(name=name, config=self.cfg, optional=True)
            for name in ("q_norm", "k_norm")
        }
        return self._qkvo_attention_bridge(extra_submodules=dict(norms))  # Qwen3 decoders have the norms

    def _tower_attention(self) -> AttentionBridge:
        return AttentionBridge(
            name="attention",
            config=vision_attention_config(self.cfg),
            submodules={
                "q": LinearBridge(name="q_proj"),
                "k": LinearBridge(name="k_proj"),
                "v": LinearBridge(name="v_proj"),
                "o": LinearBridge(name="projection_layer"),
            },
        )


@dataclass(frozen=True)
class Tiles:
    """Tokens of a picture cut into tiles of ``side`` (height, width) pixels, ``n`` x ``n`` tokens each."""

    side: tuple[int, int]
    n: int
    least: int = 1
    most: int = 12

    def __call__(self, picture: Picture) -> Plan:
        """One tile where there are placeholders for no more: the cutting can be switched off."""
        per_tile = self.n * self.n
        if picture.n == per_tile:
            cols, rows = 1, 1
        elif picture.size is not None:
            width, height = picture.size
            cols, rows = get_optimal_tiled_canvas((height, width), self.side, self.least, self.most)
        else:
            return self._unseen(picture.n // per_tile)
        return self._cut(picture.size or (self.side[1], self.side[0]), rows, cols)

    def _cut(self, size: Size, rows: int, cols: int) -> Plan:
        parts = []
        if rows * cols > 1:
            whole = Geometry((0, 0), exact=(cols * self.side[1], rows * self.side[0]))
            boxes = whole.boxes(size, rows * self.n, cols * self.n).view(rows, self.n, cols, self.n, 4)
            tiles = boxes.transpose(1, 2).reshape(rows * cols, -1, 4)
            parts = [grid(tile, self.n, size, tile=number) for number, tile in enumerate(tiles, start=1)]
        overview = Geometry((0, 0), exact=(self.side[1], self.side[0])).boxes(size, self.n, self.n)
        parts.append(grid(overview, self.n, size))
        return chain(parts, pixel_rows=len(parts))

    def _unseen(self, tiles: int) -> Plan:
        """Without the picture's size nobody can tell 2 x 3 tiles from 3 x 2: only the thumbnail has boxes."""
        size = (self.side[1], self.side[0])
        unknown = torch.full((self.n * self.n, 4), float("nan"))
        parts = [grid(unknown, self.n, size, tile=number) for number in range(1, tiles)]
        return chain([*parts, self._cut(size, 1, 1)], pixel_rows=tiles)


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of an InternVL checkpoint.

    Without a tokenizer the markers are the two ids before the placeholder's, as InternVL's training code adds
    ``<img>``, ``</img>`` and ``<IMG_CONTEXT>`` to every vocabulary in this order.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    images = getattr(processor, "image_processor", None)
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    plan = Tiles(
        side=(side[0], side[1]),
        n=int(side[0] // patch[0] * config.downsample_ratio),
        least=getattr(images, "min_patches", 1),
        most=getattr(images, "max_patches", 12),
    )
    boi, eoi = (getattr(tokenizer, name, None) or default for name, default in MARKERS)
    placeholder = getattr(tokenizer, "context_image_token", None) or PLACEHOLDER
    known = tokenizer is not None

    def process(parts: Any, pictures: Pictures, texts: list[str]) -> dict[str, Tensor]:
        made = picture_tensors(parts, pictures, crop_to_patches=True)
        counts = made.pop("num_patches", torch.zeros(0))
        written = [boi + placeholder * (int(count) * plan.n**2) + eoi for count in counts]
        return prepare_batch(parts, texts, written, placeholder, **made)

    return Layout(
        placeholder_id=config.image_token_id,
        plan=plan,
        boi_ids=ids_of(token_id(tokenizer, boi) if known else config.image_token_id - 2),
        eoi_ids=ids_of(token_id(tokenizer, eoi) if known else config.image_token_id - 1),
        bos_id=config.text_config.bos_token_id,
        placeholder=placeholder,
        process=process,
    )


FAMILY = Family(
    name="internvl",
    architectures=("InternVLForConditionalGeneration",),
    layout=layout,
    adapter=InternVLArchitectureAdapter,
    turn="<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    markers=f"{BOI} … {EOI}",
    grid="16x16 for each tile of 448x448 pixels, 1 to 12 tiles and a thumbnail",
    checkpoints=("OpenGVLab/InternVL3-8B-hf", "OpenGVLab/InternVL3-78B-hf"),
    note="tiles, the thumbnail last; a token is 2x2 patches",
)
