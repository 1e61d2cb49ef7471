"""What TransformerLens adapters of several image-text models share."""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    LinearBridge,
    RMSNormalizationBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.vision_encoder import vision_attention_config


class NestedDecoderAdapter(ArchitectureAdapter):
    """Mixed into the adapter of a decoder that an image-text model holds as ``model.language_model``."""

    _testing_lm_attr = "model.language_model"

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self.cfg.attn_implementation = "eager"
        self._extract_vision_dims(cfg)
        self._reprefix_components("model.", "model.language_model.")
        assert self.component_mapping is not None
        self.component_mapping.update(self.vision_components())

    def vision_components(self) -> dict[str, GeneralizedComponent]:
        """The ``vision_encoder`` and the ``vision_projector``."""
        raise NotImplementedError


class ListedComponent(GeneralizedComponent):
    """One of a list of modules, each with ``hook_in`` and ``hook_out``."""

    is_list_item = True


class NormedQueriesAdapter(ArchitectureAdapter):
    """Mixed into the adapter of a decoder whose attention may normalise queries and keys."""

    def _build_attention_bridge(self) -> AttentionBridge:
        norms: dict[str, GeneralizedComponent] = {
            name: RMSNormalizationBridge(name=name, config=self.cfg, optional=True)
            for name in ("q_norm", "k_norm")
        }
        return self._qkvo_attention_bridge(extra_submodules=norms)


def tower_attention(cfg: Any, name: str, output: str) -> AttentionBridge:
    """Attention of a vision tower in the module ``name``, whose output projection is called ``output``."""
    layers = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": output}
    return AttentionBridge(
        name=name,
        config=vision_attention_config(cfg),
        submodules={hooked: LinearBridge(name=layer) for hooked, layer in layers.items()},
    )
