"""Two batches whose positions are paired: one is run, the other is what its activations are moved towards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.engine.stacked_runs import compile_for
from gatelens.errors import InputError
from gatelens.inputs import VLMInputs
from gatelens.interventions.base import select
from gatelens.interventions.editing import RowFunction, edit
from gatelens.interventions.rows import Rows
from gatelens.model import HookedVLM
from gatelens.tokens import Role, SelectorLike, TokenMap

Tap: TypeAlias = tuple[str, int]  # a site and a layer
ToRows: TypeAlias = Callable[[Tap, Float[Tensor, "n ..."]], Float[Tensor, "n ..."] | None]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Base and source prompts, row by row.

    Attributes:
        base: the prompts that are run.
        source: those whose activations they get.
        mask: the positions of the base that are compared.
        example, position: of each of them, the rows of every activation below.
        source_mask: the positions of the source they are paired with.
        order: for each row the number of its pair among those of ``source_mask``.
    """

    base: VLMInputs
    source: VLMInputs
    mask: Bool[Tensor, "batch pos"]
    source_mask: Bool[Tensor, "batch source_pos"]
    order: Int[Tensor, " n"]

    @staticmethod
    def of(base: VLMInputs, source: VLMInputs, at: SelectorLike = "all") -> Contrast:
        """Pair the selected positions: the k-th of each role with the k-th of that role.

        Raises:
            InputError: batches of different size, nothing selected, or different numbers of positions of a role.
        """
        if base.batch_size != source.batch_size:
            raise InputError(
                f"{base.batch_size} clean and {source.batch_size} corrupt prompts: give one for each"
            )
        here, there = (select(one.tokens, at, f"at={at!r}") for one in (base, source))
        if not bool(here.any()):
            raise InputError(f"at={at!r} selects no position: name one that the prompts have")
        if torch.equal(base.tokens.roles, source.tokens.roles) and torch.equal(here, there):
            return Contrast(base, source, here, there, torch.arange(int(here.sum())))
        number = torch.full(there.shape, -1)
        number[there] = torch.arange(int(there.sum()))
        order = [_paired(i, base.tokens, source.tokens, here, there, number) for i in range(len(here))]
        return Contrast(base, source, here, there, torch.cat(order))

    @property
    def example(self) -> Int[Tensor, " n"]:
        return self.mask.nonzero(as_tuple=True)[0]

    @property
    def position(self) -> Int[Tensor, " n"]:
        return self.mask.nonzero(as_tuple=True)[1]


def _paired(
    example: int, base: TokenMap, source: TokenMap, here: Tensor, there: Tensor, number: Tensor
) -> Int[Tensor, " n"]:
    roles, others = base.roles[example], source.roles[example]
    order = torch.full(roles.shape, -1)
    for role in Role:
        mine, its = here[example] & (roles == role), there[example] & (others == role)
        if int(mine.sum()) != int(its.sum()):
            raise InputError(
                f"example {example}: {int(mine.sum())} and {int(its.sum())} positions of role "
                f"'{role.name.lower()}' cannot be paired: give prompts of one layout, or at= a selector that names "
                "as many in both"
            )
        order[mine] = number[example][its]
    return order[here[example]]


def taps_of(sites: Sequence[str], layers: Iterable[int]) -> list[Tap]:
    """Every site in every layer."""
    layers = list(layers)
    return [(site, layer) for site in sites for layer in layers]


def row_hooks(
    model: HookedVLM, tokens: TokenMap, masks: Mapping[str, Tensor], taps: Iterable[Tap], function: ToRows
) -> Any:
    """The hooks that let ``function`` see, and replace, the rows of each tap: those an edit by the engine replaces."""
    layers: dict[str, list[int]] = {}
    for site, layer in taps:
        layers.setdefault(site, []).append(layer)

    def of_site(site: str) -> RowFunction:
        def see(rows: Tensor, where: Rows) -> Tensor:
            new = function((site, where.layer), rows)
            return rows if new is None else new

        return see

    specs = [edit(of_site(s), at=masks[s], site=s, layers=sorted(ls)) for s, ls in layers.items()]  # type: ignore[arg-type]
    return compile_for(model, specs, tokens)


@torch.no_grad()
def record(
    model: HookedVLM, inputs: VLMInputs, mask: Bool[Tensor, "batch pos"], taps: Sequence[Tap], keep: int
) -> tuple[dict[Tap, Tensor], Float[Tensor, "batch kept d_vocab"]]:
    """The rows of each tap in a run, and its logits.

    Args:
        keep: of how many last positions logits are computed; 0 is all.
    """
    seen: dict[Tap, Tensor] = {}
    compiled = row_hooks(
        model, inputs.tokens, dict.fromkeys({s for s, _ in taps}, mask), taps, seen.setdefault
    )
    logits, _ = model.forward_step({**inputs.tensors, "logits_to_keep": keep}, compiled.pairs)
    compiled.check_fired()
    return seen, logits
