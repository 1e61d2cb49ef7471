"""Which positions a gate can be at: aligned over examples, and identified by what varies, not by name.

A place is one position of the prompt's template, the same in every example: the role it has and its number among the
positions of that role. Names of roles serve for nothing else than this alignment (and, later, for labels): which
places are the picture is read off the model's own input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gatelens.data import Example
from gatelens.examples import prepare
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from gatelens.studies.section import Absent
from gatelens.tokens import Role

KEY = ["role", "index"]
_INPUT = "blocks.0.hook_resid_pre"
_SAME = 1e-6  # inputs that differ by less than this share of the largest number are one input


@dataclass(frozen=True)
class Place:
    """One position of the template. ``position`` is its position in the first example that has it."""

    number: int
    role: str
    index: int
    token: str
    position: int
    in_picture: bool

    @property
    def name(self) -> str:
        """The token; in the picture, where tokens are alike, its role and number."""
        kind = {"image": "image token"}.get(self.role, self.role.replace("_", " "))
        return f"{kind} {self.index}" if self.in_picture else self.token


@dataclass(frozen=True, eq=False)
class Layout:
    """The candidates of a gate: the picture's places, then those between it and the answer, in prompt order.

    The picture is every place from the first to the last whose input differs between examples of the one prompt (row
    breaks between them included). A position before it cannot know the picture, so it is not a candidate; nor is the
    last position, which answers: nothing after it reads it.
    """

    places: tuple[Place, ...]
    has: Bool[np.ndarray, "example place"]  # a small picture lacks the last places of a large one
    gate: tuple[int, ...]  # numbers of the places that are called the gate

    @property
    def picture(self) -> list[int]:
        """Numbers of the picture's places."""
        return [p.number for p in self.places if p.in_picture]

    @property
    def after(self) -> list[int]:
        """Numbers of the places between the picture and the answer."""
        return [p.number for p in self.places if not p.in_picture]

    def blocks(self, size: int | None = None) -> list[list[int]]:
        """The picture in pieces of ``size`` places in a row; by default about as many pieces as places in one."""
        picture = self.picture
        size = size or max(1, round(len(picture) ** 0.5))
        return [picture[i : i + size] for i in range(0, len(picture), size)]


@dataclass(frozen=True, eq=False)
class LocatedPrompts:
    """Prompts of some examples, and where the places are in them."""

    inputs: VLMInputs
    columns: Int[Tensor, "batch place"]  # the absolute position of each place, −1 where an example has none
    after: Bool[Tensor, "batch pos"]  # the positions after the picture

    def mask(self, places: Iterable[int]) -> Bool[Tensor, "batch pos"]:
        """The positions of some places."""
        columns = self.columns[:, list(places)]
        rows, which = (columns >= 0).nonzero(as_tuple=True)
        mask = torch.zeros_like(self.after)
        mask[rows, columns[rows, which]] = True
        return mask


def locate(model: HookedVLM, examples: Sequence[Example], places: Sequence[Place]) -> LocatedPrompts:
    """Prepare examples and find the places in their prompts."""
    inputs = prepare(model, examples)
    tokens = inputs.tokens
    rows = []
    for roles in tokens.roles:
        column_of = {(role, index): column for role, index, column in numbered_roles(roles)}
        rows.append([column_of.get((Role[p.role.upper()], p.index), -1) for p in places])
    columns = torch.tensor(rows)
    last = columns[:, [p.in_picture for p in places]].amax(dim=1, keepdim=True)
    after = torch.arange(tokens.n_pos)[None] > last
    return LocatedPrompts(inputs, columns, after & (tokens.roles != Role.PAD))


def numbered_roles(roles: Int[Tensor, " pos"]) -> Iterable[tuple[int, int, int]]:
    """``(role, number among the positions of this role, column)`` of every position that is not padding."""
    counted: dict[int, int] = {}
    for column, role in enumerate(roles.tolist()):
        if role != Role.PAD:
            yield role, counted.get(role, 0), column
            counted[role] = counted.get(role, 0) + 1


def varying_inputs(
    model: HookedVLM, examples: Sequence[Example], numbers: Sequence[int], reference: Example | None
) -> pd.DataFrame:
    """Every position of examples of one prompt, and whether the model's input there differs from the reference's.

    Without a ``reference`` it is the first of these. A position that it lacks does not vary. The table's columns are
    ``example, role, index, position, token, gate, varies``; ``numbers`` are what each example is called there.
    """
    asked = [*([] if reference is None else [reference]), *examples]
    inputs = prepare(model, asked)
    tokens = inputs.tokens
    _, cache = model.run_with_cache(inputs, names_filter=_INPUT, device="cpu")
    embedded = cache[_INPUT].float()
    limit = _SAME * float(embedded.abs().max())
    gate = tokens.mask("gate")
    known = {(role, index): embedded[0, column] for role, index, column in numbered_roles(tokens.roles[0])}
    rows = []
    for row, number in enumerate(numbers, start=len(asked) - len(examples)):
        for role, index, column in numbered_roles(tokens.roles[row]):
            value = embedded[row, column]
            varies = float((value - known.get((role, index), value)).abs().max()) > limit
            token = tokens.strings[row][column].replace("Ġ", " ").replace("▁", " ").strip()
            rows.append((number, role, index, column, token or repr(token), bool(gate[row, column]), varies))
    return pd.DataFrame(rows, columns=["example", *KEY, "position", "token", "gate", "varies"])


def find_places(positions: pd.DataFrame, n: int) -> Layout:
    """Find the picture, and what comes between it and the answer, in ``positions`` of ``n`` :func:`varying_inputs`.

    Raises:
        Absent: the input is the same for all examples, or nothing comes after the picture.
    """
    key = positions.groupby(KEY)
    # pictures of other sizes: what an example lacks varies
    varies = key.varies.transform("any") | (key.example.transform("size") < n)
    if not varies.any():
        raise Absent("the model's input is the same for every example; give different pictures")
    changing = positions.position.where(varies).groupby(positions.example)
    whole = positions.groupby("example").position
    # an example may lack what varies elsewhere (NaN): then no key stands before or after it
    table = positions.assign(
        before=positions.position < changing.transform("min"),
        after=positions.position > changing.transform("max"),
        start=positions.position - whole.transform("min"),
        end=positions.position - whole.transform("max"),
    )
    keys = table.groupby(KEY, as_index=False).agg(
        {"before": "all", "after": "all", "gate": "all", "start": "mean", "end": "mean",
         "position": "first", "token": "first"}
    )  # fmt: skip
    picture = keys[~keys.before & ~keys.after].sort_values(["start", *KEY])
    # a smaller picture moves what is after it to the left: there the distance to the end is what stays
    after = keys[keys.after].sort_values(["end", *KEY])
    if after.empty:
        raise Absent(
            "the examples differ up to their last token; give one prompt with the question after the picture"
        )
    chosen = pd.concat([picture, after.iloc[:-1]], ignore_index=True)
    places = tuple(
        Place(
            i, Role(row["role"]).name.lower(), row["index"], row["token"], row["position"], i < len(picture)
        )
        for i, row in enumerate(chosen.to_dict("records"))
    )
    located = table.merge(chosen[KEY].assign(place=chosen.index), on=KEY)
    has = np.zeros((n, len(places)), dtype=bool)
    has[located.example, located.place] = True
    return Layout(places, has, tuple(p.number for p in places if chosen.gate[p.number]))
