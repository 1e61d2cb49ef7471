"""Which positions a gate can be at: aligned over examples, and found by what varies, not by what it is called.

A place is one position of the prompt's template, the same in every example: the role it has and its number
among the positions of that role. Names of roles serve for nothing else than this alignment (and, later, for
labels): which places are the picture is read off the model's own input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import DataError
from gatelens.roles import Role
from gatelens.studies.common import prepare

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap

_INPUT = "blocks.0.hook_resid_pre"
_SAME = 1e-6  # inputs that differ by less than this share of the largest number are one input


@dataclass(frozen=True)
class Place:
    """One position of the template. ``position`` is where it stands in the first example that has it."""

    number: int
    role: str
    index: int
    token: str
    position: int
    in_picture: bool

    @property
    def name(self) -> str:
        """The token, and what it is where the token alone does not tell."""
        return f"{self.role}[{self.index}]" if self.in_picture else self.token


@dataclass(frozen=True, eq=False)
class Batch:
    """Some of the examples: ``columns[i, p]`` is the absolute position of place ``p``, −1 where it has none."""

    inputs: VLMInputs
    examples: tuple[int, ...]
    columns: Int[Tensor, "batch place"]
    behind: Bool[Tensor, "batch pos"]

    def mask(self, places: Iterable[int]) -> Bool[Tensor, "batch pos"]:
        """The positions of some places."""
        out = torch.zeros_like(self.behind)
        columns = self.columns[:, list(places)]
        rows = torch.arange(len(columns))[:, None].expand_as(columns)
        out[rows[columns >= 0], columns[columns >= 0]] = True
        return out


@dataclass(frozen=True, eq=False)
class Places:
    """Candidates of a gate, in prompt order, and the batches they were found in.

    The picture is every place from the first to the last whose input differs between examples of the one
    prompt (row breaks between them included). What stands before cannot know the picture, so it is no
    candidate; neither is the last position, which answers: nothing after it reads it.
    """

    all: tuple[Place, ...]
    batches: tuple[Batch, ...]

    @property
    def picture(self) -> list[int]:
        """Numbers of the picture's places."""
        return [p.number for p in self.all if p.in_picture]

    @property
    def behind(self) -> list[int]:
        """Numbers of the places between the picture and the answer."""
        return [p.number for p in self.all if not p.in_picture]

    def blocks(self, size: int | None = None) -> list[list[int]]:
        """The picture in pieces of ``size`` places in a row; by default about as many pieces as places in one."""
        picture = self.picture
        size = size or max(1, round(len(picture) ** 0.5))
        return [picture[i : i + size] for i in range(0, len(picture), size)]


def find_places(
    model: HookedVLM, examples: Sequence[Example], parts: Sequence[Sequence[int]], size: int
) -> Places:
    """Prepare the examples in batches, and find the picture in them.

    Args:
        model: the model.
        examples: all with the same prompt.
        parts: numbers of examples that must not share a batch with others.
        size: of a batch, at most.

    Raises:
        DataError: the input is the same for all examples, or nothing stands behind the picture.
    """
    prepared: list[tuple[tuple[int, ...], VLMInputs, list[dict[tuple[int, int], int]]]] = []
    inputs_of: dict[tuple[int, int], Float[Tensor, " d_model"]] = {}
    varies: set[tuple[int, int]] = set()
    seen: dict[tuple[int, int], int] = {}
    scale = 0.0
    for part in parts:
        for start in range(0, len(part), size):
            numbers = tuple(part[start : start + size])
            inputs = prepare(model, [examples[i] for i in numbers])
            _, cache = model.run_with_cache(inputs, names_filter=_INPUT, device="cpu")
            embedded = cache[_INPUT].float()
            scale = max(scale, float(embedded.abs().max()))
            keys = [_keys(inputs.tokens.roles[row]) for row in range(len(numbers))]
            for row, found in enumerate(keys):
                for key, column in found.items():
                    seen[key] = seen.get(key, 0) + 1
                    reference = inputs_of.setdefault(key, embedded[row, column])
                    if float((embedded[row, column] - reference).abs().max()) > _SAME * scale:
                        varies.add(key)
            prepared.append((numbers, inputs, keys))
    varies |= {key for key, count in seen.items() if count < len(examples)}  # pictures of other sizes
    if not varies:
        raise DataError("find_gate: the model's input is the same for every example; give different pictures")
    found_in = [found for _, _, keys in prepared for found in keys]
    picture, behind = _split(found_in, varies)
    if not behind:
        raise DataError(
            "find_gate: the examples differ up to their last token; give one prompt with the question "
            "behind the picture"
        )
    candidates, n_picture = [*picture, *behind[:-1]], len(picture)
    batches = []
    for numbers, inputs, keys in prepared:
        columns = torch.tensor([[found.get(key, -1) for key in candidates] for found in keys])
        last = columns[:, :n_picture].amax(dim=1, keepdim=True)
        readers = torch.arange(inputs.tokens.n_pos)[None] > last
        batches.append(Batch(inputs, numbers, columns, readers & (inputs.tokens.roles != Role.PAD)))
    places = tuple(_place(i, key, i < n_picture, batches) for i, key in enumerate(candidates))
    return Places(places, tuple(batches))


def _split(
    found_in: Sequence[dict[tuple[int, int], int]], varies: set[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The keys of the picture and those behind it, each in prompt order.

    A key is behind when it stands after everything that varies in each example that has it.
    """
    starts: dict[tuple[int, int], list[int]] = {}
    ends: dict[tuple[int, int], list[int]] = {}
    before: dict[tuple[int, int], bool] = {}
    after: dict[tuple[int, int], bool] = {}
    for found in found_in:
        changing = [column for key, column in found.items() if key in varies]
        # an example may lack what varies elsewhere; then it says nothing about who is in the picture
        low, high = (min(changing), max(changing)) if changing else (-1, max(found.values()) + 1)
        for key, column in found.items():
            starts.setdefault(key, []).append(column - min(found.values()))
            ends.setdefault(key, []).append(column - max(found.values()))
            before[key] = before.get(key, True) and bool(changing) and column < low
            after[key] = after.get(key, True) and bool(changing) and column > high
    picture = [key for key in starts if not before[key] and not after[key]]
    behind = [key for key in starts if after[key]]
    # a smaller picture moves what is behind it to the left: there the distance to the end is what stays
    return (
        sorted(picture, key=lambda key: (sum(starts[key]) / len(starts[key]), key)),
        sorted(behind, key=lambda key: (sum(ends[key]) / len(ends[key]), key)),
    )


def keyed_columns(tokens: TokenMap, places: Sequence[Place]) -> Int[Tensor, "batch place"]:
    """The absolute position of each place in other examples of the prompt, −1 where one lacks it."""
    found = [_keys(row) for row in tokens.roles]
    return torch.tensor([[one.get((Role[p.role.upper()], p.index), -1) for p in places] for one in found])


def _keys(roles: Int[Tensor, " pos"]) -> dict[tuple[int, int], int]:
    """(role, number among the positions of this role) of every position, to its column."""
    counted: dict[int, int] = {}
    out = {}
    for column, role in enumerate(roles.tolist()):
        if role != Role.PAD:
            out[role, counted.get(role, 0)] = column
            counted[role] = counted.get(role, 0) + 1
    return out


def _place(number: int, key: tuple[int, int], in_picture: bool, batches: Sequence[Batch]) -> Place:
    role = Role(key[0]).name.lower()
    for batch in batches:
        for row in range(len(batch.columns)):
            column = int(batch.columns[row, number])
            if column >= 0:
                token = batch.inputs.tokens.strings[row][column].replace("Ġ", " ").replace("▁", " ").strip()
                return Place(number, role, key[1], token or repr(token), column, in_picture)
    raise AssertionError("a candidate stands in some example")
