"""Which activations a cache holds, and which rows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import InputError, InterventionError
from gatelens.tokens import SelectorLike, TokenMap

_DECODER = ("blocks.", "ln_final", "unembed", "embed", "hook_embed", "hook_unembed")
_BY_QUERY = ("hook_attn_scores", "hook_pattern")


@dataclass(frozen=True, eq=False)
class KeptRows:
    """The positions a cache keeps of each example, and where each stands among them (−1: not kept)."""

    selector: SelectorLike
    positions: Int[Tensor, "batch kept"]
    place: Int[Tensor, "batch pos"] = field(repr=False)

    @staticmethod
    def of(tokens: TokenMap, selector: SelectorLike) -> KeptRows:
        """The rows a selector names.

        Raises:
            InputError: nothing is selected, or not as many positions in each example.
        """
        mask = tokens.mask(selector)
        counts = mask.sum(dim=1).tolist()
        if len(set(counts)) > 1 or not counts[0]:
            raise InputError(
                f"positions={selector!r} selects {counts} positions in the examples: select as many in each, "
                "one at least, or run the examples one by one"
            )
        positions = mask.nonzero()[:, 1].view(len(mask), -1)
        return KeptRows(selector, positions, torch.where(mask, mask.cumsum(dim=1) - 1, -1))

    def rows(self, value: Float[Tensor, "batch ..."], name: str) -> Float[Tensor, "batch ..."]:
        """The kept rows of the activation of this name; all of one that has no position axis."""
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
        """Where positions stand among the kept ones.

        Raises:
            InterventionError: a position was not kept; the message begins with ``owner``.
        """
        place = self.place.to(position.device)[example, position]
        if bool((place < 0).any()):
            missing = int(position[place < 0][0])
            raise InterventionError(
                f"{owner!r}: the cache keeps only positions={self.selector!r}, position {missing} is not "
                "among them: cache it too"
            )
        return place


def caching_hooks(
    names: Sequence[str],
    stored: dict[str, Tensor],
    kept: KeptRows | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[tuple[str, Callable[..., None]]]:
    """Hooks that put the activations of these names into ``stored``.

    Args:
        kept: which rows of the decoder's activations; None keeps all.
        device: where to put them; None leaves them where they are.
        dtype: what floating point values are cast to; None leaves them.
    """

    def caching(name: str) -> Callable[..., None]:
        def hook_fn(tensor: Any, hook: Any) -> None:
            value = tensor[0] if isinstance(tensor, tuple) else tensor
            if isinstance(value, Tensor):
                value = value.detach()
                if kept is not None and name.startswith(_DECODER):
                    value = kept.rows(value, name)
                stored[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return hook_fn

    return [(name, caching(name)) for name in names]
