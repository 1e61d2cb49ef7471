"""What a plant is declared to be, drawn from a seed, before it is made: see :data:`KINDS` for the kinds.

Kinds of a plain read, in which the answering position copies what carriers hold:

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

Kinds made to be hard:

======================  ==========================================================================================
``eoi``                 one gate: the end-of-image token, or the first position after the picture where there is none
``hops``                the picture goes through relays to 1 to 3 gates, and only these are read
``saturated``           1 to 8 redundant positions; neurons before and after the read saturate, so that gradients vanish
``lookup``              a pointer decides by sharp attention which of two gates is read
``xor``                 the class is whether two bits differ, each held by 1 or 2 positions: one alone tells nothing
``layered``             1 to 3 positions are read and then erased; 1 to 3 others gather and are read in later layers
``backup``              a gate and 4 to 7 image tokens, either of which is enough
``joint``               a gate for one bit of the class and 4 to 7 image tokens for the other
======================  ==========================================================================================

Every plant but the random ones may have decoys: *bystanders* gather the picture and nothing reads them; *attention
decoys* draw nearly all attention of a head in every layer and bring nothing of the picture; an *anchor* is read by the
answer and brings a constant without which the answer is always the same: to cut it does damage, but it carries nothing.
``relay`` is the decoy of ``hops``: the picture passes through it, and the answering position does not read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gatelens.bench.pictures import N_PATCHES, VALUES
from gatelens.bench.shells import N_LAYERS, NAMES, WORDS

PLAIN = ("gate", "redundant", "bits", "votes", "attributes", "open", "blind", "random")
HARD = ("eoi", "hops", "saturated", "lookup", "xor", "layered", "backup", "joint")
KINDS = (*PLAIN, *HARD)
"""Kinds of plants: first the plain ones, then the hard ones."""
_SIZES = {"gate": (1, 1), "redundant": (2, 8), "bits": (2, 4), "votes": (5, 8), "attributes": (1, 2)}
# of the hard kinds: what the class is, and by kind of position how many there are at least and at most
_HARD: dict[str, tuple[tuple[str, ...], dict[str, tuple[int, int]]]] = {
    "eoi": (("a",), {"gate 1": (1, 1)}),
    "hops": (("a",), {"relay": (1, 2), "gate 1": (1, 3)}),
    "saturated": (("a",), {"gate 1": (1, 8)}),
    "lookup": (("a0", "a1^b0"), {"gate 1": (1, 1), "gate 2": (1, 1), "gate 3": (1, 1)}),
    "xor": (("a0^b0",), {"gate 1": (1, 2), "gate 2": (1, 2)}),
    "layered": (("a0", "a1"), {"gate 1": (1, 3), "gate 2": (1, 3)}),
    "backup": (("a",), {"gate 1": (1, 1), "vote": (4, 7)}),
    "joint": (("a0", "b0"), {"gate 1": (1, 1), "vote": (4, 7)}),
}
_THREE_LAYERS = ("hops", "lookup", "layered")
_BITS = ("a0", "a1", "b0", "b1")
N_WORDS = 12  # between the picture and the last word
FIRST_GATE = 12  # of the patches: one before it has too few to gather from
MARKER = "<eoss>"  # after the picture; the processor writes it
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
        carriers: by slot, the kind of the positions that carry the picture to this answer. Positions of one kind hold
            the same, or are votes.
    """

    asks: tuple[str, ...]
    names: tuple[str, ...]
    last: str
    carriers: Mapping[Slot, str]


@dataclass(frozen=True)
class Declared:
    """A plant as it is declared, before it is made.

    Attributes:
        layers: those that do something, in order: gates gather in the first, the answer reads in the last; three where
            something happens in between.
        right: how often a patch of the picture votes right.
        layout: ``contiguous``, ``spread``, or empty where that means nothing.
    """

    kind: str
    family: str
    words: tuple[str, ...]
    questions: tuple[Asked, ...]
    decoys: Mapping[Slot, str]
    layers: tuple[int, ...]
    right: float
    layout: str

    @property
    def slots(self) -> dict[Slot, str]:
        """The kind of every slot that has one."""
        return {**self.decoys, **{s: kind for asked in self.questions for s, kind in asked.carriers.items()}}


def declare(rng: np.random.Generator, kind: str, family: str) -> Declared:
    """Draw a plant of a kind, in a class of transformers (``llava`` or ``chameleon``)."""
    marker = (MARKER,) if family == "chameleon" else ()
    words = (*marker, *(str(word) for word in rng.permutation(WORDS)[:N_WORDS]))
    text = [Slot(False, i) for i in range(len(words))]
    picture = [Slot(True, i) for i in range(FIRST_GATE, N_PATCHES)]
    places = _Places(rng, picture, text)
    questions, decoys, layout = (places.plain if kind in PLAIN else places.hard)(kind)
    if kind != "random":
        taken = {slot for asked in questions for slot in asked.carriers} | set(decoys)
        decoys |= _decoys(rng, kind, [slot for slot in places.all(kind) if slot not in taken])
    if kind in _THREE_LAYERS:
        layers = tuple(sorted(int(layer) for layer in rng.permutation(N_LAYERS)[:3]))
    else:
        gathers = int(rng.integers(0, N_LAYERS - 1))
        layers = (gathers, int(rng.integers(gathers + 1, N_LAYERS)))
    right = {"votes": 0.7, "joint": 0.93}.get(kind, 0.85)
    return Declared(kind, family, words, questions, decoys, layers, right, layout)


@dataclass(frozen=True, eq=False)
class _Places:
    """Draws where the positions of a plant are."""

    rng: np.random.Generator
    picture: list[Slot]  # where gates can be
    text: list[Slot]

    def all(self, kind: str) -> list[Slot]:
        """Where a decoy can be."""
        patches = [Slot(True, i) for i in range(N_PATCHES)] if kind == "votes" else self.picture
        return patches + self.text

    def plain(self, kind: str) -> tuple[tuple[Asked, ...], dict[Slot, str], str]:
        low, high = _SIZES.get(kind, (0, 0))
        size = int(self.rng.integers(low, high + 1))
        layout = str(self.rng.choice(["contiguous", "spread"])) if size > 1 else ""
        picture = self.all(kind)[: -len(self.text)]
        where = {"votes": picture}.get(kind) or self._part(picture)
        n_questions = 2 if kind == "attributes" else 1
        chosen = self._slots(where, size * n_questions, layout)
        names = self.rng.permutation(NAMES).tolist()
        questions = []
        for i in range(n_questions):
            part = chosen[i * size : (i + 1) * size]
            asks = _BITS[:size] if kind == "bits" else ("b",) if i else ("a",)
            n_classes = 2**size if kind == "bits" else VALUES
            kinds = {"bits": [f"gate {j + 1}" for j in range(size)], "votes": ["vote"] * size}.get(kind)
            carriers = dict(zip(part, kinds or [f"gate {i + 1}"] * size, strict=True))
            told = tuple(str(name) for name in names[i * n_classes : (i + 1) * n_classes])
            questions.append(Asked(asks, told, f"last {'ab'[i]}", carriers))
        return tuple(questions), {}, layout

    def hard(self, kind: str) -> tuple[tuple[Asked, ...], dict[Slot, str], str]:
        asks, sizes = _HARD[kind]
        counts = {one: int(self.rng.integers(low, high + 1)) for one, (low, high) in sizes.items()}
        total = sum(counts.values())
        layout = str(self.rng.choice(["contiguous", "spread"])) if total > 1 else ""
        if kind == "eoi":
            chosen = self.text[:1]
        elif "vote" in counts:
            gate = self._slots(self._part(self.picture), 1, "")
            patches = [one for one in (Slot(True, i) for i in range(N_PATCHES)) if one not in gate]
            chosen = gate + self._slots(patches, counts["vote"], layout)
        else:
            chosen = self._slots(self._part(self.picture), total, layout)
        order = {slot: i for i, slot in enumerate(self.picture + self.text)}
        if kind == "hops":  # relays come before the gates that read them
            chosen = sorted(chosen, key=order.__getitem__)
        kinds = [one for one, count in counts.items() for _ in range(count)]
        given = dict(zip(chosen, kinds, strict=True))
        n_classes = VALUES if asks == ("a",) else 2 ** len(asks)
        names = tuple(str(name) for name in self.rng.permutation(NAMES)[:n_classes])
        carriers = {slot: one for slot, one in given.items() if one != "relay"}
        relays = {slot: one for slot, one in given.items() if one == "relay"}
        return (Asked(asks, names, "last a", carriers),), relays, layout

    def _part(self, picture: list[Slot]) -> list[Slot]:
        return (picture, self.text, picture + self.text)[int(self.rng.integers(3))]

    def _slots(self, where: list[Slot], size: int, layout: str) -> list[Slot]:
        if layout == "contiguous":
            start = int(self.rng.integers(len(where) - size + 1))
            return where[start : start + size]
        places = np.sort(self.rng.permutation(len(where))[:size])
        chosen = [where[p] for p in places]
        return [chosen[i] for i in self.rng.permutation(size)]


def _decoys(rng: np.random.Generator, kind: str, free: list[Slot]) -> dict[Slot, str]:
    sorts = [sort for sort, odds in zip(_DECOYS, (0.7, 0.7, 0.3), strict=True) if rng.random() < odds]
    sorts = [*sorts, "bystander", "decoy"] if kind == "blind" else sorts
    sorts = [sort for sort in sorts if not (sort == "anchor" and kind == "blind")]
    places = rng.permutation(len(free))[: len(sorts)]
    return {free[p]: sort for p, sort in zip(places, sorts, strict=True)}
