"""Let a native model draw: prompts in, image tokens out (:mod:`gatelens.engine.drawing`), pictures decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from gatelens.drawing import codec
from gatelens.engine.drawing import canvas, draw
from gatelens.errors import ModelError
from gatelens.inputs import Images
from gatelens.interventions.base import Intervention
from gatelens.interventions.hooks import Edit, Span
from gatelens.model import HookedVLM
from gatelens.shipped_organisms import weights_folder

TEMPERATURE, GUIDANCE = 0.2, 1.5  # chosen on other scenes than those the cards measure


@torch.inference_mode()
def draw_pictures(
    model: HookedVLM,
    text: Sequence[str],
    temperature: float = TEMPERATURE,
    guidance: float = GUIDANCE,
    seed: int = 0,
    fwd_hooks: Sequence[tuple[str, Any]] = (),
    images: Images = None,
    interventions: Any = (),
) -> list[Image.Image]:
    """One picture per prompt ("draw a fox on a red circle.").

    Args:
        text: prompts, with or without ``<image>``.
        temperature, guidance, seed: see :func:`gatelens.engine.drawing.draw`.
        fwd_hooks: TransformerLens hooks that hold while the prompted picture is drawn.
        images: what ``<image>`` represents, see ``model.prepare``.
        interventions: hold at every step while the prompted picture is drawn.

    Raises:
        ModelError: the model has no picture decoder.
    """
    pictures = decoder(model)
    specs = [interventions, _PlainHooks(tuple(fwd_hooks))] if fwd_hooks else interventions
    inputs = model.prepare(images, list(text))
    drawn = draw(model, inputs, specs, temperature=temperature, guidance=guidance, seed=seed)
    return pictures(drawn.token_ids)


@dataclass(frozen=True)
class Decoder:
    """From drawn tokens to pictures, by an organism's own codebook and picture decoder."""

    model: HookedVLM
    network: codec.PictureDecoder

    def __call__(self, token_ids: Int[Tensor, "n cell"]) -> list[Image.Image]:
        """The pictures these image tokens (ids of the vocabulary) stand for."""
        mapping = self.model.hf.model.vocabulary_mapping.bpe2img
        codes = torch.tensor([[mapping[i] for i in row] for row in token_ids.tolist()])
        pixels = codec.decode(self.model.hf.model.vqmodel, self.network, codes)
        return [Image.fromarray(one) for one in pixels.numpy()]


def decoder(model: HookedVLM) -> Decoder:
    """The picture decoder in the model's folder.

    Raises:
        ModelError: there is none, or the model cannot draw. transformers' own Chameleon has none.
    """
    folder = weights_folder(getattr(model.hf, "name_or_path", ""))
    if not (folder / codec.DECODER_FILE).is_file():
        raise ModelError(
            f"{model!r} cannot draw: no {codec.DECODER_FILE} in its folder; use a native organism"
        )
    canvas(model)
    return Decoder(model, codec.PictureDecoder.from_folder(folder))


@dataclass(frozen=True, eq=False, repr=False)
class _PlainHooks(Intervention):
    """TransformerLens hooks as an intervention; they do not say which positions they act on."""

    pairs: tuple[tuple[str, Any], ...] = field(default=())

    def edits(self, tokens: Any, cfg: Any, span: Span) -> list[Edit]:
        return [Edit(name, function) for name, function in self.pairs]
