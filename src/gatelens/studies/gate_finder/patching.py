"""Whose answer comes out when the residual stream at some places comes from an example of another class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.engine import last_logits
from gatelens.measures.overlap import distribution_overlap
from gatelens.studies.common import prepare
from gatelens.studies.gate_finder.places import Batch, keyed_columns
from gatelens.studies.gate_finder.setup import Setup

CACHE = 1 << 27  # numbers of a cache held at once


@dataclass
class Moved:
    """Outcomes of patching, one row a set.

    ``flippable``: the pair's two clean predictions differ; ``flipped``: the prediction became the other example's;
    ``gain``: by how much Σ min(p, q) with the other's clean answer rose.
    """

    flippable: Bool[np.ndarray, " pair"]
    flipped: Float[np.ndarray, "set pair"]
    gain: Float[np.ndarray, "set pair"]


def draw_pairs(setup: Setup, n_pairs: int) -> dict[int, int]:
    """For the first examples another of a different class: base to target."""
    rng = np.random.default_rng([setup.seed, 77])
    out = {}
    for i in range(min(n_pairs, setup.n)):
        out[i] = int(rng.choice(np.flatnonzero(setup.labels != setup.labels[i])))
    return out


def patched(
    setup: Setup,
    answers: Mapping[int, Float[Tensor, " d_vocab"]],
    sets: Sequence[Sequence[int]],
    n_pairs: int,
    layers: Sequence[Any] | None = None,
) -> Moved:
    """Outcomes when sets of places are patched from examples of another class, pair by pair.

    ``answers``: clean distributions by example; ``layers``: those of each set, None is all of them together.
    """
    from gatelens.interventions import patch

    pairs = draw_pairs(setup, n_pairs)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(setup.n_layers)]
    flipped, gain = (np.full((len(sets), len(pairs)), np.nan) for _ in range(2))
    flippable = np.zeros(len(pairs), dtype=bool)
    for batch in setup.batches():
        rows = [row for row, i in enumerate(batch.examples) if i in pairs]
        if not rows:
            continue
        numbers = [batch.examples[row] for row in rows]
        at = [list(pairs).index(i) for i in numbers]
        here = _some(batch, rows)
        there = _batch_of(setup, [pairs[i] for i in numbers])
        base, target = (
            torch.stack([answers[i] for i in side]) for side in (numbers, [pairs[i] for i in numbers])
        )
        flippable[at] = (base.argmax(-1) != target.argmax(-1)).numpy()
        before = distribution_overlap(base, target)
        for some in _groups(sets, len(rows) * setup.n_layers * int(setup.model.cfg.d_model)):
            needed = sorted({p for s in some for p in sets[s]})
            _, cache = cached(setup, there.inputs, there.mask(needed), names)
            runs: list[Any] = []
            for s in some:
                both = ((here.columns >= 0) & (there.columns >= 0)).all(1)
                mine, theirs = here.mask(sets[s]), there.mask(sets[s])
                if not bool(both.all()):  # places that only one of a pair has stay as they are
                    mine, theirs = _common(here, there, sets[s])
                where = None if layers is None else layers[s]
                runs.append(patch(cache, mine, source=theirs, layers=where) if bool(mine.any()) else None)
            for s, logits in zip(some, last_logits(setup.model, here.inputs, runs), strict=True):
                p = logits.float().cpu().softmax(-1)
                flipped[s, at] = (p.argmax(-1) == target.argmax(-1)).double().numpy()
                gain[s, at] = (distribution_overlap(p, target) - before).double().numpy()
    return Moved(flippable, flipped, gain)


def cached(
    setup: Setup, inputs: Any, mask: Bool[Tensor, "batch pos"], names: Sequence[str]
) -> tuple[Tensor, Any]:
    """A run's logits and cache, of the masked rows alone where every example has as many."""
    alike = len(set(mask.sum(1).tolist())) == 1 and bool(mask.any())
    return setup.model.run_with_cache(inputs, names_filter=names, positions=mask if alike else None)


def _groups(sets: Sequence[Sequence[int]], numbers: int) -> list[list[int]]:
    """Sets whose source activations, of so many numbers a place, fit into memory together."""
    most = max(1, CACHE // numbers)
    out: list[list[int]] = [[]]
    held = 0
    for s, one in enumerate(sets):
        if out[-1] and held + len(one) > most:
            out.append([])
            held = 0
        out[-1].append(s)
        held += len(one)
    return out


def _batch_of(setup: Setup, numbers: Sequence[int]) -> Batch:
    """A batch of any examples, its places found as before."""
    inputs = prepare(setup.model, [setup.examples[i] for i in numbers])
    columns = keyed_columns(inputs.tokens, setup.places.all)
    return Batch(inputs, tuple(numbers), columns, torch.zeros_like(inputs.tokens.roles, dtype=torch.bool))


def _some(batch: Batch, rows: Sequence[int]) -> Batch:
    if list(rows) == list(range(len(batch.examples))):
        return batch
    return Batch(
        batch.inputs.select(rows), tuple(batch.examples[r] for r in rows), batch.columns[list(rows)],
        batch.behind[list(rows)],
    )  # fmt: skip


def _common(here: Batch, there: Batch, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The positions of places that both examples of a pair have."""
    both = (here.columns >= 0) & (there.columns >= 0)
    sides = []
    for side in (here, there):
        columns = torch.where(both, side.columns, -1)
        sides.append(Batch(side.inputs, side.examples, columns, side.behind).mask(places))
    return sides[0], sides[1]
