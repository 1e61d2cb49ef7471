"""The cells of a map of nodes: which rows, heads and layers of a run one number is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import InputError, shown
from gatelens.interventions.sites import SITES, has_heads, head_count
from gatelens.readouts.gradients.contrast import Contrast, Tap
from gatelens.readouts.labelled import ROLE_NAMES, position_labels

AXES = ("layer", "pos", "role", "head", "site")


class Cell(NamedTuple):
    """One number: the rows of a group (a position, a role, or all) at a site of a layer, in a head or in all."""

    site: str
    layer: int
    group: int
    head: int | None


@dataclass(frozen=True)
class Cells:
    """The axes of a map.

    Attributes:
        over: their names in order.
        sites, layers: of the map.
        groups: labels of the groups of positions.
        heads: how many there are, where the map tells them apart; else None.
    """

    over: tuple[str, ...]
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    groups: pd.DataFrame
    heads: int | None

    @property
    def taps(self) -> list[Tap]:
        return [(site, layer) for site in self.sites for layer in self.layers]

    @property
    def axes(self) -> dict[str, pd.DataFrame]:
        """The labels of each axis."""
        every = {
            "layer": pd.DataFrame({"layer": self.layers}),
            "pos": self.groups,
            "role": self.groups,
            "head": pd.DataFrame({"head": range(self.heads or 0)}),
            "site": pd.DataFrame({"site": self.sites}),
        }
        return {"position" if name == "pos" else name: every[name] for name in self.over}

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(labels) for labels in self.axes.values())

    def arrange(self, scores: dict[Tap, Float[Tensor, "pair group head"]]) -> Float[np.ndarray, "pair *axes"]:
        """Scores by tap as the tensor of the map, one a pair."""
        by_layer = [torch.stack([scores[site, layer] for layer in self.layers]) for site in self.sites]
        full = torch.stack(by_layer).double().cpu().numpy()  # [site, layer, pair, group, head]
        group = "pos" if "pos" in self.over else "role"
        names = ["site", "layer", "pair", group, "head"]
        for name in ("head", group, "layer", "site"):  # what is no axis has one entry
            if name not in self.over:
                full = full.squeeze(names.index(name))
                names.remove(name)
        return full.transpose([names.index("pair"), *(names.index(name) for name in self.over)])

    def cell(self, number: int) -> Cell:
        """The cell with this number in the flattened map."""
        place = dict(zip(self.over, np.unravel_index(number, self.shape), strict=True))
        head = int(place["head"]) if "head" in place else None
        return Cell(
            self.sites[int(place.get("site", 0))],
            self.layers[int(place.get("layer", 0))],
            int(place.get("pos", place.get("role", 0))),
            head,
        )

    def group_of(self, contrast: Contrast) -> Int[Tensor, " n"]:
        """The group of each row of a contrast."""
        tokens = contrast.base.tokens
        if "pos" in self.over:
            column = torch.full((tokens.n_pos,), -1)
            column[self.groups["position"].tolist()] = torch.arange(len(self.groups))
            return column[contrast.position]
        if "role" not in self.over:
            return torch.zeros(len(contrast.order), dtype=torch.long)
        roles = ROLE_NAMES[tokens.roles[contrast.example, contrast.position].numpy()]
        return torch.tensor([self.groups["role"].tolist().index(role) for role in roles], dtype=torch.long)

    def summed(self, rows: Float[Tensor, "n *head"], contrast: Contrast) -> Float[Tensor, "pair group head"]:
        """Scores of rows added up by cell."""
        heads = rows[:, None] if rows.ndim == 1 else rows if self.heads else rows.sum(1, keepdim=True)
        out = heads.new_zeros(contrast.base.batch_size * len(self.groups), heads.shape[1])
        where = contrast.example * len(self.groups) + self.group_of(contrast)
        out.index_add_(0, where.to(heads.device), heads)
        return out.view(contrast.base.batch_size, len(self.groups), -1)


def make_cells(
    cfg: Any, contrasts: Sequence[Contrast], over: Sequence[str], sites: Sequence[str], layers: Sequence[int]
) -> Cells:
    """The cells of a map.

    Raises:
        InputError: an axis that is none, or that these sites or prompts do not have.
    """
    names = (over,) if isinstance(over, str) else tuple(over)
    for name in names:
        if name not in AXES or names.count(name) > 1:
            raise InputError(f"over={shown(over)}: name axes once each, of {', '.join(AXES)}")
    if not names or {"pos", "role"} <= set(names):
        raise InputError(
            f"over={shown(over)}: name at least one axis, and positions either by 'pos' or 'role'"
        )
    for word, values in (("layer", layers), ("site", sites)):
        if word not in names and len(values) > 1:
            raise InputError(
                f"over={shown(over)} sums over {len(values)} {word}s, which act on one another: add {word!r} to over, "
                f"or name one {word}"
            )
    for site in sites:
        if site not in (*SITES, "pattern"):
            raise InputError(f"site={shown(site)}: the sites of a map are {', '.join((*SITES, 'pattern'))}")
    heads = None
    if "head" in names:
        without = next((site for site in sites if not has_heads(site)), None)
        if without is not None:
            raise InputError(
                f"site={without!r} has no heads: leave 'head' out of over, or take z, q, k, v or pattern"
            )
        counts = {head_count(site, cfg) for site in sites}
        if len(counts) > 1:
            raise InputError("these sites have different numbers of heads: map q and z apart from k and v")
        heads = counts.pop()
    return Cells(names, tuple(sites), tuple(layers), _groups(contrasts, names), heads)


def _groups(contrasts: Sequence[Contrast], over: tuple[str, ...]) -> pd.DataFrame:
    first = contrasts[0].base.tokens
    if "pos" in over:
        roles, mask = first.roles[:1], contrasts[0].mask[:1]
        for one in contrasts:
            alike = one.mask.shape[1] == mask.shape[1]
            if not alike or not bool((one.base.tokens.roles == roles).all() and (one.mask == mask).all()):
                raise InputError(
                    "the prompts are laid out differently, so positions have no common number: write 'role' for 'pos' "
                    "in over, or give pairs of one layout"
                )
        positions = mask[0].nonzero()[:, 0].tolist()
        return position_labels(first, [0] * len(positions), positions)
    if "role" not in over:
        return pd.DataFrame({"positions": ["all"]})
    found = {int(role) for one in contrasts for role in one.base.tokens.roles[one.mask].unique()}
    return pd.DataFrame({"role": [ROLE_NAMES[role] for role in sorted(found)]})
