"""Two prompts whose positions are paired: one is run, the other is what its activations are moved towards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.bridge.last_rows import last_row_alone
from gatelens.engine.clean_run import ends_early
from gatelens.engine.stacked_runs import compile_for
from gatelens.interventions.cached import cached_values
from gatelens.interventions.editing import RowFunction, edit
from gatelens.interventions.rows import Rows
from gatelens.model import HookedVLM
from gatelens.readouts.prompt_pairs import Place, Side
from gatelens.tokens import TokenMap

Tap: TypeAlias = tuple[str, int]  # a site and a layer
ToRows: TypeAlias = Callable[[Tap, Float[Tensor, "n ..."]], Float[Tensor, "n ..."] | None]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A base and the run its activations are moved towards, row by row.

    Attributes:
        base: the prompt that is run, a batch of one.
        cache: of the source's run.
        places: positions of the base in order, each with the source's it is paired with; the rows of every activation.
    """

    base: Side
    cache: Any
    places: Sequence[Place]

    @property
    def tokens(self) -> TokenMap:
        return self.base.tokens

    @property
    def mask(self) -> Bool[Tensor, "1 pos"]:
        mask = torch.zeros(1, self.tokens.n_pos, dtype=torch.bool)
        mask[0, [here for here, _ in self.places]] = True
        return mask

    def source(self, tap: Tap) -> Float[Tensor, "n ..."]:
        """The source's activations."""
        there = torch.tensor([there for _, there in self.places])
        return cached_values(self.cache, *tap, torch.zeros_like(there), there, "attribution_map")

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Which row each of the base's positions is."""
        return {here: row for row, (here, _) in enumerate(self.places)}


def taps_of(sites: Sequence[str], layers: Iterable[int]) -> list[Tap]:
    """Every site in every layer."""
    layers = list(layers)
    return [(site, layer) for site in sites for layer in layers]


def row_hooks(
    model: HookedVLM,
    tokens: TokenMap,
    masks: Mapping[str, Tensor],
    taps: Iterable[Tap],
    function: ToRows,
    before: Sequence[Any] = (),
) -> Any:
    """The hooks that let ``function`` see, and replace, the rows of each tap: those an edit by the engine replaces.

    Interventions ``before`` act first.
    """
    layers: dict[str, list[int]] = {}
    for site, layer in taps:
        layers.setdefault(site, []).append(layer)

    def of_site(site: str) -> RowFunction:
        def see(rows: Tensor, where: Rows) -> Tensor:
            new = function((site, where.layer), rows)
            return rows if new is None else new

        return see

    specs = [edit(of_site(s), at=masks[s], site=s, layers=sorted(ls)) for s, ls in layers.items()]  # type: ignore[arg-type]
    return compile_for(model, [*before, *specs], tokens)


def reads_last_row(model: HookedVLM, hooks: Sequence[tuple[Any, Any]], keep: int) -> bool:
    """Whether a pass with these hooks needs no row of the last layer but the last, as it reads one row of logits.

    Args:
        keep: how many of the last rows of logits are read; 0 is all.
    """
    last = f"blocks.{int(model.cfg.n_layers) - 1}."
    inside = [name for name, _ in hooks if name.startswith(last) and name != f"{last}hook_resid_pre"]
    return keep == 1 and not inside and ends_early(model)


def ending_early(model: HookedVLM, early: bool) -> AbstractContextManager[None]:
    """The last layer computes of all rows but the last their keys and values alone, if ``early``."""
    return last_row_alone(model.bridge.blocks[-1]) if early else nullcontext()


@torch.no_grad()
def record(
    model: HookedVLM,
    side: Side,
    mask: Bool[Tensor, "1 pos"],
    taps: Sequence[Tap],
    streams: Sequence[int],
    keep: int = 1,
) -> tuple[dict[Tap, Tensor], dict[int, Float[Tensor, "1 pos d_model"]], Float[Tensor, "1 keep d_vocab"]]:
    """The rows of each tap in a run, the residual stream entering some layers, and its last logits (``keep=0`` all)."""
    seen: dict[Tap, Tensor] = {}
    entering: dict[int, Tensor] = {}

    def keep_stream(layer: int) -> Any:
        def hook_fn(tensor: Tensor, hook: Any) -> None:
            entering[layer] = tensor.clone()

        return hook_fn

    masks = dict.fromkeys({site for site, _ in taps}, mask)
    compiled = row_hooks(model, side.tokens, masks, taps, seen.setdefault, side.interventions)
    # after the interventions of the run, whose effect the stream holds
    hooks = [*compiled.pairs, *((f"blocks.{layer}.hook_resid_pre", keep_stream(layer)) for layer in streams)]
    with model.lock, ending_early(model, reads_last_row(model, hooks, keep)):
        logits, _ = model.forward_step({**side.inputs.tensors, "logits_to_keep": keep}, hooks)
    compiled.check_fired()
    return seen, entering, logits
