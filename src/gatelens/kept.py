"""Which rows a cache holds, when it does not hold every position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import InputError, InterventionError

if TYPE_CHECKING:
    from gatelens.tokens import SelectorLike, TokenMap

DECODER = ("blocks.", "ln_final", "unembed", "embed", "hook_embed", "hook_unembed")
_BY_QUERY = ("hook_attn_scores", "hook_pattern")


@dataclass(frozen=True, eq=False)
class Kept:
    """Positions kept of each example, and where each stands among the kept ones (−1: not kept)."""

    selector: SelectorLike
    positions: Int[Tensor, "batch kept"]
    place: Int[Tensor, "batch pos"] = field(repr=False)

    @staticmethod
    def of(tokens: TokenMap, selector: SelectorLike) -> Kept:
        """Raises InputError when nothing is selected, or differently much in different examples."""
        mask = tokens.mask(selector)
        counts = mask.sum(dim=1).tolist()
        if len(set(counts)) > 1 or not counts[0]:
            raise InputError(
                f"positions={selector!r} selects {counts} positions in the examples: select as many in each, "
                "one at least, or run the examples one by one"
            )
        positions = mask.nonzero()[:, 1].view(len(mask), -1)
        return Kept(selector, positions, torch.where(mask, mask.cumsum(dim=1) - 1, -1))

    def rows(self, value: Float[Tensor, "batch ..."], name: str) -> Float[Tensor, "batch ..."]:
        """The kept rows of an activation; one without a position axis is kept whole."""
        axis = 2 if name.endswith(_BY_QUERY) else 1
        n_pos = self.place.shape[1]
        if value.ndim <= axis or value.shape[axis] != n_pos or value.shape[0] != len(self.place):
            return value
        index = self.positions.to(value.device)
        shape = [len(index), *[1] * (axis - 1), index.shape[1], *[1] * (value.ndim - axis - 1)]
        size = [*value.shape]
        size[axis] = index.shape[1]
        return value.gather(axis, index.view(shape).expand(size))

    def find(
        self, example: Int[Tensor, " n"], position: Int[Tensor, " n"], owner: object
    ) -> Int[Tensor, " n"]:
        """Where positions stand among the kept ones. Raises InterventionError for one that was not kept."""
        found = self.place.to(position.device)[example, position]
        if bool((found < 0).any()):
            missing = int(position[found < 0][0])
            raise InterventionError(
                f"{owner!r}: the cache keeps only positions={self.selector!r}, position {missing} is not "
                "among them: cache it too"
            )
        return found
