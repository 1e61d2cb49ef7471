"""Plants: models made from a seed whose answers come through positions that are known, in seconds and without training.

======================  ==========================================================================================
``gate``                one position gathers what the picture shows, and the last position reads it there
``redundant``           2 to 8 positions gather the same, and any one of them is enough
``bits``                2 to 4 positions, from each of which one bit of the class is read
``votes``               5 to 8 image tokens are read directly; the class is what most of them show
``attributes``          two questions, each with 1 or 2 positions of its own
``open``                every unmarked image token is read directly
``blind``               nothing reads the picture, though positions gather it and draw attention
``random``              random weights
======================  ==========================================================================================

Every plant but the random ones has decoys: *bystanders* gather the picture and nothing reads them; *attention decoys*
draw nearly all attention of a head in every layer and bring nothing of the picture; an *anchor* is read by the answer
and brings a constant without which the answer is always the same: to cut it does damage, but it carries nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from gatelens.bench.circuits import (
    ANCHORED,
    ANSWER,
    GATHERED,
    KIND_AT,
    NOISE,
    SHOWN,
    Route,
    anchor_head,
    fit_head,
    moved,
    random_decoder,
    rotate,
    write_decoder,
)
from gatelens.bench.pictures import GRID, N_PATCHES, PATCH, VALUES, PatchPictures
from gatelens.bench.shells import D_MODEL, ENDS, N_HEADS, N_LAYERS, NAMES, WORDS, Shell, shell
from gatelens.bench.truth import PlainRuns, tensors
from gatelens.model import HookedVLM

KINDS = ("gate", "redundant", "bits", "votes", "attributes", "open", "blind", "random")
SIZES = {"gate": (1, 1), "redundant": (2, 8), "bits": (2, 4), "votes": (5, 8), "attributes": (1, 2)}
BITS = ("a0", "a1", "b0", "b1")
N_WORDS = 12  # between the picture and the last word
FIRST_GATE = 12  # of the patches: one before it has too few to gather from
MARKER = "<eoss>"  # after the picture; the processor writes it
N_FIT = 192  # pictures the head is fitted on
_DECOYS = ("bystander", "decoy", "anchor")


@dataclass(frozen=True)
class Slot:
    """A place of the prompt that can be given a kind: a patch of the picture, or a word after it by its number."""

    in_picture: bool
    number: int


@dataclass(frozen=True)
class Asked:
    """One question of a plant as it is declared.

    Attributes:
        asks, names: what the class is; see :class:`~gatelens.bench.pictures.PatchPictures`.
        last: the kind of the last position.
        carriers: by slot, the kind of the positions that carry the picture to this answer.
    """

    asks: tuple[str, ...]
    names: tuple[str, ...]
    last: str
    carriers: Mapping[Slot, str]


@dataclass(frozen=True)
class Declared:
    """A plant as it is declared, before it is made."""

    kind: str
    family: str
    words: tuple[str, ...]
    questions: tuple[Asked, ...]
    decoys: Mapping[Slot, str]
    gathers: int  # the layer in which gates gather
    reads: int  # the layer in which the last position reads
    right: float
    layout: str  # contiguous, spread, or empty where that means nothing


@dataclass(frozen=True, eq=False)
class Question:
    """A question of a plant with its truth.

    Attributes:
        data: pictures with one prompt, as a data set.
        carriers: absolute positions that carry the picture to the answer.
        decoys: positions by their sort.
        candidates: all positions a carrier can be at: from the picture's first to the last but one.
        selector: selects the carriers in a prepared batch.
    """

    name: str
    data: PatchPictures
    carriers: tuple[int, ...]
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
    """

    name: str
    declared: Declared
    questions: tuple[Question, ...]
    shell: Shell
    _wrapped: list[HookedVLM] = field(default_factory=list, repr=False)

    @property
    def model(self) -> HookedVLM:
        """The model for interpretability."""
        if not self._wrapped:
            self._wrapped.append(HookedVLM.from_module(self.shell.hf, self.shell.processor))
        return self._wrapped[0]

    def plain(self, question: Question) -> PlainRuns:
        """Plain passes over a question's pictures."""
        layers = self.shell.decoder.layers
        return PlainRuns(self.shell.hf, layers, self.shell.processor, question.data.examples())


# -- what is declared


def declare(rng: np.random.Generator, kind: str, family: str) -> Declared:
    """Draw a plant of a kind."""
    marker = (MARKER,) if family == "chameleon" else ()
    words = (*marker, *(str(word) for word in rng.permutation(WORDS)[:N_WORDS]))
    low, high = SIZES.get(kind, (0, 0))
    size = int(rng.integers(low, high + 1))
    layout = str(rng.choice(["contiguous", "spread"])) if size > 1 else ""
    text = [Slot(False, i) for i in range(len(words))]
    picture = [Slot(True, i) for i in range(0 if kind == "votes" else FIRST_GATE, N_PATCHES)]
    where = {"votes": picture}.get(kind) or (picture, text, picture + text)[int(rng.integers(3))]
    n_questions = 2 if kind == "attributes" else 1
    chosen = _slots(rng, where, size * n_questions, layout)
    free = [slot for slot in picture + text if slot not in chosen]
    names = rng.permutation(NAMES).tolist()
    questions = []
    for i in range(n_questions):
        part = chosen[i * size : (i + 1) * size]
        asks = BITS[:size] if kind == "bits" else ("b",) if i else ("a",)
        n_classes = 2**size if kind == "bits" else VALUES
        kinds = {
            "bits": [f"gate {j + 1}" for j in range(size)], "votes": ["vote"] * size
        }.get(kind) or [f"gate {i + 1}"] * size  # fmt: skip
        carriers = dict(zip(part, kinds, strict=True))
        told = tuple(str(name) for name in names[i * n_classes : (i + 1) * n_classes])
        questions.append(Asked(asks, told, f"last {'ab'[i]}", carriers))
    decoys = {}
    if kind != "random":
        sorts = [sort for sort, odds in zip(_DECOYS, (0.7, 0.7, 0.3), strict=True) if rng.random() < odds]
        sorts = [*sorts, "bystander", "decoy"] if kind == "blind" else sorts
        sorts = [sort for sort in sorts if not (sort == "anchor" and kind == "blind")]
        places = rng.permutation(len(free))[: len(sorts)]
        decoys = {free[p]: sort for p, sort in zip(places, sorts, strict=True)}
    gathers = int(rng.integers(0, N_LAYERS - 1))
    reads = int(rng.integers(gathers + 1, N_LAYERS))
    right = 0.7 if kind == "votes" else 0.85
    return Declared(kind, family, words, tuple(questions), decoys, gathers, reads, right, layout)


def _slots(rng: np.random.Generator, where: list[Slot], size: int, layout: str) -> list[Slot]:
    if layout == "contiguous":
        start = int(rng.integers(len(where) - size + 1))
        return where[start : start + size]
    places = np.sort(rng.permutation(len(where))[:size])
    chosen = [where[p] for p in places]
    return [chosen[i] for i in rng.permutation(size)]


# -- what is made of it


def routes_of(declared: Declared) -> list[Route]:
    """The heads that are written."""
    gates = {kind for asked in declared.questions for kind in asked.carriers.values() if kind != "vote"}
    routes: list[Route] = []
    gatherers = gates | ({"bystander"} if "bystander" in declared.decoys.values() else set())
    if gatherers:
        value = moved(range(SHOWN.start, SHOWN.stop), range(GATHERED.start, GATHERED.stop))
        routes.append(Route(declared.gathers, 0, frozenset(gatherers), frozenset({"source"}), value))
    for asked in declared.questions:
        reader = frozenset({asked.last})
        first = sum(route.layer == declared.reads for route in routes)
        for i, (keys, value) in enumerate(_reads(declared, asked)):
            routes.append(Route(declared.reads, first + i, reader, frozenset(keys), value))
    sorts = set(declared.decoys.values())
    if "anchor" in sorts:
        value = moved([KIND_AT["anchor"]], [ANCHORED])
        routes.append(
            Route(declared.reads, N_HEADS - 2, frozenset({"last a", "last b"}), frozenset({"anchor"}), value)
        )
    if "decoy" in sorts:
        noise = range(NOISE.start, NOISE.start + 16)
        readers = frozenset({"last a", "last b", "other"})
        routes += [
            Route(layer, N_HEADS - 1, readers, frozenset({"decoy"}), moved(noise, noise, 0.15))
            for layer in range(N_LAYERS)
        ]
    return routes


def _reads(declared: Declared, asked: Asked) -> Iterator[tuple[set[str], Any]]:
    """What the last position reads for a question: kinds of keys, and the value."""
    kinds = set(asked.carriers.values())
    start = 0 if asked.last == "last a" else VALUES
    answer = range(ANSWER.start + start, ANSWER.start + start + VALUES)
    if declared.kind == "open":
        yield {"source"}, moved(range(SHOWN.start, SHOWN.start + VALUES), answer)
    elif declared.kind == "votes":
        yield kinds, moved(range(SHOWN.start, SHOWN.start + VALUES), answer)
    elif declared.kind == "bits":
        for j, gate in enumerate(asked.carriers.values()):
            attribute, bit = "ab".index(asked.asks[j][0]), int(asked.asks[j][1])
            read, written = torch.zeros(D_MODEL, 1), torch.zeros(D_MODEL, 1)
            for value in range(VALUES):
                read[GATHERED.start + attribute * VALUES + value, 0] = 1.0 if value >> bit & 1 else -1.0
            written[ANSWER.start + j, 0] = 0.5
            yield {gate}, (read, written)
    elif kinds:
        yield kinds, moved(range(GATHERED.start + start, GATHERED.start + start + VALUES), answer)


def make(declared: Declared, name: str, seed: int, n: int) -> Plant:
    """Make a declared plant; what it does is not measured yet (:func:`gatelens.bench.checks.measure`).

    Args:
        seed: of weights and pictures.
        n: pictures of a question.
    """
    generator = torch.Generator().manual_seed(seed)
    made = shell(declared.family)
    kinds = {**declared.decoys, **{s: k for asked in declared.questions for s, k in asked.carriers.items()}}
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
    if declared.kind == "random":
        random_decoder(made, generator)
    else:
        routes = routes_of(declared)
        write_decoder(made, routes, words, {mark: kind for kind, mark in mark_of.items()}, generator)
        _fit(made, declared, data, seed)
        rotate(made, generator)
    questions = tuple(
        _truth(made, declared, asked, one) for asked, one in zip(declared.questions, data, strict=True)
    )
    return Plant(name, declared, questions, made)


def _fit(made: Shell, declared: Declared, data: list[PatchPictures], seed: int) -> None:
    decoder = made.decoder
    for asked, one in zip(declared.questions, data, strict=True):
        examples = replace(one, n=N_FIT, seed=seed + 1000).examples()
        runs = PlainRuns(made.hf, decoder.layers, made.processor, examples)
        final = runs.final(decoder.norm)
        labels = [asked.names.index(str(e.label)) for e in examples]
        fit_head(made, asked.last, final, labels, asked.names)
        if "anchor" in declared.decoys.values():
            anchor_head(made, final, asked.last, asked.names)


def _truth(made: Shell, declared: Declared, asked: Asked, data: PatchPictures) -> Question:
    """The absolute positions of what was declared."""
    ids = tensors(made.processor, data.examples()[:1])["input_ids"][0].tolist()
    patches = [i for i, token in enumerate(ids) if token == made.words["<image>"]]
    words = {word: ids.index(made.words[word]) for word in declared.words}

    def positions(slots: Mapping[Slot, str]) -> dict[Slot, int]:
        return {s: patches[s.number] if s.in_picture else words[declared.words[s.number]] for s in slots}

    carriers = sorted(positions(asked.carriers).values())
    taken = set(positions(declared.decoys).values())
    if declared.kind == "open":
        carriers = [p for p in patches if p not in taken]
    others = {s: k for q in declared.questions if q is not asked for s, k in q.carriers.items()}
    decoys: dict[str, tuple[int, ...]] = {}
    for slots in (declared.decoys, dict.fromkeys(others, "other question")):
        for slot, place in positions(slots).items():
            decoys[slots[slot]] = (*decoys.get(slots[slot], ()), place)
    return Question(
        asked.last[-1], data, tuple(carriers), decoys, tuple(range(patches[0], len(ids) - 1)),
        " | ".join(_selector(place, ids, patches, made) for place in carriers),
    )  # fmt: skip


def _selector(place: int, ids: list[int], patches: list[int], made: Shell) -> str:
    """A position in the selector language: a word, the marker, or the pixels inside a patch."""
    if place not in patches:
        word = next(word for word, number in made.words.items() if number == ids[place])
        return "eoi" if word == MARKER else f'word("{word}")'
    row, column = divmod(patches.index(place), GRID)
    x, y = column * PATCH, row * PATCH
    return f"image.box({x + 1},{y + 1},{x + PATCH - 1},{y + PATCH - 1})"
