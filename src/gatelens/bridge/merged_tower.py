"""A vision tower over merged patches, as Qwen-VL and GLM-4V have it: hooks whose edits reach the decoder."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.qwen3_5_vision_encoder import (
    Qwen3_5VisionBlockBridge,
)


class MergedTower(GeneralizedComponent):
    """The tower: ``hook_in`` has the pixels, ``hook_out`` what the decoder gets; pictures follow one another in rows.

    TransformerLens' own bridge of it fires ``hook_out`` on the features before they are merged, which nothing
    reads afterwards.
    """

    hook_aliases: ClassVar[dict[str, Any]] = {"hook_vision_out": "hook_out"}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert self.original_component is not None
        out = self.original_component(self.hook_in(hidden_states), *args, **kwargs)
        out.pooler_output = self.hook_out(out.pooler_output)
        return out


def merged_tower(
    cfg: Any, mlp: tuple[str, ...], **more: GeneralizedComponent
) -> dict[str, GeneralizedComponent]:
    """``vision_encoder`` and the merger as ``vision_projector``. ``mlp``: the linear maps of a block's MLP."""
    inner = GeneralizedComponent(name="mlp", submodules={name: LinearBridge(name=name) for name in mlp})
    tower = MergedTower(
        name="model.visual",
        config=cfg,
        submodules={
            "patch_embed": GeneralizedComponent(name="patch_embed"),
            "blocks": Qwen3_5VisionBlockBridge(name="blocks", submodules={"mlp": inner}),
            **more,
        },
    )
    return {"vision_encoder": tower, "vision_projector": GeneralizedComponent(name="model.visual.merger")}
