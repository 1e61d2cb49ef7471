"""A pair as two prompts of a model: their inputs, and which positions of the two are the same place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.data import Example, Pair
from gatelens.errors import InputError
from gatelens.examples import masks_of as masks_of_example
from gatelens.inputs import VLMInputs
from gatelens.interventions import Rows, edit
from gatelens.interventions.editing import FunctionEdit
from gatelens.model import HookedVLM
from gatelens.tokens import Role, TokenMap

_OF_PICTURES = (Role.BOI, Role.IMAGE, Role.ROW_BREAK, Role.EOI)
Place = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Side:
    """One side of some pairs as prompts of one model, with the noise their runs have."""

    inputs: VLMInputs
    interventions: tuple[FunctionEdit, ...] = ()

    @property
    def tokens(self) -> TokenMap:
        return self.inputs.tokens


def sides(model: HookedVLM, pairs: Sequence[Pair], chat: bool) -> tuple[Side, Side]:
    """The clean and the corrupt prompts of pairs; noise is drawn by the example's id, so the same in any list."""
    clean, corrupt = (
        Side(_prepared(model, examples, chat))
        for examples in ([pair.clean for pair in pairs], [pair.corrupt for pair in pairs])
    )
    if pairs[0].noise:
        seeds = [crc32(pair.clean.id.encode()) for pair in pairs]
        corrupt = Side(corrupt.inputs, (noise(pairs[0].noise, seeds),))
    return clean, corrupt


def _prepared(model: HookedVLM, examples: Sequence[Example], chat: bool) -> VLMInputs:
    pictured = examples[0].image is not None
    images = [example.image for example in examples] if pictured else None
    inputs = model.prepare(images=images, text=[example.prompt for example in examples], chat=chat)
    # random selectors name the same places in every pair, which are then compared
    tokens = dataclasses.replace(inputs.tokens, example_ids=(0,) * len(examples))
    return dataclasses.replace(inputs, tokens=tokens)


def in_parts(model: HookedVLM, pairs: Sequence[Pair], size: int) -> list[list[int]]:
    """Numbers of the pairs that can be run together, at most ``size``: none of their prompts is padded."""
    keys = [_kind(model, pair) for pair in pairs]
    parts: dict[Any, list[list[int]]] = {}
    for i, key in enumerate(keys):
        alike = parts.setdefault(key, [[]])
        if len(alike[-1]) == size:
            alike.append([])
        alike[-1].append(i)
    return sorted(part for alike in parts.values() for part in alike)


def _kind(model: HookedVLM, pair: Pair) -> tuple[Any, ...]:
    """What pairs whose prompts are of one length have in common."""
    both = (pair.clean, pair.corrupt)
    lengths = [len(model.tokenizer(one.prompt)["input_ids"]) for one in both]
    return (*lengths, *(None if one.image is None else one.image.size for one in both), pair.noise)


def noise(multiple: float, seeds: Sequence[int]) -> FunctionEdit:
    """Gaussian noise on the embeddings of image tokens, as they enter block 0 (Meng et al. 2022, arXiv 2202.05262).

    Args:
        multiple: its standard deviation, in standard deviations of a prompt's own embeddings over all their numbers.
        seeds: of what is drawn for each prompt.
    """

    def add(rows: Float[Tensor, "n d_model"], where: Rows) -> Float[Tensor, "n d_model"]:
        noisy = rows.float().clone()
        for example, seed in enumerate(seeds):
            own = where.example == example
            drawn = torch.randn(noisy[own].shape, generator=torch.Generator().manual_seed(seed))
            noisy[own] += multiple * noisy[own].std() * drawn.to(rows.device)
        return noisy.to(rows.dtype)

    return edit(add, at="image", site="resid_pre", layers=[0])


def masks_of(pair: Pair) -> dict[str, Any]:
    """Masks of the clean picture by name; ``object`` is what the example is about, ``changed`` where the two differ."""
    masks = masks_of_example(pair.clean)
    here, there = pair.clean.image, pair.corrupt.image
    if here is not None and there is not None and here.size == there.size:
        a, b = (np.asarray(picture.convert("RGB")) for picture in (here, there))
        masks["changed"] = (a != b).any(axis=-1)
    return masks


def same_places(here: TokenMap, there: TokenMap, where: str, hint: str = "") -> list[Place]:
    """Positions of two prompts (batches of one) that are the same place, in order.

    Image tokens pair by their place in the grid, markers and words by their number within their role. Where a role has
    more words in one prompt than in the other, the words both begin with and those both end with pair; what is between
    has no counterpart.

    Args:
        where, hint: what an error calls the two prompts, and what else would help.

    Raises:
        InputError: their pictures are cut into different grids.
    """
    found: list[Place] = []
    mine, theirs = _groups(here), _groups(there)
    _check_grids(here, there, mine, theirs, where, hint)
    for key, places in mine.items():
        others = theirs.get(key, [])
        if len(places) == len(others):
            found += zip(places, others, strict=True)
        elif key[0] not in _OF_PICTURES:
            found += _ends(here, there, places, others)
    return sorted(found)


def _groups(tokens: TokenMap) -> dict[tuple[Role, int], list[int]]:
    """The positions of each role; those of each picture apart."""
    groups: dict[tuple[Role, int], list[int]] = {}
    for position, number in enumerate(tokens.roles[0].tolist()):
        role = Role(number)
        if role != Role.PAD:
            picture = int(tokens.image_index[0, position]) if role in _OF_PICTURES else -1
            groups.setdefault((role, picture), []).append(position)
    return groups


def _check_grids(here: TokenMap, there: TokenMap, mine: Any, theirs: Any, where: str, hint: str) -> None:
    pictures = [sorted(i for role, i in groups if role == Role.IMAGE) for groups in (mine, theirs)]
    if pictures[0] != pictures[1]:
        raise InputError(
            f"{where}: one prompt has {len(pictures[0])} picture(s) and the other {len(pictures[1])}: give as "
            f"many{hint}"
        )
    for i in pictures[0]:
        places = [groups[Role.IMAGE, i] for groups in (mine, theirs)]
        grids = [
            torch.stack([t.tile[0, at], t.row[0, at], t.col[0, at]])
            for t, at in zip((here, there), places, strict=True)
        ]
        if not (grids[0].shape == grids[1].shape and torch.equal(*grids)):
            shapes = ["x".join(str(int(n) + 1) for n in grid[1:].amax(1)) for grid in grids]
            tokens = [f"{len(at)} tokens ({shape})" for at, shape in zip(places, shapes, strict=True)]
            raise InputError(
                f"{where}: picture {i} has {tokens[0]} in one prompt and {tokens[1]} in the other: give pictures of "
                f"one size, so that their tokens pair{hint}"
            )


def _ends(here: TokenMap, there: TokenMap, mine: Sequence[int], theirs: Sequence[int]) -> list[Place]:
    """The words that both begin with, and those that both end with."""
    same = [
        [here.strings[0][p] == there.strings[0][q] for p, q in zip(a, b, strict=False)]
        for a, b in ((mine, theirs), (mine[::-1], theirs[::-1]))
    ]
    n_first, n_last = (each.index(False) if False in each else len(each) for each in same)
    n_last = min(n_last, min(len(mine), len(theirs)) - n_first)
    last = zip(mine[len(mine) - n_last :], theirs[len(theirs) - n_last :], strict=True)
    return [*zip(mine[:n_first], theirs[:n_first], strict=True), *last]
