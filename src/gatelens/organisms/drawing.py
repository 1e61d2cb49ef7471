"""Let a native organism draw: text in, image tokens out, pictures decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gatelens.errors import ModelError
from gatelens.model import HookedVLM
from gatelens.organisms import picture_codec as codec


@torch.inference_mode()
def draw_pictures(
    model: HookedVLM,
    text: Sequence[str],
    temperature: float = 0.5,
    seed: int = 0,
    fwd_hooks: Sequence[tuple[str, Any]] = (),
) -> list[Image.Image]:
    """One picture a prompt ("draw a fox on a red circle.").

    The prompt and the begin-of-image token are given; image tokens are sampled one by one with a KV cache, and
    decoded with the organism's picture decoder. transformers masks image tokens out of Chameleon's logits, so they
    are read where the unembedding gives them.

    Args:
        text: prompts without pictures.
        temperature: of the sampling; 0 takes the likeliest token.
        seed: of the sampling.
        fwd_hooks: TransformerLens hooks that hold while the picture is drawn.

    Raises:
        ModelError: the model has no picture decoder.
    """
    folder = Path(getattr(model.hf, "name_or_path", ""))
    if not (folder / codec.DECODER_FILE).is_file():
        raise ModelError(
            f"{model!r} cannot draw: no {codec.DECODER_FILE} in its folder; use a native organism"
        )
    decoder = codec.PictureDecoder.from_folder(folder)
    assert model.layout.boi_id is not None  # Chameleon always has one
    mapping = model.hf.model.vocabulary_mapping
    image_ids = torch.tensor(sorted(mapping.bpe2img))
    to_code = torch.tensor([mapping.bpe2img[int(i)] for i in image_ids])
    generator = torch.Generator().manual_seed(seed)

    rows: list[torch.Tensor] = []

    def read(logits: torch.Tensor, hook: Any) -> None:
        rows.append(logits[:, -1].float().cpu().clone())

    tensors: dict[str, torch.Tensor] = dict(model.prepare(text=list(text)).tensors)
    boi = torch.full((len(text), 1), model.layout.boi_id, device=model.device)
    tensors = {
        "input_ids": torch.cat([tensors["input_ids"], boi], dim=1),
        "attention_mask": torch.cat([tensors["attention_mask"], torch.ones_like(boi)], dim=1),
    }
    past, drawn = None, []
    for _ in range(codec.GRID**2):
        hooks = [*fwd_hooks, ("unembed.hook_out", read)]
        _, past = model.forward_step(tensors, hooks, past=past, use_cache=True)
        among = rows.pop()[:, image_ids]
        if temperature > 0:
            chosen = torch.multinomial((among / temperature).softmax(-1), 1, generator=generator)
        else:
            chosen = among.argmax(-1, keepdim=True)
        drawn.append(chosen)
        mask = torch.cat([tensors["attention_mask"], torch.ones_like(boi)], dim=1)
        tensors = {"input_ids": image_ids[chosen].to(model.device), "attention_mask": mask}
    codes = to_code[torch.cat(drawn, dim=1)]
    pixels = codec.decode(model.hf.model.vqmodel.cpu(), decoder, codes)
    return [Image.fromarray(p) for p in pixels.numpy()]
