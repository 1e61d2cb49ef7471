"""Chameleon: one decoder over text and VQ image tokens, with literal begin- and end-of-image tokens.

Chameleon Team 2024, arXiv 2405.09818. The decoder is Llama's plus a normalisation of queries and keys:
``attn.hook_q``/``hook_k`` are before it, ``attn.hook_q_normed``/``hook_k_normed`` after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    NormalizationBridge,
    RMSNormalizationBridge,
)
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter

from gatelens.errors import ModelError
from gatelens.families.common.base import Family, ids_of, token_id
from gatelens.families.common.geometry import Geometry
from gatelens.families.common.layout import Drawn, Layout
from gatelens.families.common.plan import FixedGrid

BOI, EOI = "<racm3:break>", "<eoss>"


class ChameleonArchitectureAdapter(LlamaArchitectureAdapter):
    """TransformerLens adapter for ChameleonForConditionalGeneration.

    The VQ encoder is left as it is: images become ordinary tokens before the decoder.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self.cfg.attn_implementation = "eager"

    def _build_attention_bridge(self) -> AttentionBridge:
        # the norm is a layer norm with one weight a head: transformers' own module does it exactly
        norms = {
            name: NormalizationBridge(name=name, config=self.cfg, uses_rms_norm=False)
            for name in ("q_norm", "k_norm")
        }
        return self._qkvo_attention_bridge(extra_submodules=dict(norms))

    def prepare_model(self, hf_model: Any) -> None:
        super().prepare_model(hf_model)
        self._never_written = hf_model.model.vocabulary_mapping.image_tokens
        if hf_model.config.swin_norm:  # the 34B: the same norms, after attention and MLP instead of before
            self.component_mapping["blocks"] = BlockBridge(
                name="model.layers",
                submodules={
                    "ln1_post": RMSNormalizationBridge(name="input_layernorm", config=self.cfg),
                    "ln2_post": RMSNormalizationBridge(name="post_attention_layernorm", config=self.cfg),
                    "attn": self._build_attention_bridge(),
                    "mlp": self._gated_mlp(),
                },
            )

    def apply_output_logits_transform(self, logits: Tensor) -> Tensor:
        """transformers gives image tokens the lowest number, after the unembedding."""
        logits = super().apply_output_logits_transform(logits)
        if logits.shape[-1] != self.cfg.d_vocab:  # logits of some tokens, each scaled by itself
            return logits
        lowest = torch.finfo(logits.dtype).min
        return logits.index_fill(-1, torch.as_tensor(self._never_written, device=logits.device), lowest)


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of a Chameleon checkpoint.

    Raises:
        ModelError: its vocabulary map is missing.
    """
    vocabulary = config.vocabulary_map or {}
    if "<image>" not in vocabulary:
        raise ModelError(
            "this Chameleon config has no '<image>' in vocabulary_map: load it with its config.json"
        )
    tokenizer = getattr(processor, "tokenizer", None)
    pixels = config.vq_config.resolution
    side = pixels // 2 ** (len(config.vq_config.channel_multiplier) - 1)
    boi = getattr(processor, "image_start_token", BOI)
    eoi = getattr(processor, "image_end_token", EOI)
    geometry = Geometry.of_processor(processor, pixels)
    codes = frozenset(i for name, i in vocabulary.items() if name.startswith("IMGIMG"))
    return Layout(
        placeholder_id=vocabulary["<image>"],
        plan=FixedGrid(side, side, geometry),
        drawn=Drawn(codes, pixels / side, side, side),
        boi_ids=ids_of(vocabulary.get(boi, token_id(tokenizer, boi))),
        eoi_ids=ids_of(vocabulary.get(eoi, token_id(tokenizer, eoi))),
        bos_id=config.bos_token_id,
        placeholder=getattr(processor, "image_token", "<image>"),
    )


FAMILY = Family(
    name="chameleon",
    architectures=("ChameleonForConditionalGeneration",),
    layout=layout,
    adapter=ChameleonArchitectureAdapter,
    processor_kwargs={"return_for_text_completion": True},  # else a separator is appended to every prompt
    markers=f"{BOI} … {EOI}",
    grid="32x32 of 512x512 pixels",
    checkpoints=("facebook/chameleon-7b", "facebook/chameleon-30b"),
    note="VQ image tokens in one vocabulary; the 34B norms after attention and MLP",
)
