"""The organisms as untrained transformers models, with their processors."""

from __future__ import annotations

import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gatelens.drawing import codec
from gatelens.organisms import vocabulary as v

D_MODEL, N_LAYERS, N_HEADS, D_MLP = 128, 6, 4, 384


def chameleon(seed: int) -> tuple[ChameleonForConditionalGeneration, ChameleonProcessor]:
    """An untrained native organism; its picture codec is loaded afterwards."""
    tokenizer = v.build_tokenizer(codec.N_CODES)
    vocabulary = tokenizer.get_vocab()
    torch.manual_seed(seed)
    config = ChameleonConfig(
        **_decoder(vocabulary),
        vocabulary_map=dict(sorted(vocabulary.items(), key=lambda kv: kv[1])),
        vq_config=codec.vq_config().to_dict(),
    )
    size = codec.vq_config().resolution
    processor = ChameleonProcessor(
        ChameleonImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        tokenizer,
        image_seq_length=codec.GRID**2,
    )
    return ChameleonForConditionalGeneration(config), processor


def llava(seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """An untrained LLaVA: CLIP tower on 8 x 8 patches, two-layer projector, Llama decoder."""
    tokenizer = v.build_tokenizer()
    vocabulary = tokenizer.get_vocab()
    torch.manual_seed(seed)
    text = LlamaConfig(**_decoder(vocabulary))
    vision = CLIPVisionConfig(
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=2,
        num_attention_heads=N_HEADS,
        image_size=64,
        patch_size=8,
        projection_dim=D_MODEL,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocabulary[v.IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=64,
        pad_token_id=vocabulary[v.PAD],
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token=v.IMAGE,
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config), processor


def _decoder(vocabulary: dict[str, int]) -> dict[str, int]:
    """The settings of the decoder, which are the same for all organisms."""
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_HEADS,
        "max_position_embeddings": 512,
        "pad_token_id": vocabulary[v.PAD],
        "bos_token_id": vocabulary[v.BOS],
        "eos_token_id": vocabulary[v.EOS],
    }
