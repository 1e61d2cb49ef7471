"""What of each run must be computed, and which runs share a batch.

Attention is causal: a run whose interventions begin at position p and layer l has every cell before p, and
every cell below l, in common with the clean run. The clean run is made once; a run starts again in layer l from
position p on.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from transformers.utils import output_capturing

from gatelens.engine.cuts import can_apply_cuts
from gatelens.hooked_model import HookedModel
from gatelens.inputs import VLMInputs
from gatelens.interventions.base import Intervention, Reach
from gatelens.interventions.knockouts import Knockout
from gatelens.tokens import Role, TokenMap

Specs = list[Intervention]  # what acts in one run
Starts = dict[tuple[int, int], list[int]]  # the runs that start at a position in a layer
MOST_ROWS = 4096  # tokens computed at once
LAYER_ROWS = (
    64  # what a layer of a pass costs beside its rows, in rows: its weights are read, its modules called
)
MOST_SCORES = 2**27  # attention scores of one layer held at once


@dataclass(frozen=True)
class Part:
    """Runs that are computed in one pass from ``position`` on, each from its own layer on, where it joins the others.

    Attributes:
        runs: their numbers, by the layers they begin in.
        layers: these layers, in order.
    """

    position: int
    runs: tuple[int, ...]
    layers: tuple[int, ...]

    def begun(self, layer: int) -> int:
        """How many runs a layer computes, the first of them all."""
        return bisect_right(self.layers, layer)

    def some(self, runs: Sequence[int]) -> Part:
        """Some of the runs alone."""
        chosen = [(run, layer) for run, layer in zip(self.runs, self.layers, strict=True) if run in runs]
        return Part(self.position, *(tuple(x) for x in zip(*chosen, strict=True)))

    def by_layer(self) -> list[tuple[int, tuple[int, ...]]]:
        """The runs that begin in each layer."""
        pairs = zip(self.layers, self.runs, strict=True)
        return [(layer, tuple(run for _, run in some)) for layer, some in groupby(pairs, itemgetter(0))]


@dataclass(frozen=True)
class Plan:
    """How a list of runs is computed: ``parts`` from the clean run, ``clean`` are it, ``full`` are computed whole."""

    n_layers: int
    n_pos: int
    batch: int
    parts: tuple[Part, ...] = ()
    clean: tuple[int, ...] = ()
    full: tuple[int, ...] = ()
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def needs_clean(self) -> bool:
        """Whether the clean run is made."""
        return bool(self.parts or self.clean)

    @property
    def cells(self) -> int:
        """(position, layer) cells computed, of one example; a plain run has n_pos * n_layers."""
        whole = self.n_pos * self.n_layers
        replayed = sum(
            (self.n_pos - part.position) * (self.n_layers - layer)
            for part in self.parts
            for layer in part.layers
        )
        return replayed + whole * (len(self.full) + int(self.needs_clean))

    @property
    def plain_cells(self) -> int:
        """Cells of the runs if each were computed plainly."""
        n_runs = sum(len(p.runs) for p in self.parts) + len(self.clean) + len(self.full)
        return n_runs * self.n_pos * self.n_layers


def reach_of(specs: Specs, tokens: TokenMap, cfg: Any) -> Reach | str | None:
    """Where a run begins to differ; None for a run without interventions; a reason where it is unknown."""
    if not specs:
        return None
    reaches = []
    for spec in specs:
        reach = spec.reach(tokens, cfg)
        if reach is None:
            return f"{type(spec).__name__} does not say where it begins (its reach)"
        reaches.append(reach)
    return Reach(min(r.position for r in reaches), min(r.layer for r in reaches))


def make_plan(
    model: HookedModel,
    inputs: VLMInputs,
    runs: Sequence[Specs],
    tokens: TokenMap | None = None,
    last_only: bool = False,
) -> Plan:
    """Decide for each run what is computed.

    Args:
        tokens: the map with generated positions when the runs decode.
        last_only: whether the logits of the last position are all that is read. Runs whose last layer can do with one
            row then share no pass with others.
    """
    prompt = inputs.tokens
    tokens = prompt if tokens is None else tokens
    n_layers, n_pos = int(model.cfg.n_layers), prompt.n_pos
    clean, full, reasons = [], [], {}
    starts: tuple[Starts, Starts] = ({}, {})  # of runs that end in one row, and of others
    why_not = None if can_apply_cuts(model) else "this decoder's attention is not exchangeable"
    if why_not is None and hooks_stand(model):
        why_not = "the decoder has hooks, and these may count positions from the first"
    for i, specs in enumerate(runs):
        reach = reach_of(specs, tokens, model.cfg)
        if reach is None:
            clean.append(i)
        elif isinstance(reach, str) or why_not is not None:
            full.append(i)
            reasons[i] = reach if isinstance(reach, str) else str(why_not)
        else:
            layer = min(reach.layer, n_layers - 1)  # what begins after the last layer starts again in it
            position = min(reach.position, n_pos - 1)
            if position == 0 and layer == 0:
                full.append(i)
                reasons[i] = "it begins at position 0 in layer 0"
            elif (reason := _why_not_from(position, model, prompt)) is not None:
                full.append(i)
                reasons[i] = reason
            else:
                kind = starts[last_only and any(_is_in_last_layer(spec, model.cfg) for spec in specs)]
                kind.setdefault((position, layer), []).append(i)
    if len(runs) == 1 and any(starts):
        full, starts, reasons = [0], ({}, {}), {0: "it is alone: there is nothing to share"}
    size = prompt.batch_size, n_pos, n_layers, int(model.cfg.n_heads)
    parts = tuple(part for kind in starts for part in _parts(kind, *size))
    return Plan(n_layers, n_pos, prompt.batch_size, parts, tuple(clean), tuple(sorted(full)), reasons)


def _is_in_last_layer(spec: Intervention, cfg: Any) -> bool:
    """Whether an intervention edits within the last layer; knockouts are part of its attention."""
    if isinstance(spec, Knockout):
        return False
    site, numbers = getattr(spec, "site", None), getattr(spec, "layer_numbers", None)
    return numbers is None or (site != "resid_pre" and int(cfg.n_layers) - 1 in numbers(cfg))


def hooks_stand(model: HookedModel) -> bool:
    """Whether the caller's own hooks are in the decoder: TransformerLens' on its points, or torch's on a block.

    They were written for passes over all positions of one batch and through all layers. Not counted are the hooks that
    transformers leaves on a model once ``output_attentions`` or ``output_hidden_states`` was asked for: they only look,
    and only when asked again.
    """
    if any(point.fwd_hooks for point in model.hook_points.of_decoder()):
        return True
    for bridged in model.bridge.blocks:
        for block in (bridged, bridged.original_component):
            hooks = [*block._forward_hooks.values(), *block._forward_pre_hooks.values()]
            if any(getattr(hook, "__module__", None) != output_capturing.__name__ for hook in hooks):
                return True
    return False


def _why_not_from(position: int, model: HookedModel, tokens: TokenMap) -> str | None:
    """Why a run cannot start inside the prompt here; None when it can."""
    two_way = (tokens.two_way >= 0).any(dim=0).nonzero()
    if len(two_way) and position <= int(two_way[-1]):
        return "it begins before tokens that attend in both directions"
    of_pictures = (tokens.roles == Role.IMAGE) | (tokens.roles == Role.ROW_BREAK)
    pictures = of_pictures.any(dim=0).nonzero()
    if model.family.adds_later and len(pictures) and position <= int(pictures[-1]):
        return "pictures are added to later layers of this family too"
    return None


def _parts(starts: Starts, batch: int, n_pos: int, n_layers: int, n_heads: int) -> tuple[Part, ...]:
    """Passes that cost the fewest rows; runs that start at neighbouring positions may share one.

    A pass computes every run from its first position on. Beside its rows each of its layers costs ``LAYER_ROWS``.
    """
    most = min(MOST_ROWS, MOST_SCORES // (n_heads * n_pos)) // batch  # rows of one example
    groups = _groups(starts, most, n_pos)
    n = len(groups)
    cheapest, cut = [0] * (n + 1), [0] * (n + 1)  # of the first i groups; where the last pass begins
    for end in range(1, n + 1):
        cheapest[end], runs, cells, first_layer = -1, 0, 0, n_layers
        for begin in range(end - 1, -1, -1):
            position, members = groups[begin]
            runs += len(members)
            if begin < end - 1 and runs * (n_pos - position) > most:
                break
            cells += sum(n_layers - layer for layer, _ in members)
            first_layer = min(first_layer, members[0][0])
            cost = cells * batch * (n_pos - position) + LAYER_ROWS * (n_layers - first_layer)
            if cheapest[end] < 0 or cheapest[begin] + cost <= cheapest[end]:
                cheapest[end], cut[end] = cheapest[begin] + cost, begin
    parts: list[Part] = []
    while n:
        members = sorted(member for _, some in groups[cut[n] : n] for member in some)
        layers, runs_of_part = zip(*members, strict=True)
        parts.append(Part(groups[cut[n]][0], runs_of_part, layers))
        n = cut[n]
    return tuple(parts[::-1])


def _groups(starts: Starts, most: int, n_pos: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """By position, (layer, run) of the runs that start there, as many at once as fit into a pass."""
    by_position: dict[int, list[tuple[int, int]]] = {}
    for (position, layer), runs in starts.items():
        by_position.setdefault(position, []).extend((layer, run) for run in runs)
    groups = []
    for position, members in sorted(by_position.items()):
        members.sort()
        passes = math.ceil(len(members) / max(1, most // (n_pos - position)))
        size = math.ceil(len(members) / passes)
        groups += [(position, members[i : i + size]) for i in range(0, len(members), size)]
    return groups
