"""What is measured of the places: each measurement is a batch of work, with the function that does it.

``VaryingInputs`` tells the picture; ``CutAnswers`` are answers with sets of places cut, ``PatchedAnswers`` those with
another picture's residual stream; ``AttentionReceived`` and ``ClassOverlap`` look at the unmodified model;
``CutOrder`` chooses in which order places are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from gatelens.measures.concentration import greedy_order, prune, share_removed
from gatelens.measures.overlap import distribution_overlap, neighbourhood_overlap
from gatelens.model import HookedVLM
from gatelens.studies.gate_finder.places import LocatedPrompts, Place, locate, varying_inputs
from gatelens.studies.options import How
from gatelens.studies.section import Batch, Tables

CACHE = 1 << 27  # numbers of a cache held at once
PART = 0.9  # of what the picture is worth: a set that takes this much carries it
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
    """Some of the examples, and the candidates of a gate in them.

    Attributes:
        places: the candidates.
        tokens: first tokens of the class names.
        labels: the right one of each example, as a number into ``tokens``.
    """

    places: tuple[Place, ...]
    tokens: tuple[int, ...]
    labels: tuple[int, ...]

    def located(self, model: HookedVLM) -> LocatedPrompts:
        """The prompts, ready to run."""
        return locate(model, self.examples, self.places)

    def answers(
        self,
        model: HookedVLM,
        prompts: LocatedPrompts,
        sets: Sequence[Iterable[int]],
        how: How,
        spare: Iterable[int] = (),
    ) -> pd.DataFrame:
        """Answers when each set is cut: ``set, example, right, log_prob``, and the log-probability of each class by
        its number."""
        runs = [knockouts(prompts, self.places, one, how, spare) for one in sets]
        wanted, tables = torch.tensor(self.tokens)[list(self.labels)], []
        for number, logits in enumerate(last_logits(model, prompts.inputs, runs)):
            values = logits.float().cpu()
            classes = values.log_softmax(-1)[:, list(self.tokens)].double().clamp_min(LEAST_LOG_PROB)
            table = pd.DataFrame(classes.numpy(), columns=[str(c) for c in range(len(self.tokens))])
            right = (values.argmax(-1) == wanted).double().numpy()
            log_prob = classes.gather(1, torch.tensor(self.labels)[:, None])[:, 0].numpy()
            facts = {"set": number, "example": self.numbers, "right": right, "log_prob": log_prob}
            tables.append(table.assign(**facts))
        return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class CutAnswers(PlacedPrompts):
    """Answers when nothing after the picture reads the places of a set; ``spare`` places go on reading.

    The empty set is the unmodified model.
    """

    how: How
    sets: Sequence[Sequence[int]]
    spare: tuple[int, ...] = ()

    def measure(self, model: HookedVLM) -> Tables:
        """``answers``: see :meth:`PlacedPrompts.answers`."""
        return {"answers": self.answers(model, self.located(model), self.sets, self.how, self.spare)}


def knockouts(
    prompts: LocatedPrompts, places: Sequence[Place], cut: Iterable[int], how: How, spare: Iterable[int] = ()
) -> list[Any] | None:
    """Knockouts after which nothing after the picture reads the places; None when no example has one.

    A place after the picture goes on reading itself, and ``spare`` places read what they did.
    """
    cut = list(cut)
    readers = prompts.after & ~prompts.mask(spare)
    picture = prompts.mask([p for p in cut if places[p].in_picture])
    specs = [knockout(readers, picture, how=how)] if bool(picture.any()) else []
    for p in cut:
        if not places[p].in_picture:
            key = prompts.mask([p])
            if bool(key.any()):
                specs.append(knockout(readers & ~key, key, how=how))
    return specs or None


@dataclass(frozen=True)
class PatchedAnswers(PlacedPrompts):
    """Answers when the residual stream at sets of places comes from other examples, pair by pair.

    Attributes:
        sources: the other example of each pair.
        sets: the places.
        layers: those of each set; None is all of them together.
    """

    sources: Sequence[Example]
    sets: Sequence[Sequence[int]]
    layers: Sequence[int | None] = ()

    def measure(self, model: HookedVLM) -> Tables:
        """``moved``: ``set, example, flippable, flipped, gain``.

        ``flippable``: the pair's two clean predictions differ; ``flipped``: the prediction became the other
        example's; ``gain``: by how much Σ min(p, q) with the other's clean answer rose.
        """
        here, there = _common(self.located(model), locate(model, self.sources, self.places))
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
            needed = sorted({p for s in group for p in self.sets[s]})
            cache = _cached(model, there.inputs, there.mask(needed), names)
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


def _common(here: LocatedPrompts, there: LocatedPrompts) -> tuple[LocatedPrompts, LocatedPrompts]:
    """Both sides with the places that only one example of a pair has left out: they stay as they are."""
    both = (here.columns >= 0) & (there.columns >= 0)
    first, second = (
        LocatedPrompts(side.inputs, torch.where(both, side.columns, -1), side.after) for side in (here, there)
    )
    return first, second


def _groups(sets: Sequence[Sequence[int]], numbers: int) -> list[list[int]]:
    """Sets whose source activations, of so many numbers a place, fit into memory together."""
    most = max(1, CACHE // numbers)
    groups: list[list[int]] = [[]]
    held = 0
    for s, one in enumerate(sets):
        if groups[-1] and held + len(one) > most:
            groups.append([])
            held = 0
        groups[-1].append(s)
        held += len(one)
    return groups


def _cached(model: HookedVLM, inputs: Any, mask: Bool[Tensor, "batch pos"], names: Sequence[str]) -> Any:
    """A run's cache, of the masked rows alone where every example has as many."""
    alike = len(set(mask.sum(1).tolist())) == 1 and bool(mask.any())
    return model.run_with_cache(inputs, names_filter=names, positions=mask if alike else None)[1]


@dataclass(frozen=True)
class AttentionReceived(PlacedPrompts):
    """The attention each place gets from the positions after the picture that can read it, all heads."""

    def measure(self, model: HookedVLM) -> Tables:
        """``attention``: ``example, place, value``, and ``layers``: ``layer, place, total``.

        The mean attention a place gets over the rows that can read it (NG's f_j), as a share of what all candidates
        get: the mean over layers, and the sum over examples.
        """
        prompts = self.located(model)
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
        return {
            "attention": pd.DataFrame(table),
            "layers": layers.melt("layer", var_name="place", value_name="total"),
        }


def _readers(prompts: LocatedPrompts, place: int) -> Bool[Tensor, "batch pos"]:
    """The positions after the picture that can read a place: those after it, or of its two-way block."""
    key = prompts.mask([place])
    return prompts.after & ~key & visible_keys(key, prompts.inputs.tokens).bool()


@dataclass(frozen=True)
class ClassOverlap(Batch):
    """Whether the class can be read off the residual stream of each place: its neighbours' classes.

    Attributes:
        parts: all examples.
        layers: at whose entry.
        k: neighbours.
    """

    parts: Sequence[PlacedPrompts]
    layers: tuple[int, ...]
    k: int

    def measure(self, model: HookedVLM) -> Tables:
        """``overlap``: ``place, layer, example, value``, χ with the labels at the place's best of these layers."""
        n, n_places = sum(len(part.numbers) for part in self.parts), len(self.parts[0].places)
        streams = torch.zeros(len(self.layers), n_places, n, int(model.cfg.d_model))
        has, labels = torch.zeros(n_places, n, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
        for part in self.parts:
            prompts, numbers = part.located(model), list(part.numbers)
            streams[:, :, numbers] = _streams(model, prompts, self.layers).permute(0, 2, 1, 3)
            has[:, numbers] = (prompts.columns >= 0).T
            labels[numbers] = torch.tensor(part.labels)
        tables = []
        for p in range(n_places):
            if int(has[p].sum()) <= self.k:
                continue
            values = [
                neighbourhood_overlap(streams[at, p][has[p]], labels[has[p]], self.k).double()
                for at in range(len(self.layers))
            ]
            best = max(range(len(values)), key=lambda at: float(values[at].mean()))
            where = {"place": p, "layer": self.layers[best], "example": has[p].nonzero()[:, 0].numpy()}
            tables.append(pd.DataFrame({**where, "value": values[best].numpy()}))
        columns = ["place", "layer", "example", "value"]
        return {"overlap": pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)}


def _streams(
    model: HookedVLM, prompts: LocatedPrompts, layers: Sequence[int]
) -> Float[Tensor, "layer batch place d_model"]:
    """The residual stream entering some layers at every place, 0 where an example lacks one."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    columns = prompts.columns
    cache = _cached(model, prompts.inputs, prompts.mask(range(columns.shape[1])), names)
    index = columns.clamp_min(0)
    if cache.kept is not None:
        index = cache.kept.place.gather(1, index).clamp_min(0)
    rows = torch.arange(len(columns))[:, None]
    return torch.stack([cache[name].float().cpu()[rows, index] * (columns >= 0)[..., None] for name in names])


@dataclass(frozen=True)
class CutOrder(Batch):
    """In which order places are cut jointly: each is the one that leaves the lowest log-probability.

    Attributes:
        parts: the examples that choose.
        how: the kind of knockout.
        clean, floor: probability of the right answer with nothing and with the whole picture cut, by example.
        chance: the least a probability can mean.
        singles: the places to order.
        carrying: those of them that stand after the picture. Should they together be enough while no set of
            ``limit`` is, they are thinned out one by one: this finds positions that stand in for each other.
        limit: steps at which all places left are asked anew; then the order last found is kept.
    """

    parts: Sequence[PlacedPrompts]
    how: How
    clean: tuple[float, ...]
    floor: tuple[float, ...]
    chance: float
    singles: tuple[int, ...]
    carrying: tuple[int, ...]
    limit: int

    def measure(self, model: HookedVLM) -> Tables:
        """``order``: the ``place`` cut first in the first row, and so on."""
        located = [part.located(model) for part in self.parts]

        def log_probs(sets: Sequence[Sequence[int]]) -> Float[np.ndarray, "set example"]:
            parts = zip(self.parts, located, strict=True)
            answers = pd.concat([part.answers(model, prompts, sets, self.how) for part, prompts in parts])
            return answers.pivot(index="set", columns="example", values="log_prob").to_numpy()

        def carried(sets: Sequence[Sequence[int]]) -> list[bool]:
            shares = share_removed(
                np.array(self.clean), np.exp(log_probs(sets)), np.array(self.floor), self.chance
            )
            return list(shares >= PART)

        def enough(chosen: tuple[int, ...]) -> bool:
            return bool(carried([chosen])[0])

        order: list[int] = []
        if self.singles:
            order = greedy_order(lambda sets: list(log_probs(sets).mean(1)), self.singles, self.limit, enough)
        first = [order[:size] for size in range(1, min(self.limit, len(order)) + 1)]
        small = bool(first) and any(carried(first))
        if not small and len(self.carrying) > 1 and enough(self.carrying):
            kept = prune(enough, self.carrying)
            order = [*kept, *(p for p in order if p not in kept)]
        return {"order": pd.DataFrame({"place": np.array(order, dtype=np.int64)})}
