"""Let a native organism draw: text in, image tokens out, pictures decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from gatelens.errors import ModelError
from gatelens.model import HookedVLM
from gatelens.organisms import picture_codec as codec


@torch.inference_mode()
def draw_pictures(
    model: HookedVLM,
    text: Sequence[str],
    temperature: float = 0.2,
    guidance: float = 1.5,
    seed: int = 0,
    fwd_hooks: Sequence[tuple[str, Any]] = (),
) -> list[Image.Image]:
    """One picture a prompt ("draw a fox on a red circle.").

    The prompt and the begin-of-image token are given; image tokens are sampled one by one with a KV cache, and
    decoded with the organism's picture decoder. Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): log
    p(token | prompt) is moved away from log p(token | no prompt), the model's own idea of any picture.

    Args:
        text: prompts without pictures.
        temperature: of the sampling; 0 takes the likeliest token.
        guidance: 1 is none; the two defaults were chosen on other scenes than those the cards measure.
        seed: of the sampling.
        fwd_hooks: TransformerLens hooks that hold while the prompted picture is drawn.

    Raises:
        ModelError: the model has no picture decoder.
    """
    folder = Path(getattr(model.hf, "name_or_path", ""))
    if not (folder / codec.DECODER_FILE).is_file():
        raise ModelError(
            f"{model!r} cannot draw: no {codec.DECODER_FILE} in its folder; use a native organism"
        )
    decoder = codec.PictureDecoder.from_folder(folder)
    mapping = model.hf.model.vocabulary_mapping
    image_ids = torch.tensor(sorted(mapping.bpe2img))
    to_code = torch.tensor([mapping.bpe2img[int(i)] for i in image_ids])
    generator = torch.Generator().manual_seed(seed)

    prompted = dict(model.prepare(text=list(text)).tensors)
    bos = torch.full((len(text), 1), int(model.hf.config.bos_token_id), device=model.device)
    streams = [_Stream(model, prompted["input_ids"], prompted["attention_mask"], image_ids, fwd_hooks)]
    if guidance != 1.0:
        streams.append(_Stream(model, bos, torch.ones_like(bos), image_ids))
    drawn: list[torch.Tensor] = []
    for _ in range(codec.GRID**2):
        log_p = [stream.step(image_ids[drawn[-1]] if drawn else None) for stream in streams]
        guided = log_p[0] if guidance == 1.0 else log_p[1] + guidance * (log_p[0] - log_p[1])
        if temperature > 0:
            chosen = torch.multinomial((guided / temperature).softmax(-1), 1, generator=generator)
        else:
            chosen = guided.argmax(-1, keepdim=True)
        drawn.append(chosen)
    pixels = codec.decode(model.hf.model.vqmodel.cpu(), decoder, to_code[torch.cat(drawn, dim=1)])
    return [Image.fromarray(p) for p in pixels.numpy()]


class _Stream:
    """A batch of prompts continued token by token; the same tokens go to the prompted and the unprompted one."""

    def __init__(
        self,
        model: HookedVLM,
        ids: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        image_ids: Int[Tensor, " code"],
        fwd_hooks: Sequence[tuple[str, Any]] = (),
    ):
        assert model.layout.boi_id is not None  # Chameleon always has one
        boi = torch.full((len(ids), 1), model.layout.boi_id, device=model.device)
        self.model, self.image_ids, self.past = model, image_ids, None
        self.ids = torch.cat([ids, boi], dim=1)
        self.mask = torch.cat([mask, torch.ones_like(boi)], dim=1)
        self.hooks = [*fwd_hooks, ("unembed.hook_out", self._read)]

    def _read(self, logits: Tensor, hook: Any) -> None:
        # transformers masks image tokens out of Chameleon's logits, in place: so they are read, and copied, here.
        self.logits = logits[:, -1].float().cpu()[:, self.image_ids]

    def step(self, token: Int[Tensor, "batch 1"] | None) -> Float[Tensor, "batch code"]:
        """Log-probabilities of the next image token, after ``token`` (none at the start)."""
        if token is not None:
            self.ids = token.to(self.model.device)
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        tensors = {"input_ids": self.ids, "attention_mask": self.mask}
        _, self.past = self.model.forward_step(tensors, self.hooks, past=self.past, use_cache=True)
        return self.logits.log_softmax(-1)
