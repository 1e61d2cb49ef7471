"""Prompts and pictures made into tensors from image processor and tokenizer alone.

A processor of transformers with a video part cannot be built without torchvision. Its image processor and
tokenizer can; what stands between them is to write as many placeholders as a picture has tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from gatelens.errors import InputError

Pictures = Sequence[Sequence[Image.Image]]  # one list a prompt


@dataclass(frozen=True)
class ImageTextParts:
    """Stands for a processor where the real one cannot be built.

    Functions written for it take anything else that has these two attributes as well, so a real processor does.
    """

    image_processor: Any
    tokenizer: Any

    @classmethod
    def from_pretrained(cls, where: str, **hub: Any) -> ImageTextParts:
        """Both parts of a checkpoint, pictures by Pillow. ``hub``: ``revision``, ``token``, ``cache_dir`` …"""
        return cls(
            AutoImageProcessor.from_pretrained(where, backend="pil", **hub),
            AutoTokenizer.from_pretrained(where, **hub),
        )


def picture_tensors(parts: Any, pictures: Pictures, **kwargs: Any) -> dict[str, Tensor]:
    """What the image processor makes of all pictures in order, each as its own example; empty without any."""
    flat = [picture for one in pictures for picture in one]
    return dict(parts.image_processor(images=flat, return_tensors="pt", **kwargs)) if flat else {}


def prepare_batch(
    parts: Any, texts: Sequence[str], expansions: Sequence[str], placeholder: str, **extra: Tensor
) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` of a left-padded batch, and ``extra`` as it came.

    The i-th ``placeholder`` of all prompts, in order, becomes ``expansions[i]``, which may hold the
    placeholder itself any number of times.

    Raises:
        InputError: there are not as many placeholders as expansions.
    """
    n_written = sum(text.count(placeholder) for text in texts)
    if n_written != len(expansions):
        raise InputError(
            f"the prompts have {n_written} {placeholder} and {len(expansions)} picture(s) were prepared: "
            f"write {placeholder} once for each picture"
        )
    waiting = iter(expansions)
    written = []
    for text in texts:
        first, *others = text.split(placeholder)
        written.append(first + "".join(next(waiting) + other for other in others))
    ids = parts.tokenizer(written, padding=len(written) > 1, padding_side="left", return_tensors="pt")
    kept = {name: torch.as_tensor(ids[name]) for name in ("input_ids", "attention_mask")}
    return {**kept, **extra}
