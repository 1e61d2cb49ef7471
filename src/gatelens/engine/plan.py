"""What of each run must be computed, and which runs share a batch.

Attention is causal: a run whose interventions begin at position p and layer l has every cell before p, and
every cell below l, in common with the clean run. The clean run is made once; a run starts again in layer l from
position p on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import output_capturing

from gatelens.engine.cuts import can_apply_cuts
from gatelens.hooked_model import HookedModel
from gatelens.inputs import VLMInputs
from gatelens.interventions.base import Intervention, Reach
from gatelens.tokens import Role, TokenMap

Specs = list[Intervention]  # what acts in one run
GOOD_ROWS = 128  # tokens at once that keep the cores busy: fewer, and runs of neighbouring layers are joined
JOINED_ROWS = 512  # of runs that start at different positions: so many keep the cores as busy as more would
MOST_ROWS = 4096
PASS_ROWS = 48  # what the beginning of a pass costs, in rows
MOST_SCORES = 2**27  # attention scores of one layer held at once


@dataclass(frozen=True)
class Part:
    """Runs that are computed in one pass: from ``position`` and ``layer`` on."""

    position: int
    layer: int
    runs: tuple[int, ...]


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
            len(p.runs) * (self.n_pos - p.position) * (self.n_layers - p.layer) for p in self.parts
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
    model: HookedModel, inputs: VLMInputs, runs: Sequence[Specs], tokens: TokenMap | None = None
) -> Plan:
    """Decide for each run what is computed.

    ``tokens``: the map with generated positions when the runs decode.
    """
    prompt = inputs.tokens
    tokens = prompt if tokens is None else tokens
    n_layers, n_pos = int(model.cfg.n_layers), prompt.n_pos
    clean, full, reasons = [], [], {}
    starts: dict[tuple[int, int], list[int]] = {}
    why_not = None if can_apply_cuts(model) else "this decoder's attention is not exchangeable"
    if why_not is None and hooks_stand(model):
        why_not = "hooks stand in the decoder, and they may count positions from the first"
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
                starts.setdefault((position, layer), []).append(i)
    if len(runs) == 1 and starts:
        full, starts, reasons = [0], {}, {0: "it is alone: there is nothing to share"}
    parts = _parts(starts, prompt.batch_size, n_pos, int(model.cfg.n_heads))
    return Plan(n_layers, n_pos, prompt.batch_size, parts, tuple(clean), tuple(sorted(full)), reasons)


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


def _parts(
    starts: dict[tuple[int, int], list[int]], batch: int, n_pos: int, n_heads: int
) -> tuple[Part, ...]:
    """Runs of one layer share passes, also at neighbouring positions; a few rows wait for the layer below."""
    parts: list[Part] = []
    layers = sorted({layer for _, layer in starts}, reverse=True)
    waiting: list[tuple[int, int]] = []  # (position, run)
    for layer in layers:
        waiting += [(p, run) for (p, at), runs in starts.items() if at == layer for run in runs]
        joined = _joined(sorted(waiting), batch, n_pos, n_heads)
        waiting = []
        for position, runs in joined:
            if layer != layers[-1] and len(runs) * batch * (n_pos - position) < GOOD_ROWS:
                waiting += runs
            else:
                parts.append(Part(position, layer, tuple(run for _, run in runs)))
    return tuple(parts)


def _joined(
    waiting: Sequence[tuple[int, int]], batch: int, n_pos: int, n_heads: int
) -> list[tuple[int, list[tuple[int, int]]]]:
    """The runs, in the order of their positions, cut into passes where that costs the fewest rows.

    A pass computes every run from its first position on, and costs ``PASS_ROWS`` more than its rows.
    """
    n = len(waiting)
    cheapest, cut = [0] * (n + 1), [0] * (n + 1)  # of the first i runs; where the last pass begins
    for end in range(1, n + 1):
        cheapest[end] = -1
        for begin in range(end - 1, -1, -1):
            position = waiting[begin][0]
            rows = (end - begin) * batch * (n_pos - position)
            together = begin == end - 1 or position == waiting[end - 1][0]
            if begin < end - 1 and rows > (MOST_ROWS if together else JOINED_ROWS):
                break
            if begin < end - 1 and rows * n_heads * n_pos > MOST_SCORES:
                break
            cost = cheapest[begin] + rows + PASS_ROWS
            if cheapest[end] < 0 or cost <= cheapest[end]:
                cheapest[end], cut[end] = cost, begin
    passes = []
    while n:
        passes.append((waiting[cut[n]][0], list(waiting[cut[n] : n])))
        n = cut[n]
    return passes[::-1]
