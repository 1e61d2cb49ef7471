"""Plants: models made from a seed whose answers come through positions that are known, in seconds and without training.

The kinds are in :mod:`gatelens.bench.declared`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gatelens.bench.circuits import (
    KIND_AT,
    KIND_SIZE,
    Route,
    anchor_head,
    fit_head,
    random_decoder,
    rotate,
    scale_route,
    write_decoder,
)
from gatelens.bench.declared import MARKER, Asked, Declared, Slot
from gatelens.bench.neurons import write_product, write_steps
from gatelens.bench.pictures import GRID, PATCH, PatchPictures
from gatelens.bench.shells import ENDS, Shell, shell
from gatelens.bench.wiring import Wiring, erased_by, wiring_of
from gatelens.model import HookedVLM
from gatelens.plain_runs import PlainRuns, tensors

N_FIT = 192  # pictures that thresholds and the head are fitted on


@dataclass(frozen=True, eq=False)
class Question:
    """A question of a plant with its truth.

    Attributes:
        data: pictures with one prompt, as a data set.
        carriers: absolute positions that carry the picture to the answer.
        groups: the carriers by their kind; those of one kind hold the same, or are votes. Empty where all image tokens
            are carriers.
        layers: by kind, the layer in which the last position reads them.
        decoys: positions by their sort.
        candidates: all positions a carrier can be at: from the picture's first to the last but one.
        selector: selects the carriers in a prepared batch.

    Example:
        >>> question = plant.questions[0]
        >>> question.carriers, len(question.candidates), question.groups
        ((35,), 37, {'gate 1': (35,)})
    """

    name: str
    data: PatchPictures
    carriers: tuple[int, ...]
    groups: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, int]
    decoys: Mapping[str, tuple[int, ...]]
    candidates: tuple[int, ...]
    selector: str


@dataclass(frozen=True, eq=False)
class Plant:
    """A made plant.

    Attributes:
        name: split, number and kind.
        declared: how it was declared.
        questions: each with its truth.
        shell: the model of transformers with its processor; :attr:`model` wraps it, once.

    Example:
        >>> plant.kind, plant.family, plant.model.cfg.n_layers
        ('gate', 'llava', 4)
    """

    name: str
    declared: Declared
    questions: tuple[Question, ...]
    shell: Shell
    _wrapped: list[HookedVLM] = field(default_factory=list, repr=False)

    @property
    def kind(self) -> str:
        """The kind that was declared."""
        return self.declared.kind

    @property
    def family(self) -> str:
        """The class of transformers, ``llava`` or ``chameleon``."""
        return self.declared.family

    @property
    def layout(self) -> str:
        """How the carriers are placed: ``contiguous``, ``spread``, or empty."""
        return self.declared.layout

    @property
    def model(self) -> HookedVLM:
        """The model for interpretability."""
        if not self._wrapped:
            self._wrapped.append(HookedVLM.from_module(self.shell.hf, self.shell.processor))
        return self._wrapped[0]

    def plain(self, question: Question) -> PlainRuns:
        """Plain passes over a question's pictures."""
        return _plain(self.shell, question.data)


def _plain(made: Shell, data: PatchPictures) -> PlainRuns:
    examples = data.examples()
    return PlainRuns(made.hf, made.processor, [e.image for e in examples], [e.prompt for e in examples])


def make(declared: Declared, name: str, seed: int, n: int, wiring: Wiring | None = None) -> Plant:
    """Make a declared plant; what it does is not measured yet (:func:`gatelens.bench.checks.measure`).

    Args:
        seed: of weights and pictures.
        n: pictures of a question.
        wiring: what is written into the decoder; None is what the declared kind has.
    """
    wiring = wiring or wiring_of(declared)
    generator = torch.Generator().manual_seed(seed)
    made = shell(declared.family)
    kinds = declared.slots
    in_picture = sorted({kind for slot, kind in kinds.items() if slot.in_picture})
    mark_of = {kind: i + 1 for i, kind in enumerate(in_picture)}
    marks = {slot.number: mark_of[kind] for slot, kind in kinds.items() if slot.in_picture}
    words = {declared.words[slot.number]: kind for slot, kind in kinds.items() if not slot.in_picture}
    words |= {end: f"last {'ab'[i]}" for i, end in enumerate(ENDS)}
    spoken = [word for word in declared.words if word != MARKER]
    data = [
        PatchPictures(
            f"{name} {'ab'[i]}", f"<image>{' '.join((*spoken, ENDS[i]))}", asked.asks, asked.names, marks,
            declared.right, n, seed + 1 + i,
        )
        for i, asked in enumerate(declared.questions)
    ]  # fmt: skip
    prompts = [_Prompt(made, declared, one) for one in data]
    if declared.kind == "random":
        random_decoder(made, generator)
    else:
        write_decoder(made, wiring.routes, words, {mark: kind for kind, mark in mark_of.items()}, generator)
        for asked, one, prompt in zip(declared.questions, data, prompts, strict=True):
            _fit(made, wiring, declared, asked, replace(one, n=N_FIT, seed=seed + 1000), prompt)
        rotate(made, generator)
    questions = (
        _truth(wiring, declared, asked, one, prompt)
        for asked, one, prompt in zip(declared.questions, data, prompts, strict=True)
    )
    return Plant(name, declared, tuple(questions), made)


class _Prompt:
    """Where the slots of a plant are in the prompt of a question."""

    def __init__(self, made: Shell, declared: Declared, data: PatchPictures) -> None:
        self.declared, self.made = declared, made
        image = data.examples(limit=1)[0].image
        self.ids: list[int] = tensors(made.processor, [image], [data.prompt])["input_ids"][0].tolist()
        self.patches = [i for i, token in enumerate(self.ids) if token == made.words["<image>"]]

    def positions(self, slots: Sequence[Slot]) -> tuple[int, ...]:
        words = self.declared.words
        return tuple(
            sorted(
                self.patches[slot.number]
                if slot.in_picture
                else self.ids.index(self.made.words[words[slot.number]])
                for slot in slots
            )
        )

    def by_kind(self, slots: Mapping[Slot, str]) -> dict[str, tuple[int, ...]]:
        kinds = dict.fromkeys(slots.values())
        return {kind: self.positions([s for s, one in slots.items() if one == kind]) for kind in kinds}

    def selector(self, place: int) -> str:
        """A position in the selector language: a word, the marker, or the pixels inside a patch."""
        if place not in self.patches:
            word = next(word for word, number in self.made.words.items() if number == self.ids[place])
            return "eoi" if word == MARKER else f'word("{word}")'
        row, column = divmod(self.patches.index(place), GRID)
        x, y = column * PATCH, row * PATCH
        return f"image.box({x + 1},{y + 1},{x + PATCH - 1},{y + PATCH - 1})"


def _fit(
    made: Shell, wiring: Wiring, declared: Declared, asked: Asked, data: PatchPictures, prompt: _Prompt
) -> None:
    """Fit, layer by layer, what depends on the size of the stream; then the head."""
    decoder, examples = made.decoder, data.examples()
    runs = _plain(made, data)
    places = prompt.by_kind(declared.slots) | {asked.last: (len(prompt.ids) - 1,)}

    def seen(norm: Any, kinds: frozenset[str]) -> torch.Tensor:
        return runs.seen(norm, sorted(p for kind in kinds for p in places.get(kind, ())))

    for route in filter(erased_by, wiring.routes):
        _fit_erased(made, route, seen(decoder.layers[route.layer].input_layernorm, route.readers))
    for number, product in enumerate(wiring.products):
        write_product(decoder.layers[product.layer].mlp, product, 2 * number)
    for steps in wiring.steps:
        layer = decoder.layers[steps.layer]
        write_steps(layer.mlp, steps, seen(layer.post_attention_layernorm, steps.at))
    final = seen(decoder.norm, frozenset({asked.last}))[:, 0]
    labels = [asked.names.index(str(e.label)) for e in examples]
    fit_head(made, asked.last, final, labels, asked.names)
    if "anchor" in declared.decoys.values():
        anchor_head(made, final, asked.last, asked.names)


def _fit_erased(made: Shell, route: Route, seen: torch.Tensor) -> None:
    """A head takes away as much as is there: as the norm before it divided the stream by."""
    kinds = [KIND_AT[kind] for kind in route.readers]
    scale_route(made, route, KIND_SIZE / float(seen[..., kinds].sum(-1).mean()))


def _truth(
    wiring: Wiring, declared: Declared, asked: Asked, data: PatchPictures, prompt: _Prompt
) -> Question:
    """The absolute positions of what was declared."""
    groups, decoys = prompt.by_kind(asked.carriers), prompt.by_kind(declared.decoys)
    carriers = tuple(sorted(p for places in groups.values() for p in places))
    if declared.kind == "open":
        taken = {p for places in decoys.values() for p in places}
        carriers = tuple(p for p in prompt.patches if p not in taken)
    others = [slot for one in declared.questions if one is not asked for slot in one.carriers]
    if others:
        decoys["other question"] = prompt.positions(others)
    layers = {
        kind: route.layer
        for route in wiring.routes
        for kind in route.keys & groups.keys()
        if asked.last in route.readers
    }
    return Question(
        asked.last[-1], data, carriers, groups, layers, decoys,
        tuple(range(prompt.patches[0], len(prompt.ids) - 1)), " | ".join(map(prompt.selector, carriers)),
    )  # fmt: skip
