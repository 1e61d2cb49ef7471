"""What is measured of the places: each measurement is a batch of work, with the function that does it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.data import Example
from gatelens.engine import last_logits, look
from gatelens.interventions import knockout, patch
from gatelens.interventions.visibility import visible_keys
from gatelens.measures.overlap import distribution_overlap, neighbourhood_overlap
from gatelens.model import HookedVLM
from gatelens.studies.gate_finder.places import LocatedPrompts, Place, locate, varying_inputs
from gatelens.studies.options import How
from gatelens.studies.section import Batch, Tables

CACHE = 1 << 27  # numbers of a cache held at once
LEAST_LOG_PROB = -1e4


@dataclass(frozen=True)
class Prompts(Batch):
    """Some of the examples; ``numbers`` are theirs among all."""

    numbers: tuple[int, ...]
    examples: Sequence[Example]


@dataclass(frozen=True)
class VaryingInputs(Prompts):
    """Where the model's input differs from that of another example (None: the first of these)."""

    reference: Example | None

    def measure(self, model: HookedVLM) -> Tables:
        """``positions``: see :func:`~gatelens.studies.gate_finder.places.varying_inputs`."""
        return {"positions": varying_inputs(model, self.examples, self.numbers, self.reference)}


@dataclass(frozen=True)
class PlacedPrompts(Prompts):
    """Some of the examples, and the candidates of a gate in them."""

    places: tuple[Place, ...]
    tokens: tuple[int, ...]  # first tokens of the class names
    labels: tuple[int, ...]  # the right one of each example, as a number into ``tokens``


@dataclass(frozen=True)
class CutAnswers(PlacedPrompts):
    """Answers when nothing after the picture reads the places of a set, but the ``spare`` ones."""

    how: How
    sets: Sequence[Sequence[int]]
    spare: tuple[int, ...] = ()

    def measure(self, model: HookedVLM) -> Tables:
        """``answers``: ``set, example, right, log_prob``, and the log-probability of each class by number."""
        prompts = locate(model, self.examples, self.places)
        runs = [knockouts(prompts, self.places, one, self.how, self.spare) for one in self.sets]
        tokens, labels = torch.tensor(self.tokens), torch.tensor(self.labels)
        tables = []
        for number, logits in enumerate(last_logits(model, prompts.inputs, runs)):
            values = logits.float().cpu()
            classes = values.log_softmax(-1)[:, tokens].double().clamp_min(LEAST_LOG_PROB)
            table = pd.DataFrame(classes.numpy(), columns=[str(c) for c in range(len(tokens))])
            right = (values.argmax(-1) == tokens[labels]).double().numpy()
            log_prob = classes.gather(1, labels[:, None])[:, 0].numpy()
            tables.append(table.assign(set=number, example=self.numbers, right=right, log_prob=log_prob))
        return {"answers": pd.concat(tables, ignore_index=True)}


def knockouts(
    prompts: LocatedPrompts, places: Sequence[Place], cut: Iterable[int], how: How, spare: Iterable[int] = ()
) -> list[Any] | None:
    """Knockouts after which nothing after the picture reads the places; None when no example has one.

    A place after the picture goes on reading itself, and ``spare`` places read what they did.
    """
    cut = list(cut)
    readers = prompts.after & ~prompts.mask(spare)
    alone = [[p] for p in cut if not places[p].in_picture]
    keys = [prompts.mask(one) for one in ([p for p in cut if places[p].in_picture], *alone)]
    return [knockout(readers & ~key, key, how=how) for key in keys if bool(key.any())] or None


@dataclass(frozen=True)
class PatchedAnswers(PlacedPrompts):
    """Answers when the residual stream at sets of places comes from ``sources``, the other examples of the pairs."""

    sources: Sequence[Example]
    sets: Sequence[Sequence[int]]
    layers: Sequence[int | None] = ()  # of each set; None is all of them together

    def measure(self, model: HookedVLM) -> Tables:
        """``moved``: ``set, example, flippable, flipped, gain``.

        ``flippable``: the pair's two clean predictions differ; ``flipped``: the prediction became the other
        example's; ``gain``: by how much Σ min(p, q) with the other's clean answer rose.
        """
        here, there = _common(*(locate(model, e, self.places) for e in (self.examples, self.sources)))
        base, target = (
            last_logits(model, side.inputs, [None])[0].float().cpu().softmax(-1) for side in (here, there)
        )
        before, wanted = distribution_overlap(base, target), target.argmax(-1)
        pair = {"example": self.numbers, "flippable": (base.argmax(-1) != wanted).numpy()}
        layers = self.layers or [None] * len(self.sets)
        n_layers = int(model.cfg.n_layers)
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)]
        tables = []
        for group in _groups(self.sets, len(self.numbers) * n_layers * int(model.cfg.d_model)):
            needed = {p for s in group for p in self.sets[s]}
            cache = _cached(model, there, needed, names)
            runs: list[Any] = []
            for s in group:
                at, source = here.mask(self.sets[s]), there.mask(self.sets[s])
                runs.append(patch(cache, at, source=source, layers=layers[s]) if bool(at.any()) else None)
            for s, logits in zip(group, last_logits(model, here.inputs, runs), strict=True):
                p = logits.float().cpu().softmax(-1)
                flipped = (p.argmax(-1) == wanted).double().numpy()
                gain = (distribution_overlap(p, target) - before).double().numpy()
                tables.append(pd.DataFrame({"set": s, **pair, "flipped": flipped, "gain": gain}))
        return {"moved": pd.concat(tables, ignore_index=True)}


def _common(here: LocatedPrompts, there: LocatedPrompts) -> list[LocatedPrompts]:
    """Both sides with the places that only one example of a pair has left out: they stay as they are."""
    both = (here.columns >= 0) & (there.columns >= 0)
    return [replace(side, columns=torch.where(both, side.columns, -1)) for side in (here, there)]


def _groups(sets: Sequence[Sequence[int]], numbers: int) -> list[list[int]]:
    """Sets whose source activations, each place with this many numbers, fit into memory together."""
    groups: list[list[int]] = [[]]
    held = 0
    for s, one in enumerate(sets):
        held += len(one)
        if groups[-1] and held > max(1, CACHE // numbers):
            groups.append([])
            held = len(one)
        groups[-1].append(s)
    return groups


def _cached(model: HookedVLM, prompts: LocatedPrompts, places: Iterable[int], names: Sequence[str]) -> Any:
    """A run's cache, of the places alone where every example has as many."""
    mask = prompts.mask(places)
    alike = len(mask.sum(1).unique()) == 1 and bool(mask.any())
    return model.run_with_cache(prompts.inputs, names_filter=names, positions=mask if alike else None)[1]


@dataclass(frozen=True)
class AttentionReceived(PlacedPrompts):
    """The attention each place gets from the positions after the picture that can read it, all heads."""

    def measure(self, model: HookedVLM) -> Tables:
        """``attention``: ``example, place, value``, and ``layers``: ``layer, place, total``.

        The mean attention a place gets over the rows that can read it (NG's f_j), as a share of what all candidates
        get: the mean over layers, and the sum over examples.
        """
        prompts = locate(model, self.examples, self.places)
        after, columns, n_layers = prompts.after, prompts.columns, int(model.cfg.n_layers)
        received = torch.zeros(len(after), n_layers, after.shape[1])

        def see(layer: int, pattern: Tensor, low: int) -> None:
            rows = slice(low, low + pattern.shape[2])
            mean = pattern.float().mean(1).cpu() * after[:, rows, None]
            # a position's reading of itself is no passing on
            mean[:, torch.arange(mean.shape[1]), torch.arange(rows.start, rows.stop)] = 0
            received[:, layer] += mean.sum(1)

        look(model, prompts.inputs, after, see)
        places = range(len(self.places))
        readers = torch.stack([_readers(prompts, p).sum(1) for p in places], dim=1)
        index = columns.clamp_min(0)[:, None].expand(-1, n_layers, -1)
        mean = received.gather(2, index) * (columns >= 0)[:, None] / readers.clamp_min(1)[:, None]
        total = mean.sum(-1, keepdim=True)
        share = torch.where(total > 0, mean / total.clamp_min(1e-30), mean).double()
        row, place = (columns >= 0).nonzero(as_tuple=True)
        numbers = np.array(self.numbers)[row.numpy()]
        table = {"example": numbers, "place": place.numpy(), "value": share.mean(1)[row, place].numpy()}
        layers = pd.DataFrame(share.sum(0).numpy(), columns=list(places)).rename_axis("layer").reset_index()
        layers = layers.melt("layer", var_name="place", value_name="total")
        return {"attention": pd.DataFrame(table), "layers": layers}


def _readers(prompts: LocatedPrompts, place: int) -> Bool[Tensor, "batch pos"]:
    """The positions after the picture that can read a place: those after it, or of its two-way block."""
    key = prompts.mask([place])
    return prompts.after & ~key & visible_keys(key, prompts.inputs.tokens).bool()


@dataclass(frozen=True)
class ClassOverlap(Batch):
    """Whether the class can be read off the residual stream entering each layer: the classes of ``k`` neighbours."""

    parts: Sequence[PlacedPrompts]
    layers: tuple[int, ...]
    k: int

    def measure(self, model: HookedVLM) -> Tables:
        """``overlap``: ``place, layer, example, value``, χ with the labels at the place's best of these layers."""
        n, n_places = sum(len(part.numbers) for part in self.parts), len(self.parts[0].places)
        streams = torch.zeros(len(self.layers), n_places, n, int(model.cfg.d_model))
        has, labels = torch.zeros(n_places, n, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
        for part in self.parts:
            prompts, numbers = locate(model, part.examples, part.places), list(part.numbers)
            streams[:, :, numbers] = _streams(model, prompts, self.layers).permute(0, 2, 1, 3)
            has[:, numbers] = (prompts.columns >= 0).T
            labels[numbers] = torch.tensor(part.labels)
        tables = [pd.DataFrame(columns=["place", "layer", "example", "value"])]
        for p in range(n_places):
            if int(has[p].sum()) <= self.k:
                continue
            values = [
                neighbourhood_overlap(stream[p][has[p]], labels[has[p]], self.k).double()
                for stream in streams
            ]
            best = max(range(len(values)), key=lambda at: float(values[at].mean()))
            where = {"place": p, "layer": self.layers[best], "example": has[p].nonzero()[:, 0].numpy()}
            tables.append(pd.DataFrame({**where, "value": values[best].numpy()}))
        return {"overlap": pd.concat(tables[1:] or tables, ignore_index=True)}


def _streams(
    model: HookedVLM, prompts: LocatedPrompts, layers: Sequence[int]
) -> Float[Tensor, "layer batch place d_model"]:
    """The residual stream entering some layers at every place, 0 where an example lacks one."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    columns = prompts.columns
    cache = _cached(model, prompts, range(columns.shape[1]), names)
    index = columns.clamp_min(0)
    if cache.kept is not None:
        index = cache.kept.place.gather(1, index).clamp_min(0)
    rows = torch.arange(len(columns))[:, None]
    return torch.stack([cache[name].float().cpu()[rows, index] * (columns >= 0)[..., None] for name in names])
