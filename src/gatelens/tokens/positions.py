"""The set operations of the selector language: each node yields a mask of positions.

An atom never yields a padding position, except the atom ``pad``; combinations then follow set algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import SelectorError
from gatelens.tokens.roles import Role
from gatelens.tokens.words import occurrences

Masks = Mapping[str, Any]
ROLE_NAMES = {role.name.lower(): role for role in Role}
_TEXT_ROLES = (Role.SYSTEM, Role.QUERY, Role.GENERATED)
_EPS = 1e-6  # pixels: rounding of an inverted resize must not add a token or a pixel


class PromptPositions(Protocol):
    """What a selector reads of a batch of prompts: :class:`gatelens.tokens.TokenMap`."""

    @property
    def roles(self) -> Int[Tensor, "batch pos"]: ...
    @property
    def image_index(self) -> Int[Tensor, "batch pos"]: ...
    @property
    def box(self) -> Float[Tensor, "batch pos 4"]: ...
    @property
    def image_sizes(self) -> tuple[tuple[tuple[int, int], ...], ...]: ...
    @property
    def prompt_length(self) -> int: ...
    @property
    def example_ids(self) -> tuple[int, ...]: ...
    @property
    def pixel_masks(self) -> tuple[Callable[[], Masks], ...]: ...
    @property
    def strings(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def n_pos(self) -> int: ...


def _gate(tokens: PromptPositions) -> Tensor:
    """The literal end-of-image token of each image, else the first position after its last token."""
    out = torch.zeros_like(tokens.roles, dtype=torch.bool)
    for b in range(tokens.batch_size):
        for i in range(int(tokens.image_index[b].max()) + 1):
            mine = tokens.image_index[b] == i
            image = (mine & ((tokens.roles[b] == Role.IMAGE) | (tokens.roles[b] == Role.ROW_BREAK))).nonzero()
            literal = (mine & (tokens.roles[b] == Role.EOI)).nonzero()
            if len(literal):
                out[b, literal[0]] = True
            elif len(image) and int(image[-1]) + 1 < tokens.n_pos:
                out[b, int(image[-1]) + 1] = True
    return out


def _first_image(tokens: PromptPositions) -> Tensor:
    image = tokens.roles == Role.IMAGE
    return image & (image.cumsum(dim=1) == 1)


def _last_image(tokens: PromptPositions) -> Tensor:
    image = tokens.roles == Role.IMAGE
    return image & (image.cumsum(dim=1) == image.sum(dim=1, keepdim=True))


def _columns(tokens: PromptPositions, start: int, stop: int) -> Tensor:
    column = torch.arange(tokens.n_pos)
    return ((column >= start) & (column < stop)).expand(tokens.batch_size, -1)


DERIVED: dict[str, Callable[[PromptPositions], Tensor]] = {
    "text": lambda t: (t.roles == Role.QUERY) | (t.roles == Role.GENERATED),
    "gate": _gate,
    "last": lambda t: _columns(t, t.prompt_length - 1, t.prompt_length),
    "first_image": _first_image,
    "last_image": _last_image,
    "all": lambda t: t.roles != Role.PAD,
    "prompt": lambda t: _columns(t, 0, t.prompt_length),
}


@dataclass(frozen=True)
class Name:
    name: str

    def mask(self, t: PromptPositions, masks: Masks) -> Bool[Tensor, "batch pos"]:
        if self.name in ROLE_NAMES:
            return t.roles == ROLE_NAMES[self.name]
        return DERIVED[self.name](t) & (t.roles != Role.PAD)


@dataclass(frozen=True)
class RandomImage:
    k: int
    seed: int

    def mask(self, t: PromptPositions, masks: Masks) -> Bool[Tensor, "batch pos"]:
        out = torch.zeros_like(t.roles, dtype=torch.bool)
        for b, number in enumerate(t.example_ids):
            image = (t.roles[b] == Role.IMAGE).nonzero().flatten().numpy()
            if self.k > len(image):
                raise SelectorError(
                    f"random_image:{self.k} asks for {self.k} tokens, but example {b} has {len(image)} image "
                    f"tokens: use random_image:K with K <= {len(image)}"
                )
            rng = np.random.default_rng([self.seed, number])
            out[b, torch.as_tensor(rng.choice(image, self.k, replace=False).astype(np.int64))] = True
        return out


@dataclass(frozen=True)
class Image:
    """``image[i]``, optionally narrowed to a pixel box or a named pixel mask."""

    index: int | None
    box: tuple[float, float, float, float] | None = None
    named: str | None = None

    def mask(self, t: PromptPositions, masks: Masks) -> Bool[Tensor, "batch pos"]:
        out = t.roles == Role.IMAGE
        if self.index is not None:
            out = out & (t.image_index == self.index)
            if not out.any():
                most = max((len(sizes) for sizes in t.image_sizes), default=0)
                raise SelectorError(
                    f"image[{self.index}] is not in the prompt: it has {most} image(s), counted from 0"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            wide = t.box[..., 2].clamp(max=x1) - t.box[..., 0].clamp(min=x0)
            high = t.box[..., 3].clamp(max=y1) - t.box[..., 1].clamp(min=y0)
            out = out & (wide > _EPS) & (high > _EPS)  # nan (no grid place) compares False
        if self.named is not None:
            out = out & _under_mask(t, out, _of_examples(self.named, masks, t), self.named)
        return out


def _of_examples(name: str, masks: Masks, t: PromptPositions) -> Sequence[Any]:
    """The pixel mask of each prompt: those given, else those of the examples that the prompts are."""
    if not isinstance(masks, Mapping):
        raise SelectorError(f"masks is a {type(masks).__name__}: give a dict, {{'{name}': mask}}")
    if name in masks:
        return _of_prompts(name, masks[name], t)
    if not t.pixel_masks:
        given = ", ".join(sorted(map(str, masks))) or "none"
        raise SelectorError(
            f"no pixel mask named '{name}' (given: {given}): pass masks={{'{name}': array}} to what takes the selector"
        )
    own = [of_example() for of_example in t.pixel_masks]
    for number, named in enumerate(own):
        if name not in named:
            there = ", ".join(sorted(named)) or "none"
            raise SelectorError(
                f"example {number} of the batch has no pixel mask named '{name}' (it has: {there}): put the mask in "
                f"its meta, {{'masks': {{'{name}': array}}}}, or leave the example out"
            )
    return [named[name] for named in own]


def _of_prompts(name: str, mask: Any, t: PromptPositions) -> Sequence[Any]:
    """One array, or a list of one for each prompt. Prompts of one example share its picture."""
    several = isinstance(mask, (list, tuple))
    if several and len(mask) != t.batch_size:
        raise SelectorError(
            f"mask '{name}' has {len(mask)} arrays for {t.batch_size} examples: give one each"
        )
    if not several and len(set(t.example_ids)) > 1:
        raise SelectorError(
            f"mask '{name}' is one array for {t.batch_size} examples: give a list of {t.batch_size}, one for the "
            f"picture of each (where all show one picture, [mask] * {t.batch_size})"
        )
    return mask if several else [mask] * t.batch_size


def _under_mask(t: PromptPositions, candidates: Tensor, per_example: Sequence[Any], name: str) -> Tensor:
    """Candidate image tokens whose box holds at least one True pixel of the example's mask, [height, width]."""
    out = torch.zeros_like(candidates)
    for b, pixels in enumerate(per_example):
        array = np.asarray(pixels)
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise SelectorError(f"mask '{name}' holds other than numbers: give one True or False a pixel")
        array = array.astype(bool)
        if array.ndim != 2:
            raise SelectorError(
                f"mask '{name}' has shape {array.shape}: give [height, width] in picture pixels"
            )
        for p in candidates[b].nonzero().flatten().tolist():
            width, height = t.image_sizes[b][int(t.image_index[b, p])]
            if array.shape != (height, width):
                raise SelectorError(
                    f"mask '{name}' is {array.shape[1]}x{array.shape[0]} pixels, picture "
                    f"{int(t.image_index[b, p])} of example {b} is {width}x{height}: give the mask in the size of "
                    "the original picture, or name the picture it is of: image[i].mask(…)"
                )
            box = t.box[b, p].double().numpy()
            if not np.isnan(box).any():
                x0, y0 = np.floor(box[:2] + _EPS).astype(int)
                x1, y1 = np.ceil(box[2:] - _EPS).astype(int)
                out[b, p] = bool(array[y0:y1, x0:x1].any())
    return out


@dataclass(frozen=True)
class Pos:
    start: int | None
    stop: int | None
    single: bool

    def mask(self, t: PromptPositions, masks: Masks) -> Bool[Tensor, "batch pos"]:
        if self.single:
            assert self.start is not None
            return positions_mask(t, [self.start])
        ends = (
            None if e is None else e if e >= 0 else max(0, t.prompt_length + e)
            for e in (self.start, self.stop)
        )
        start, stop, _ = slice(*ends).indices(t.n_pos)
        return _columns(t, start, stop) & (t.roles != Role.PAD)


@dataclass(frozen=True)
class Generated:
    """``generated[n]`` and ``generated[i:j]``, counted from the first token after the prompt."""

    start: int | None
    stop: int | None
    single: bool

    def mask(self, t: PromptPositions, masks: Masks) -> Bool[Tensor, "batch pos"]:
        n = t.n_pos - t.prompt_length
        if self.single and self.start is not None and self.start >= n:
            raise SelectorError(
                f"generated[{self.start}] is not there: {n} generated position(s), counted from 0"
            )
        stop = self.start + 1 if self.single and self.start is not None else self.stop
        start, stop, _ = slice(self.start, stop).indices(n)
        return _columns(t, t.prompt_length + start, t.prompt_length + stop) & (t.roles == Role.GENERATED)


@dataclass(frozen=True)
class Word:
    """``word("cup")``: the positions of a word in each example's text, of one occurrence or of all."""

    word: str
    number: int | None

    def mask(self, t: PromptPositions, masks: Masks) -> Bool[Tensor, "batch pos"]:
        out = torch.zeros_like(t.roles, dtype=torch.bool)
        for b, roles in enumerate(t.roles.tolist()):
            found = occurrences(self.word, t.strings[b], [role in _TEXT_ROLES for role in roles])
            if not found:
                raise SelectorError(f"word({self.word!r}) does not occur in the text of example {b}")
            if self.number is not None:
                if not -len(found) <= self.number < len(found):
                    raise SelectorError(
                        f"word({self.word!r})[{self.number}]: the word occurs {len(found)} time(s) in example {b}, "
                        "counted from 0"
                    )
                found = [found[self.number]]
            out[b, [p for place in found for p in place]] = True
        return out


@dataclass(frozen=True)
class Not:
    inner: Node

    def mask(self, t: PromptPositions, masks: Masks) -> Bool[Tensor, "batch pos"]:
        return ~self.inner.mask(t, masks) & (t.roles != Role.PAD)


@dataclass(frozen=True)
class Both:
    op: str
    left: Node
    right: Node

    def mask(self, t: PromptPositions, masks: Masks) -> Bool[Tensor, "batch pos"]:
        a, b = self.left.mask(t, masks), self.right.mask(t, masks)
        return a | b if self.op == "|" else a & b if self.op == "&" else a & ~b


Node = Name | RandomImage | Image | Pos | Generated | Word | Not | Both


def positions_mask(tokens: PromptPositions, positions: Sequence[int]) -> Tensor:
    """Mask of absolute positions; negative ones count from the end of the prompt, so that a
    position stays itself while tokens are generated. Raises SelectorError when outside."""
    columns = []
    for p in positions:
        if not -tokens.prompt_length <= p < tokens.n_pos:
            raise SelectorError(
                f"position {p} is outside the {tokens.n_pos} positions: use 0..{tokens.n_pos - 1}"
            )
        columns.append(p if p >= 0 else tokens.prompt_length + p)
    chosen = torch.zeros(tokens.n_pos, dtype=torch.bool, device=tokens.roles.device)
    chosen[columns] = True
    return chosen & (tokens.roles != Role.PAD)
