"""A case of the conformance suite: a tiny random model of the real class, and what its family claims of it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One family, or one layout of it.

    ``model``: builds the plain transformers model, eval, with weights far from zero (see tiny_models.randomize).
    ``processor``: the real image processor with a tokenizer made here.
    ``sizes``: (width, height) of the pictures used, two at least, of different shape where the family tells
    them apart. ``unmix``: changes the plain model so that each image feature depends on its own pixels only
    (zero what the tower's attention adds); None where there is no tower. ``features``: (model, inputs) ->
    one row per image token, where ``blocks.0.hook_resid_pre`` cannot show small changes (codes of a VQ
    encoder). ``local``: whether, unmixed, a token sees nothing at all but its box (False where convolutions
    reach a little further: then the token in the middle of a change must change most). ``blur``: pixels of
    the original that resizing lets bleed over the edges of a box. ``full``: name -> the full-size config,
    written from what is known of the checkpoint's config.json, which could not be read when this was written.
    ``prepare``: for models without a processor of their own, (model, pictures, texts) -> inputs.
    """

    name: str
    model: Callable[[], Any]
    processor: Callable[[], Any]
    sizes: tuple[tuple[int, int], ...] = ((16, 16), (20, 28))
    texts: tuple[str, ...] = (
        "this <image> animal is a",
        "<image> what color is it",
        "<image> and <image> left of",
    )
    unmix: Callable[[Any], None] | None = None
    features: Callable[[Any, Any], Tensor] | None = None
    local: bool = True
    blur: float = 0.0
    full: dict[str, Callable[[], Any]] = field(default_factory=dict)
    wrap: Callable[[Any, Any], Any] | None = None

    def picture(self, i: int = 0, seed: int = 0) -> Image.Image:
        """A smooth random picture of the i-th size: neighbouring pixels differ, no resize wipes them out."""
        width, height = self.sizes[i % len(self.sizes)]
        generator = torch.Generator().manual_seed(100 * seed + i)
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator)
        return Image.fromarray(pixels.to(torch.uint8).numpy())


def cases() -> dict[str, Case]:
    """Every CASE or CASES of the modules in ``cases/``."""
    import cases as package

    found: dict[str, Case] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"cases.{info.name}")
        for case in getattr(module, "CASES", [getattr(module, "CASE", None)]):
            if case is not None:
                found[case.name] = case
    return found


def silence(*linears: Any) -> None:
    """Make linear maps give zero: what an attention or MLP branch adds vanishes."""
    for linear in linears:
        linear.weight.data.zero_()
        if linear.bias is not None:
            linear.bias.data.zero_()
