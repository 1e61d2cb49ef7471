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
    LinearBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from gatelens.bridge.adapters import (
    ListedComponent,
    NestedDecoderAdapter,
    NormedQueriesAdapter,
    tower_attention,
)
from gatelens.families.common.base import Family, ids_of, token_id
from gatelens.families.common.geometry import Geometry
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import Picture, PicturePlan, Size, chain, grid, tiles
from gatelens.families.common.processing import Pictures, picture_tensors, prepare_batch

BOI, EOI, PLACEHOLDER = "<img>", "</img>", "<IMG_CONTEXT>"
MARKERS = (("start_image_token", BOI), ("end_image_token", EOI))  # the tokenizer's own names for them


class VisionTower(GeneralizedComponent):
    """The tower as a whole; transformers passes the pixels by name, and ``hook_in`` wants them first."""

    hook_aliases: ClassVar[dict[str, str]] = {"hook_vision_embed": "embeddings.hook_out"}

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        return super().forward(pixel_values, **kwargs)


class VisionLayer(ListedComponent):
    """A block of the vision tower; the scales of its two branches are applied after ``hook_out`` of each."""

    hook_aliases: ClassVar[dict[str, str]] = {
        "hook_resid_pre": "hook_in",
        "hook_resid_post": "hook_out",
        "hook_attn_out": "attn.hook_out",
        "hook_mlp_out": "mlp.hook_out",
    }


class InternVLArchitectureAdapter(NormedQueriesAdapter, NestedDecoderAdapter, LlamaArchitectureAdapter):
    """TransformerLens adapter for InternVLForConditionalGeneration; Qwen3 decoders norm queries and keys."""

    def vision_components(self) -> dict[str, GeneralizedComponent]:
        mlp = {"in": LinearBridge(name="fc1"), "out": LinearBridge(name="fc2")}
        layer = {
            "ln1": GeneralizedComponent(name="layernorm_before"),
            "attn": tower_attention(self.cfg, "attention", "projection_layer"),
            "ln2": GeneralizedComponent(name="layernorm_after"),
            "mlp": GeneralizedComponent(name="mlp", submodules=mlp),
        }
        tower = {
            "embeddings": GeneralizedComponent(name="embeddings"),
            "encoder_layers": VisionLayer(name="encoder.layer", submodules=layer),
        }
        return {
            "vision_encoder": VisionTower(name="model.vision_tower", submodules=tower),
            "vision_projector": VisionProjectionBridge(name="model.multi_modal_projector"),
        }


@dataclass(frozen=True)
class Tiles:
    """Tokens of a picture cut into tiles of ``side`` (height, width) pixels, ``n`` x ``n`` tokens each."""

    side: tuple[int, int]
    n: int
    least: int = 1
    most: int = 12

    @property
    def pixel_size(self) -> Size:
        """(width, height) of each tile in ``pixel_values``."""
        return self.side[1], self.side[0]

    def __call__(self, picture: Picture) -> PicturePlan:
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

    def _cut(self, size: Size, rows: int, cols: int) -> PicturePlan:
        parts: list[PicturePlan] = []
        if rows * cols > 1:
            whole = Geometry((0, 0), exact=(cols * self.side[1], rows * self.side[0]))
            parts = tiles(whole, size, rows, cols, self.n)
        overview = Geometry((0, 0), exact=(self.side[1], self.side[0]))
        parts += tiles(overview, size, 1, 1, self.n, first=0)
        return chain(parts, pixel_rows=len(parts))

    def _unseen(self, n_tiles: int) -> PicturePlan:
        """Without the picture's size, 2 x 3 tiles can't be distinguished from 3 x 2: only the thumbnail has boxes."""
        size = (self.side[1], self.side[0])
        unknown = torch.full((self.n * self.n, 4), float("nan"))
        parts = [grid(unknown, self.n, size, tile=number) for number in range(1, n_tiles)]
        return chain([*parts, self._cut(size, 1, 1)], pixel_rows=n_tiles)


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
