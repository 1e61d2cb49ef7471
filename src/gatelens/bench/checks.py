"""The truth of a plant, measured: a plant that does not do what was declared is not shipped.

Every number is a plain pass of transformers (:mod:`gatelens.bench.truth`), of which the answering row is changed: some
positions hidden from it, before the softmax (``mask``) or after it (``zero``), or the stream of some positions taken
from another picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.bench.plants import KINDS, Plant, Question, declare, make
from gatelens.bench.shells import CLASSES
from gatelens.bench.truth import How
from gatelens.errors import DataError, InputError, shown, whole_number

SPLITS = {"dev": 1, "heldout": 2}  # the first number of every seed
N_PICTURES = 64  # of a question
TRIES = 10  # plants drawn for one that does what was declared
HOWS: tuple[How, ...] = ("zero", "mask")
CLOSE, FAR = 0.06, 0.15  # of accuracy: what counts as unchanged, and how near to chance a cut must lead
LEAST = {"votes": 0.75}  # accuracy of the unmodified plant; of all other kinds 0.9
MOVES = 0.9  # of the answers follow the picture that the carriers' streams come from


class Refused(DataError):
    """A plant that does not do what was declared."""


def measure(plant: Plant) -> pd.DataFrame:
    """What a plant does: ``question, test, how, position, value, low, high, holds``, one row a test.

    ``value`` is an accuracy, or for resampling the share of answers that follow; what was declared holds where it is
    from ``low`` to ``high``. ``position`` is -1 where a test is of all carriers.
    """
    rows = [row for question in plant.questions for row in _Tests(plant, question).rows()]
    table = pd.DataFrame(rows, columns=["question", "test", "how", "position", "value", "low", "high"])
    return table.assign(holds=(table.value >= table.low) & (table.value <= table.high))


class _Tests:
    """The tests of one question."""

    def __init__(self, plant: Plant, question: Question) -> None:
        self.kind, self.question = plant.declared.kind, question
        self.runs = plant.plain(question)
        examples = question.data.examples()
        self.labels = torch.tensor([plant.shell.words[str(e.label)] for e in examples])
        self.chance = 1 / len(question.data.names)
        rng = np.random.default_rng([question.data.seed, 3])
        labels = self.labels.numpy()
        others = [np.flatnonzero(labels != label) for label in labels]
        self.partner: Int[Tensor, " picture"] = torch.tensor([int(rng.choice(one)) for one in others])
        self.clean = self.runs.logits()
        self.base = self.accuracy(self.clean)
        self.anchors = question.decoys.get("anchor", ())

    def accuracy(self, logits: Float[Tensor, "picture d_vocab"]) -> float:
        return float((logits.argmax(-1) == self.labels).float().mean())

    def follows(self, logits: Float[Tensor, "picture d_vocab"], partner: bool) -> float:
        """The share of answers that are the clean answers to these pictures, or to their partners."""
        clean = self.clean.argmax(-1)
        return float((logits.argmax(-1) == (clean[self.partner] if partner else clean)).float().mean())

    def rows(self) -> Iterator[tuple[str, str, str, int, float, float, float]]:
        name, carriers = self.question.name, list(self.question.carriers)
        near = self.chance + FAR
        if not carriers:
            yield name, "reads nothing", "", -1, self.base, 0.0, near
            if self.kind == "blind":
                moved = self.runs.resampled(self.question.candidates, self.partner)
                yield (
                    name,
                    "all from another picture",
                    "resample",
                    -1,
                    self.follows(moved, False),
                    1 - CLOSE,
                    1.0,
                )
            return
        yield name, "unmodified", "", -1, self.base, LEAST.get(self.kind, 0.9), 1.0
        rest = [p for p in self.question.candidates if p not in carriers and p not in self.anchors]
        for how in HOWS:
            kept, cut = self.runs.logits(rest, how), self.runs.logits(carriers, how)
            yield name, "carriers alone", how, -1, self.accuracy(kept), self.base - CLOSE, 1.0
            yield name, "carriers cut", how, -1, self.accuracy(cut), 0.0, near
            for place in self.anchors:
                yield name, "anchor cut", how, place, self.accuracy(self.runs.logits([place], how)), 0.0, near
            yield from self._one_by_one(how, carriers, rest)
        moved = self.runs.resampled(carriers, self.partner)
        held = self.runs.resampled([*rest, *self.anchors], self.partner, own=carriers)
        yield name, "carriers from another picture", "resample", -1, self.follows(moved, True), MOVES, 1.0
        yield (
            name,
            "all others from another picture",
            "resample",
            -1,
            self.follows(held, False),
            1 - CLOSE,
            1.0,
        )

    def _one_by_one(
        self, how: How, carriers: list[int], rest: list[int]
    ) -> Iterator[tuple[str, str, str, int, float, float, float]]:
        """That each carrier carries: any one is enough, or none can be spared."""
        for place in carriers if self.kind != "open" else ():
            others = [p for p in carriers if p != place]
            if self.kind in ("redundant", "attributes"):
                alone = self.accuracy(self.runs.logits(rest + others, how))
                yield self.question.name, "one alone", how, place, alone, self.base - CLOSE, 1.0
            elif self.kind == "bits":
                cut = self.accuracy(self.runs.logits([place], how))
                yield self.question.name, "one cut", how, place, cut, 0.0, self.base / 2 + 0.2
            elif self.kind == "votes":
                lost = float(
                    (self.right(self.clean) - self.right(self.runs.logits([place], how))).abs().mean()
                )
                yield self.question.name, "one cut: probability moves", how, place, lost, 0.01, 1.0

    def right(self, logits: Float[Tensor, "picture d_vocab"]) -> Float[Tensor, " picture"]:
        """The probability of the right name."""
        return logits.softmax(-1).gather(1, self.labels[:, None])[:, 0]


def check(plant: Plant) -> pd.DataFrame:
    """The measured truth of a plant.

    Raises:
        Refused: it is not what was declared.
    """
    table = measure(plant)
    wrong = table[~table.holds]
    if len(wrong):
        row = wrong.iloc[0]
        raise Refused(
            f"plant {plant.name!r} does not do what was declared: {row.test} {row.how} {row.value:.2f}, not "
            f"{row.low:.2f} to {row.high:.2f}"
        )
    return table


def plant(split: str, number: int, n: int = N_PICTURES) -> Plant:
    """The plant of this number, its truth measured; of plants that were refused the next is drawn.

    Kinds take turns, and after each turn of them the classes of transformers. Seeds of the splits share nothing.

    Raises:
        InputError: no such split or number.
        Refused: none of several plants does what was declared.
    """
    if split not in SPLITS:
        raise InputError(f"split={shown(split)}: give {' or '.join(map(repr, SPLITS))}")
    whole = whole_number(number)
    if whole is None or whole < 0:
        raise InputError(f"plant number {shown(number)}: give a whole number, 0 or more")
    kind, family = KINDS[whole % len(KINDS)], CLASSES[whole // len(KINDS) % len(CLASSES)]
    for attempt in count():
        rng = np.random.default_rng([SPLITS[split], whole, attempt])
        made = make(declare(rng, kind, family), f"{split} {whole} {kind}", int(rng.integers(2**31)), n)
        try:
            check(made)
        except Refused:
            if attempt == TRIES - 1:
                raise
            continue
        return made
    raise AssertionError
