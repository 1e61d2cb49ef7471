"""The metric of circuits: runs of the clean prompts in which all parts outside a circuit are as in the corrupt run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.data import Pair
from gatelens.engine import last_logits
from gatelens.errors import InputError
from gatelens.inputs import VLMInputs
from gatelens.measures.logits import Metric
from gatelens.model import HookedVLM
from gatelens.readouts.circuits.edge_patches import EdgePatches
from gatelens.readouts.circuits.node_patches import NodePatches
from gatelens.readouts.gradients.contrast import Tap, record, row_hooks
from gatelens.readouts.gradients.passes import MOST_ROWS
from gatelens.readouts.map_metrics import MapMetric, number_of
from gatelens.readouts.prompt_pairs import Side, masks_of, same_places, sides


@dataclass(eq=False)
class Prompts:
    """Pairs whose prompts have one length, side by side.

    Attributes:
        numbers: of the pairs.
        clean: their clean prompts.
        stream: what enters layer 0 in the clean run, so that no pass computes the vision tower again.
        corrupt: activations of the corrupt run, by tap.
        owners: which part each activation belongs to; of nodes alone.
        metrics: one per pair.
    """

    numbers: list[int]
    clean: VLMInputs
    stream: Float[Tensor, "pair pos d_model"]
    corrupt: dict[Tap, Float[Tensor, "pair pos ..."]]
    owners: Mapping[Tap, Tensor]
    metrics: list[Metric]


class CircuitRuns:
    """Runs of circuits over pairs.

    Attributes:
        clean, corrupt: the metric of the two runs of each pair, nothing patched.

    Raises:
        InputError: the two prompts of a pair have no common positions.
    """

    def __init__(
        self,
        model: HookedVLM,
        pairs: Sequence[Pair],
        metric: MapMetric,
        patches: EdgePatches | NodePatches,
        chat: bool,
        bar: Any,
    ) -> None:
        self.model, self.pairs, self.metric, self.patches = model, pairs, metric, patches
        self.chat, self.bar = chat, bar
        self.clean, self.corrupt = np.full((2, len(pairs)), np.nan)
        both = [sides(model, [pair], chat) for pair in pairs]
        groups: dict[tuple[int, bool], list[int]] = {}
        for number, (clean, corrupt) in enumerate(both):
            _check_places(clean, corrupt, self._called(number))
            has_picture = pairs[number].clean.image is not None
            groups.setdefault((clean.tokens.n_pos, has_picture), []).append(number)
        self.groups = [self._prompts(numbers, both) for numbers in groups.values()]

    def _called(self, number: int) -> str:
        return f"pair {number} ({self.pairs[number]!r})"

    def _prompts(self, numbers: list[int], both: Sequence[tuple[Side, Side]]) -> Prompts:
        """Clean prompts in one batch, and the corrupt runs recorded one by one, as noise is drawn by the example."""
        some = [self.pairs[number] for number in numbers]
        clean = both[numbers[0]][0].inputs
        if len(numbers) > 1:
            images = None if some[0].clean.image is None else [one.clean.image for one in some]
            clean = self.model.prepare(images=images, text=[one.clean.prompt for one in some], chat=self.chat)
        metrics, streams = list[Metric](), list[Tensor]()
        corrupt: dict[Tap, list[Tensor]] = {tap: [] for tap in self.patches.recorded}
        for number in numbers:
            own, other = both[number]
            metrics.append(self._metric(number, own))
            keep = 1 if getattr(metrics[-1], "last_only", False) else 0
            _, entering, logits = record(self.model, own, _every(own), (), (0,), keep)
            streams.append(entering[0])
            self.clean[number] = number_of(metrics[-1], logits, self._called(number))
            seen, _, logits = record(self.model, other, _every(other), self.patches.recorded, (), keep)
            self.corrupt[number] = number_of(metrics[-1], logits, self._called(number))
            for tap, rows in seen.items():
                corrupt[tap].append(self.patches.kept_of(tap, rows)[None])
        kept = {tap: torch.cat(rows) for tap, rows in corrupt.items()}
        masks = [masks_of(one) for one in some]
        owners = self.patches.owners(clean.tokens, masks, self._called(numbers[0]))
        return Prompts(numbers, clean, torch.cat(streams), kept, owners, metrics)

    def _metric(self, number: int, clean: Side) -> Metric:
        logits = None
        if self.metric.needs_clean:
            logits = last_logits(self.model, clean.inputs, [None])[0][:, None]
        return self.metric.of([self.pairs[number]], [number], logits)

    @torch.no_grad()
    def values(self, circuits: Bool[np.ndarray, "circuit part"]) -> Float[np.ndarray, "circuit pair"]:
        """The metric of each circuit, in every pair."""
        found = np.full((len(circuits), len(self.pairs)), np.nan)
        for group in self.groups:
            rows = [(i, j) for i in range(len(circuits)) for j in range(len(group.numbers))]
            size = max(1, MOST_ROWS // group.clean.tokens.n_pos)
            for first in range(0, len(rows), size):
                some = rows[first : first + size]
                dropped = ~circuits[[i for i, _ in some]]
                measured = self._run(group, [j for _, j in some], torch.from_numpy(dropped))
                for (i, j), value in zip(some, measured, strict=True):
                    found[i, group.numbers[j]] = value
                self.bar.update(len(some))
        return found

    def _run(self, group: Prompts, members: list[int], dropped: Bool[Tensor, "row part"]) -> list[float]:
        """One pass: a row has its own pair and its own dropped parts."""
        inputs = group.clean.select(members)
        corrupt = {tap: rows[members] for tap, rows in group.corrupt.items()}
        owners = {tap: rows[members] for tap, rows in group.owners.items()}
        taps, function = self.patches.acting(corrupt, dropped, owners)
        every = torch.ones(inputs.tokens.roles.shape, dtype=torch.bool)
        masks = dict.fromkeys({site for site, _ in taps}, every)
        last_only = all(getattr(metric, "last_only", False) for metric in group.metrics)
        with self.model.lock, self.model.begun_at(0, group.stream[members], inputs) as tensors:
            compiled = row_hooks(self.model, inputs.tokens, masks, taps, function)
            logits, _ = self.model.forward_step({**tensors, "logits_to_keep": int(last_only)}, compiled.pairs)
            compiled.check_fired()
        return [
            number_of(group.metrics[member], logits[row : row + 1], self._called(group.numbers[member]))
            for row, member in enumerate(members)
        ]


def _every(side: Side) -> Bool[Tensor, "1 pos"]:
    return torch.ones(1, side.tokens.n_pos, dtype=torch.bool)


def _check_places(clean: Side, corrupt: Side, where: str) -> None:
    """Raise InputError where a position of one prompt has none in the other."""
    places = same_places(clean.tokens, corrupt.tokens, where)
    n_here, n_there = clean.tokens.n_pos, corrupt.tokens.n_pos
    if places != [(i, i) for i in range(n_here)] or n_here != n_there:
        raise InputError(
            f"{where}: its prompts have {n_here} and {n_there} positions, of which {len(places)} pair; what is "
            "outside a circuit is patched everywhere: give pairs of one prompt"
        )
