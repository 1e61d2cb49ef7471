"""Plants whose truth is about the literal gate, for the verdicts of the narrow-gate study.

Made as GateBench makes its plants (``docs/gatebench.md``), with the gate at the place that the study cuts: the end of
the image in Chameleon's class, the first word after the picture in LLaVA's. What carries the picture is measured by
plain passes of transformers in which the streams of some positions come from another picture; a plant in which that is
not as declared is drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.bench.checks import SPLITS, Refused
from gatelens.bench.declared import Declared, Slot, declare
from gatelens.bench.pictures import N_PATCHES, PatchPictures
from gatelens.bench.plants import Plant, make
from gatelens.bench.shells import CLASSES
from gatelens.studies.narrow_gate.verdict import DISTRIBUTED, INCONCLUSIVE, MIXED, NARROW

GATE = Slot(False, 0)  # what the study calls the gate
_DECLARED = {  # kind: what the study should say of it, and the kind of GateBench it is made from
    "gate": (NARROW, "eoi"),
    "gate, picture hard to read": (NARROW, "eoi"),
    "gate; a constant is read at an image token": (NARROW, "eoi"),
    "image tokens": (DISTRIBUTED, "open"),
    "image tokens, picture hard to read": (DISTRIBUTED, "open"),
    "image tokens; the gate gathers, unread": (DISTRIBUTED, "open"),
    "image tokens; a constant is read at the gate": (DISTRIBUTED, "open"),
    "a few image tokens": (DISTRIBUTED, "votes"),
    "another word": (DISTRIBUTED, "gate"),
    "gate or image tokens": (MIXED, "backup"),
    "gate and image tokens": (MIXED, "joint"),
    "nothing; the gate gathers, unread": (INCONCLUSIVE, "blind"),
    "random weights": (INCONCLUSIVE, "random"),
}
TRUTHS: Mapping[str, str] = {kind: truth for kind, (truth, _) in _DECLARED.items()}
BASES: Mapping[str, str] = {kind: base for kind, (_, base) in _DECLARED.items()}
KINDS = tuple(TRUTHS)
HARD = 0.36  # of the patches vote right, where a picture is hard to read; by chance 0.25
N_MEASURED = 64  # pictures on which the truth is measured
FOLLOWS = (
    0.9  # more than this share of answers follow a path that carries the picture alone, or stay without it
)
CLOSE, NEAR_CHANCE = 0.06, 0.15  # of accuracy
TRIES = 20


@dataclass(frozen=True)
class Planted:
    """A plant with its kind and family, and how often it was drawn."""

    plant: Plant
    kind: str
    family: str
    tries: int

    def data(self, n: int) -> PatchPictures:
        """Pictures of the plant that its head was not fitted on and its truth not measured on."""
        data = self.plant.questions[0].data
        return replace(data, n=n, seed=data.seed + 5000)


def planted(split: str, number: int) -> Planted:
    """The plant of this number, its truth measured. Kinds take turns, and after each turn the classes.

    Raises:
        Refused: none of several plants does what was declared.
    """
    kind, family = KINDS[number % len(KINDS)], CLASSES[number // len(KINDS) % len(CLASSES)]
    for attempt in range(TRIES):
        rng = np.random.default_rng([SPLITS[split], 17, number, attempt])
        declared = declared_as(kind, family, rng)
        plant = make(declared, f"{split} {number}", int(rng.integers(2**31)), N_MEASURED)
        if holds(plant, kind):
            return Planted(plant, kind, family, attempt + 1)
    raise Refused(f"{kind!r}, number {number} of {split}: none of {TRIES} plants does what was declared")


def declared_as(kind: str, family: str, rng: np.random.Generator) -> Declared:
    """A plant of a kind as it is declared: one of GateBench with its gate, or a decoy, moved to the study's gate."""
    drawn = declare(rng, BASES[kind], family)
    (asked,) = drawn.questions
    carriers = {GATE if one == "gate 1" else slot: one for slot, one in asked.carriers.items()}
    if kind == "another word":
        carriers = {Slot(False, int(rng.integers(1, len(drawn.words)))): "gate 1"}
    taken = {GATE, *carriers}
    decoys = {slot: sort for slot, sort in drawn.decoys.items() if slot not in taken and sort != "anchor"}
    if kind.endswith("the gate gathers, unread"):
        decoys[GATE] = "bystander"
    elif "a constant is read" in kind:
        decoys[GATE if kind.endswith("the gate") else Slot(True, int(rng.integers(N_PATCHES)))] = "anchor"
    right = HARD if kind.endswith("hard to read") else drawn.right
    return replace(drawn, questions=(replace(asked, carriers=carriers),), decoys=decoys, right=right)


def holds(plant: Plant, kind: str) -> bool:
    """Whether the picture reaches the answer as the kind says, by plain passes of transformers."""
    one = Carried(plant)
    if TRUTHS[kind] == INCONCLUSIVE:
        near = one.accuracy() < one.chance + NEAR_CHANCE
        return near and (kind == "random weights" or one.stays("gate", "rest"))
    least = 0.45 if kind.endswith("hard to read") else 0.7
    if one.accuracy() < least or not one.follows("gate", "rest"):
        return False
    if kind == "gate or image tokens":
        enough = [one.accuracy(cut) > one.accuracy() - CLOSE for cut in ("gate", "rest")]
        return all(enough) and one.accuracy("gate", "rest") < one.chance + NEAR_CHANCE
    if TRUTHS[kind] == NARROW:
        return one.follows("gate") and one.stays("rest")
    if TRUTHS[kind] == DISTRIBUTED:
        return one.stays("gate") and one.follows("rest")
    return not any(test(path) for test in (one.stays, one.follows) for path in ("gate", "rest"))


class Carried:
    """What the gate and all other positions, ``rest``, carry to the answer of a plant, by plain passes."""

    def __init__(self, plant: Plant) -> None:
        question = plant.questions[0]
        self.runs = plant.plain(question)
        self.chance = 1 / len(question.data.names)
        self.labels = torch.tensor([plant.shell.words[str(e.label)] for e in question.data.examples()])
        self.clean = self.runs.logits().argmax(-1)
        rng, labels = np.random.default_rng(5), self.labels.numpy()
        self.partner = torch.tensor([int(rng.choice(np.flatnonzero(labels != one))) for one in labels])
        gate = gate_position(self.runs.ids[0].tolist(), plant)
        self.positions = {"gate": [gate], "rest": [p for p in question.candidates if p != gate]}

    def accuracy(self, *cut: str) -> float:
        """With paths hidden from the answering row, before the softmax."""
        hidden = [p for path in cut for p in self.positions[path]]
        said = self.runs.logits(hidden).argmax(-1) if cut else self.clean
        return float((said == self.labels).float().mean())

    def stays(self, *taken: str) -> bool:
        """Nearly all answers stay where the streams of these paths come from a picture of another class."""
        return self._share(self.clean, taken) > FOLLOWS

    def follows(self, *taken: str) -> bool:
        """Nearly all answers are then that picture's."""
        return self._share(self.clean[self.partner], taken) > FOLLOWS

    def _share(self, answer: Int[Tensor, " picture"], taken: Sequence[str]) -> float:
        moved_from = [p for path in taken for p in self.positions[path]]
        own = [p for path, places in self.positions.items() if path not in taken for p in places]
        said = self.runs.resampled(moved_from, self.partner, own=own).argmax(-1)
        told = self.clean != self.clean[self.partner]  # else staying is following
        told = told if bool(told.any()) else torch.ones_like(told)
        return float((said == answer)[told].float().mean())


def gate_position(ids: Sequence[int], plant: Plant) -> int:
    """The position after the last image token, in both classes."""
    return max(i for i, token in enumerate(ids) if token == plant.shell.words["<image>"]) + 1
