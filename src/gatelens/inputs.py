"""Images and text checked against each other, and the tensors they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from gatelens.errors import InputError
from gatelens.hub_errors import one_line
from gatelens.pictures import ImageLike, load_image
from gatelens.tokens import TokenMap

Images = ImageLike | Sequence[Any] | None


PER_PICTURE = frozenset({"image_sizes", "image_grid_thw"})  # tensors with one row a picture
PIXELS = frozenset({"pixel_values", "pixel_attention_mask"})  # which prompts without a picture do without


@dataclass(frozen=True, eq=False)
class VLMInputs:
    """A batch of prompts, padded on the left.

    ``tensors``: what transformers' forward takes (``input_ids``, ``attention_mask``, ``position_ids`` and,
    with images, ``pixel_values``). ``images``: the original pictures of each prompt, empty when unknown.
    ``rows``: for tensors whose rows are pictures or patches, how many belong to each example.
    """

    tensors: dict[str, Tensor]
    tokens: TokenMap
    images: tuple[tuple[Image.Image, ...], ...]
    texts: tuple[str, ...]
    single: bool = False  # prepared from one string rather than a list: generate answers with one string

    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        return self.tokens.batch_size

    @property
    def ids(self) -> Int[Tensor, "batch pos"]:
        """The token ids alone; a picture is placeholders in them."""
        return self.tensors["input_ids"]

    @property
    def of_pictures(self) -> tuple[str, ...]:
        """Names of the tensors that hold pictures rather than positions."""
        return tuple(name for name in self.tensors if name in self.rows or name in PIXELS | PER_PICTURE)

    @property
    def shape(self) -> torch.Size:
        """(batch, pos)"""
        return self.ids.shape

    def select(self, examples: slice | Sequence[int]) -> VLMInputs:
        """Some of the examples. Rows of ``pixel_values`` follow the example their picture belongs to."""
        chosen = self.tokens.examples(examples)
        pictures = any(self.tokens.image_sizes[e] for e in chosen)
        tensors: dict[str, Tensor] = {}
        for name, value in self.tensors.items():
            if name in self.rows:
                starts = np.cumsum([0, *self.rows[name]]).tolist()
                index = [i for e in chosen for i in range(starts[e], starts[e + 1])]
                if index:
                    tensors[name] = value[index]
            elif name in PIXELS and not pictures:
                continue
            elif name == "position_ids" and value.ndim == 3:  # three or four streams come first
                tensors[name] = value[:, chosen]
            else:
                tensors[name] = value[chosen]
        rows = {name: tuple(counts[e] for e in chosen) for name, counts in self.rows.items()}
        return VLMInputs(
            tensors,
            self.tokens.select(chosen),
            tuple(self.images[e] for e in chosen),
            tuple(self.texts[e] for e in chosen),
            self.single and len(chosen) == 1,
            rows,
        )

    def to(self, device: str | torch.device) -> VLMInputs:
        """The same batch with its tensors on another device. Raises InputError where that cannot be used."""
        try:
            named = torch.device(device)
            moved = {name: value.to(named) for name, value in self.tensors.items()}
        except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA asserts
            raise InputError(f"device {device!r} cannot be used: {one_line(error)}") from error
        if named.type == "meta":
            raise InputError("device 'meta' cannot be used: it holds no values")
        return dataclasses.replace(self, tensors=moved)


def next_position_ids(position_ids: Tensor, step: int) -> Tensor:
    """Positions of the token ``step`` after the prompt: one after the highest, in every stream alike."""
    highest = position_ids.amax(dim=-1, keepdim=True)
    if highest.ndim == 3:  # streams of time, height and width run together again after a picture
        highest = highest.amax(dim=0, keepdim=True).expand_as(highest)
    return highest + 1 + step


def match_images(images: Images, texts: Sequence[str], placeholder: str) -> list[list[Image.Image]]:
    """The pictures of each prompt, as many as it has placeholders.

    ``images``: one picture, a flat list (dealt out to the placeholders in order), or a list of lists, one a
    prompt. Raises InputError naming the prompt and both counts.
    """
    wanted = [text.count(placeholder) for text in texts]
    mark = "<image>"  # what a person writes; prepare puts the family's own placeholder and markers there
    if images is None:
        images = []
    elif isinstance(images, (Image.Image, str, Path, bytes, np.ndarray, Tensor)):
        images = [images]
    elif not isinstance(images, (list, tuple)):
        raise InputError(
            f"images is of type {type(images).__name__}: give a picture, a path, an array or a list"
        )
    nested: list[Any] = list(images)
    if any(isinstance(one, (list, tuple)) or one is None for one in nested):
        if len(nested) != len(texts):
            raise InputError(
                f"{len(nested)} lists of pictures for {len(texts)} prompts: give one list a prompt"
            )
        given = [_as_list(one) for one in nested]
    elif len(texts) == 1:
        given = [nested]
    elif sum(wanted) == len(nested):
        given, at = [], 0
        for n in wanted:
            given.append(nested[at : at + n])
            at += n
    else:
        given = [[one] for one in nested] if len(nested) == len(texts) else [nested]
        if len(given) != len(texts):
            raise InputError(
                f"{len(nested)} picture(s) for {len(texts)} prompts with {sum(wanted)} {mark} in all: "
                "give a list of lists, one a prompt"
            )
    for i, (n, pictures) in enumerate(zip(wanted, given, strict=True)):
        if n > len(pictures):
            raise InputError(
                f"prompt {i} has {n} {mark} and {len(pictures)} picture(s): give {n - len(pictures)} more"
            )
        if n < len(pictures):
            raise InputError(
                f"prompt {i} has {n} {mark} and {len(pictures)} picture(s): write {mark} where each one goes"
            )
    return [
        [load_image(p, f"picture {j} of prompt {i}") for j, p in enumerate(ps)] for i, ps in enumerate(given)
    ]


def _as_list(one: Any) -> list[Any]:
    if one is None:
        return []
    return list(one) if isinstance(one, (list, tuple)) else [one]
