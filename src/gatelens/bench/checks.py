"""The truth of a plant, measured: a plant that does not do what was declared is not shipped.

Every number is a plain pass of transformers (:mod:`gatelens.plain_runs`), of which the answering row is changed: some
positions hidden from it, before the softmax (``mask``) or after it (``zero``), or the stream of some positions taken
from another picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice, product
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.bench.declared import KINDS, PLAIN, declare
from gatelens.bench.plants import Plant, Question, make
from gatelens.bench.shells import CLASSES
from gatelens.errors import DataError, InputError, did_you_mean, shown, whole_number
from gatelens.plain_runs import How, Positions

SPLITS = {"dev": 1, "heldout": 2}  # the first number of every seed
N_PICTURES = 64  # of a question
TRIES = 10  # plants drawn for one that does what was declared
HOWS: tuple[How, ...] = ("zero", "mask")
CLOSE, FAR = 0.06, 0.15  # of accuracy: what counts as unchanged, and how near to chance a cut must lead
LEAST = {"votes": 0.75}  # accuracy of the unmodified plant; of all other kinds 0.9
MOVES = 0.9  # of the answers follow the picture that the carriers' streams come from
VOTES = 0.03  # by how much the log-odds change at least without one vote
NUDGE = 0.02  # of the way to another picture's stream
FLAT = {"saturated": 0.02, "lookup": 0.1}  # by how much probability may change there, where reads saturate
# question, test, how, position, value, low, high
Row: TypeAlias = tuple[str, str, str, int, float, float, float]


class Refused(DataError):
    """A plant that does not do what was declared.

    Example:
        >>> issubclass(gl.bench.Refused, gl.errors.DataError)
        True
    """


def measure(plant: Plant) -> pd.DataFrame:
    """What a plant does: ``question, test, how, position, value, low, high, holds``, one row a test.

    ``value`` is an accuracy; for resampling the share of answers that follow; or what a test says that moves. What was
    declared holds where it is from ``low`` to ``high``. ``position`` is -1 where a test is of all carriers.

    Example:
        >>> table = gl.bench.measure(plant)
        >>> table.columns.tolist(), bool(table.holds.all())
        (['question', 'test', 'how', 'position', 'value', 'low', 'high', 'holds'], True)
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
        self.enough = self.base - CLOSE
        self.groups = question.groups
        self.anchors = question.decoys.get("anchor", ())
        spared = {*question.carriers, *self.anchors}
        self.rest = [p for p in question.candidates if p not in spared]

    def accuracy(self, logits: Float[Tensor, "picture d_vocab"]) -> float:
        return float((logits.argmax(-1) == self.labels).float().mean())

    def follows(self, logits: Float[Tensor, "picture d_vocab"], partner: bool) -> float:
        """The share of answers that are the clean answers to these pictures, or to their partners."""
        clean = self.clean.argmax(-1)
        return float((logits.argmax(-1) == (clean[self.partner] if partner else clean)).float().mean())

    def rows(self) -> Iterator[Row]:
        return (row for part in (self._whole, self._groups, self._resampled) for row in part())

    def _whole(self) -> Iterator[Row]:
        """That the carriers are all that is read."""
        carriers, near = self.question.carriers, self.chance + FAR
        if not carriers:
            yield self.row("reads nothing", "", self.base, 0.0, near)
            return
        yield self.row("unmodified", "", self.base, LEAST.get(self.kind, 0.9))
        for how in HOWS:
            yield self.row("carriers alone", how, self.without(self.rest, how), self.enough)
            yield self.row("carriers cut", how, self.without(carriers, how), 0.0, near)
            for place in self.anchors:
                yield self.row("anchor cut", how, self.without([place], how), 0.0, near, place)
            if self.groups:
                there, elsewhere = self._by_layer()
                yield self.row("carriers cut in their layers", how, self.without(there, how), 0.0, near)
                yield self.row(
                    "carriers cut in all other layers", how, self.without(elsewhere, how), self.enough
                )

    def _by_layer(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """The carriers that are read in each layer, and those that are not."""
        layers, where = range(len(self.runs.layers)), self.question.layers
        there = {n: [p for kind, ps in self.groups.items() if where[kind] == n for p in ps] for n in layers}
        return there, {n: [p for p in self.question.carriers if p not in there[n]] for n in layers}

    def _groups(self) -> Iterator[Row]:
        """That each carrier carries: of those of a kind any is enough, or each votes; no kind can be spared."""
        for kind, places in self.groups.items():
            others = [p for p in self.question.carriers if p not in places]
            for how in HOWS if len(self.groups) > 1 else ():
                if self.kind == "backup":
                    yield self.row(f"{kind} alone", how, self.without(self.rest + others, how), self.enough)
                else:
                    yield self.row(f"{kind} cut", how, self.without(places, how), 0.0, self.base / 2 + 0.2)
            for how, place in product(HOWS, places if len(places) > 1 else ()):
                if kind != "vote":
                    spared = [p for p in places if p != place]
                    yield self.row("one alone", how, self.without(spared, how), self.enough, place=place)
                    continue
                cut = others if self.kind == "backup" else []
                before = self.runs.logits(cut, how) if cut else self.clean
                moved = self.moves(before, self.runs.logits([*cut, place], how), log_odds)
                yield self.row("one cut: log-odds move", how, moved, VOTES, np.inf, place=place)

    def _resampled(self) -> Iterator[Row]:
        """That answers follow the picture which the streams of the carriers come from, and no other."""
        carriers, partner = self.question.carriers, self.partner
        if not carriers:
            if self.kind == "blind":
                moved = self.runs.resampled(self.question.candidates, partner)
                yield self.row("all from another picture", "resample", self.follows(moved, False), 1 - CLOSE)
            return
        moved = self.runs.resampled(carriers, partner)
        yield self.row("carriers from another picture", "resample", self.follows(moved, True), MOVES)
        held = self.runs.resampled([*self.rest, *self.anchors], partner, own=carriers)
        yield self.row("all others from another picture", "resample", self.follows(held, False), 1 - CLOSE)
        if self.kind in FLAT:
            some = self.runs.resampled(self.groups["gate 1"], partner, share=NUDGE)
            moves = self.moves(self.clean, some)
            yield self.row(
                "gate 1 moved a little: probability moves", "resample", moves, 0.0, FLAT[self.kind]
            )

    def row(self, test: str, how: str, value: float, low: float, high: float = 1.0, place: int = -1) -> Row:
        return self.question.name, test, how, place, value, low, high

    def without(self, cut: Positions, how: How) -> float:
        """Accuracy with positions hidden from the answering row."""
        return self.accuracy(self.runs.logits(cut, how))

    def moves(
        self,
        before: Float[Tensor, "picture d_vocab"],
        after: Float[Tensor, "picture d_vocab"],
        read: Callable[[Tensor], Tensor] = torch.Tensor.exp,
    ) -> float:
        """By how much what is read of the right name's log-probability changes: by default its probability."""
        right = [
            read(logits.log_softmax(-1).gather(1, self.labels[:, None])[:, 0].double())
            for logits in (before, after)
        ]
        return float((right[0] - right[1]).abs().mean())


def log_odds(log_probability: Tensor) -> Tensor:
    """Of a name against all others."""
    return log_probability - torch.log1p(-log_probability.exp().clamp_max(1 - 1e-9))


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


def kind_of(number: int) -> str:
    """The kind of the plant of a number: see :func:`plant`."""
    turn, place = divmod(number, len(PLAIN))
    return KINDS[turn // len(CLASSES) % 2 * len(PLAIN) + place]


def numbers_of(kinds: Sequence[str], n: int) -> list[int]:
    """The first ``n`` numbers whose plants are of some kinds.

    Args:
        kinds: some of :data:`KINDS`.
        n: how many numbers.

    Raises:
        InputError: no such kind, or none given.

    Example:
        >>> numbers = gl.bench.numbers_of(["gate"], 2)
        >>> numbers[0]  # the gate is the first kind
        0
    """
    if not kinds:
        raise InputError("kinds=[]: give at least one")
    for kind in kinds:
        _check_known("kind", kind, KINDS)
    return list(islice((number for number in count() if kind_of(number) in kinds), n))


def _check_known(name: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise InputError(f"{name}={shown(given)}: give {', '.join(known)}{did_you_mean(str(given), known)}")


def plant(
    split: str, number: int, n: int = N_PICTURES, *, kind: str | None = None, family: str | None = None
) -> Plant:
    """The plant of this number, its truth measured; of plants that were refused the next is drawn.

    The plain kinds take turns on numbers 0 to 7 and 8 to 15, in one class of transformers and then in the other; then
    the hard kinds on 16 to 31; and so on. Seeds of the splits share nothing.

    Args:
        kind, family: what the plant of this number is instead, such as a counterpart of another one.

    Raises:
        InputError: no such split, number, kind or family.
        Refused: none of several plants does what was declared.

    Example:
        >>> made = gl.bench.plant("dev", 0, n=8)
        >>> made.name, made.questions[0].carriers  # the end-of-image token alone
        ('dev 0 gate', (35,))
    """
    if split not in SPLITS:
        raise InputError(f"split={shown(split)}: give {' or '.join(map(repr, SPLITS))}")
    whole = whole_number(number)
    if whole is None or whole < 0:
        raise InputError(f"plant number {shown(number)}: give a whole number, 0 or more")
    kind = kind_of(whole) if kind is None else kind
    family = CLASSES[whole // len(PLAIN) % len(CLASSES)] if family is None else family
    _check_known("kind", kind, KINDS)
    _check_known("family", family, CLASSES)
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
