"""Mistral Small 3.1 and 3.2: Pixtral's pictures and markers, two by two patches merged into a token.

Announced by Mistral AI in 2025, without a paper. TransformerLens' adapter leaves the tower closed, and drops an
edit of what comes out of it; the one here opens it.
"""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge.supported_architectures.mistral3 import Mistral3ArchitectureAdapter

from gatelens.families import pixtral
from gatelens.families.common.base import Family
from gatelens.families.common.layout import Layout


class OpenTowerArchitectureAdapter(Mistral3ArchitectureAdapter):
    """TransformerLens adapter for Mistral3ForConditionalGeneration."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        assert self.component_mapping is not None
        self.component_mapping["vision_encoder"] = pixtral.tower()


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a Mistral 3 checkpoint.

    Raises:
        ModelError: as for Pixtral's.
    """
    return pixtral.layout(config, processor, merge=config.spatial_merge_size)


FAMILY = Family(
    name="mistral3",
    architectures=("Mistral3ForConditionalGeneration",),
    layout=layout,
    adapter=OpenTowerArchitectureAdapter,
    turn=pixtral.FAMILY.turn,
    markers=pixtral.FAMILY.markers,
    grid="any shape, a token for 28x28 resized pixels, up to 55x55",
    checkpoints=(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
    ),
    note="Pixtral's tower, patches merged two by two",
)
