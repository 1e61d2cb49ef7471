"""What a method is given, what it gives back, and how that is compared with the truth."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.data import Example
from gatelens.data.base import Named
from gatelens.errors import GatelensError, shown
from gatelens.examples import Labels, prepare
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM


class MethodError(GatelensError):
    """A method that raised, or gave something that cannot be scored.

    Example:
        >>> gl.bench.score(lambda model, task: [1.0, 2.0], plants={"mine": lambda: plant}, progress=False)
        Traceback (most recent call last):
            ...
        gatelens.bench.cases.MethodError: method '<lambda>' on plant 'dev 0 gate a' gave scores of shape (2,): ...
    """


class CaseQuestion(Protocol):
    """A question whose carriers are known; a :class:`~gatelens.bench.plants.Question` is one.

    Attributes:
        name: tells the questions of a case apart.
        data: a :class:`~gatelens.data.Dataset`, pictures with one prompt; all examples of one length.
        carriers: absolute positions that carry the picture to the answer.
        decoys: positions that are none, by their sort.
        candidates: all positions a carrier can be at.
        partners: may be left out; for each example the number of one with another label, to patch from. By default any.
    """

    @property
    def name(self) -> str: ...
    @property
    def data(self) -> Any: ...
    @property
    def carriers(self) -> Sequence[int]: ...
    @property
    def decoys(self) -> Mapping[str, Sequence[int]]: ...
    @property
    def candidates(self) -> Sequence[int]: ...


class Case(Protocol):
    """A model and its questions; a :class:`~gatelens.bench.plants.Plant` is one.

    Attributes:
        name, kind, family, layout: to sort it by.

    Example:
        >>> plant.name, plant.kind, [question.name for question in plant.questions]
        ('dev 0 gate', 'gate', ['a'])
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def questions(self) -> Sequence[CaseQuestion]: ...
    @property
    def model(self) -> HookedVLM: ...


@dataclass(eq=False, repr=False)
class Task(Named):
    """One question of a plant as a method sees it, without the truth. It is a data set, as studies and sweeps take it.

    Attributes:
        name: of the plant and its question.
        classes: the names that can be the answer.
        candidates: absolute positions, the same in every example: from the picture's first to the last but one.
        inputs: all examples, prepared.
        labels: Int[example], token of the right name.
        answers: tokens of the names.
        partners: Int[example], for each example the number of one with another label.

    Example:
        >>> def later(model, task):
        ...     print(task.classes[:2], task.inputs.batch_size, task.candidates[-1])
        ...     return torch.arange(task.inputs.tokens.n_pos).float()  # a score for each position
        >>> result = gl.bench.score(later, plants={"mine": lambda: plant}, progress=False)
        ('cat', 'hen') 8 37
    """

    name: str
    classes: tuple[str, ...]
    candidates: tuple[int, ...]
    inputs: VLMInputs
    labels: Int[Tensor, " example"]
    answers: tuple[int, ...]
    partners: Int[Tensor, " example"]
    held: Sequence[Example]
    tasks: tuple[str, ...] = ("class",)

    def examples(self, task: str = "class", limit: int | None = None, seed: int = 0) -> list[Example]:
        """The examples, in order; at most ``limit`` of them."""
        return list(self.held)[:limit]

    @cached_property
    def partner_inputs(self) -> VLMInputs:
        """The partners' prompts, in the order of the examples."""
        return self.inputs.select(self.partners.tolist())

    def only(self, position: int | Sequence[int]) -> Tensor:
        """Bool[example, pos], true at some positions."""
        mask = torch.zeros(self.inputs.tokens.roles.shape, dtype=torch.bool)
        mask[:, position] = True
        return mask


def task_of(case: Case, question: CaseQuestion) -> Task:
    """A question for a method."""
    data = question.data
    examples = data.examples(data.tasks[0])
    tokens = Labels(case.model)
    names = tuple(data.classes)
    token_of = {name: tokens.first_token(examples[0].prompt, name) for name in names}
    labels = torch.tensor([token_of[str(e.label)] for e in examples])
    partners = getattr(question, "partners", None)
    if partners is None:
        rng = np.random.default_rng([content_seed(data.name), 5])
        partners = [int(rng.choice(np.flatnonzero((labels != one).numpy()))) for one in labels]
    return Task(
        data.name, names, tuple(question.candidates), prepare(case.model, examples), labels,
        tuple(token_of.values()), torch.tensor(partners), examples,
    )  # fmt: skip


def content_seed(name: str) -> int:
    """A seed that is the same wherever it is computed."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a method finds.

    Attributes:
        scores: a number for every position of the prompt, or for every layer and position; higher carries more.
        positions: those that carry the picture; None leaves it to the :class:`Rule` of the run.
        size: the minimum and maximum number of positions; None where a method gives no interval.

    Example:
        >>> last_two = gl.bench.Prediction(torch.zeros(39), positions=[36, 37], size=(1, 3))
        >>> last_two.positions, last_two.size  # the set, and how large it may be
        ([36, 37], (1, 3))
    """

    scores: Any
    positions: Sequence[int] | None = None
    size: tuple[int, int] | None = None


Method: TypeAlias = Callable[[HookedVLM, Task], Any]
"""A function from a model and a :class:`Task` to a score of every position, Float[pos] or Float[layer, pos], or to a
:class:`Prediction`."""


@dataclass(frozen=True)
class Rule:
    """How scores become a set: the candidates with at least ``share`` of the highest score, and more than ``floor``.

    Example:
        >>> import numpy as np
        >>> rule = gl.bench.Rule(share=0.5)  # at least half of 0.9
        >>> rule.positions(np.array([0.9, 0.2, 0.5]), candidates=[4, 5, 6])
        [4, 6]
    """

    share: float = 0.5
    floor: float = 0.0

    def positions(self, scores: Float[np.ndarray, " candidate"], candidates: Sequence[int]) -> list[int]:
        """The candidates chosen."""
        top = float(scores.max(initial=0.0))
        chosen = (scores > self.floor) & (scores >= self.share * top)
        return [p for p, one in zip(candidates, chosen, strict=True) if one]


def read(given: Any, task: Task, n_layers: int) -> Prediction:
    """What a method gave, as scores Float[candidate] with checked positions and size.

    Raises:
        MethodError: it cannot be scored; in one line.
    """
    one = given if isinstance(given, Prediction) else Prediction(given)
    n_pos = task.inputs.tokens.n_pos
    try:
        scores = np.asarray(torch.as_tensor(one.scores).detach().cpu(), dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise MethodError(f"gave {shown(one.scores)}: give scores of {n_pos} positions") from None
    if scores.shape not in ((n_pos,), (n_layers, n_pos)):
        raise MethodError(
            f"gave scores of shape {scores.shape}: give one for each of {n_pos} positions, or [{n_layers}, {n_pos}] "
            "by layer"
        )
    scores = scores.max(0) if scores.ndim == 2 else scores
    scores = scores[list(task.candidates)]
    if not np.isfinite(scores).all():
        bad = task.candidates[int(np.flatnonzero(~np.isfinite(scores))[0])]
        raise MethodError(f"gave {scores[task.candidates.index(bad)]} for position {bad}: give finite scores")
    positions = None if one.positions is None else sorted({int(p) for p in one.positions})
    wrong = next((p for p in positions or () if p not in task.candidates), None)
    if wrong is not None:
        raise MethodError(f"chose position {wrong}, which is not a candidate: choose among task.candidates")
    if one.size is not None and not 0 <= one.size[0] <= one.size[1]:
        raise MethodError(f"gave the size {one.size}: give the minimum and the maximum")
    return Prediction(scores, positions, one.size)


@dataclass(frozen=True)
class Truth:
    """What a prediction is compared with: absolute positions."""

    carriers: Sequence[int]
    decoys: Sequence[int]
    candidates: Sequence[int]


def compare(
    truth: Truth,
    scores: Float[np.ndarray, " candidate"],
    positions: Sequence[int],
    size: tuple[float, float] | None,
) -> dict[str, float]:
    """How near a prediction is to the truth; NaN where a measure means nothing.

    Returns:
        ``f1`` (of the set; of an empty truth 1 for an empty set, else 0), ``exact``, ``size_error`` (positions too
        many or too few), ``covered`` (the interval holds the size), ``precision`` (average precision of the carriers
        by score), ``on_decoy`` (a decoy is in the set), ``false_gate`` (a set is given where nothing carries).
    """
    true, chosen = set(truth.carriers), set(positions)
    nan = float("nan")
    return {
        "f1": set_f1(true, chosen),
        "exact": float(true == chosen),
        "size_error": float(abs(len(true) - len(chosen))),
        "covered": nan if size is None else float(size[0] <= len(true) <= size[1]),
        "precision": average_precision(scores, [p in true for p in truth.candidates]),
        "on_decoy": float(bool(set(truth.decoys) & chosen)) if truth.decoys else nan,
        "false_gate": nan if true else float(bool(chosen)),
    }


def set_f1(true: set[int], chosen: set[int]) -> float:
    """Twice the positions that are in both sets over those in either, each counted; 1 for two empty sets."""
    total = len(true) + len(chosen)
    return 2 * len(true & chosen) / total if total else 1.0


def average_precision(scores: Float[np.ndarray, " candidate"], right: Sequence[bool]) -> float:
    """The mean, over right candidates, of the share of right ones among those scored at least as high; NaN without any.

    Candidates of one score share a rank, so that the order in which they are listed wins nothing.
    """
    truth = np.asarray(right)
    if not truth.any():
        return float("nan")
    return float(np.mean([truth[scores >= one].mean() for one in scores[truth]]))


@contextmanager
def counted(layers: Sequence[Any]) -> Iterator[Mapping[str, float]]:
    """Counts what passes compute while the block runs: ``rows``, of the MLPs of all layers.

    A row of a pass back counts as two, as it costs. Counted on the modules, so that it holds whatever way a method runs
    the model; a pass that computes a part of the rows or layers counts as that part.
    """
    count = {"rows": 0.0}

    def add(rows: float) -> None:
        count["rows"] += rows

    def hook(_: Any, __: Any, out: Any) -> None:
        rows = float(out.shape[:-1].numel())
        add(rows)
        if out.requires_grad:
            out.register_hook(lambda gradient: add(2 * rows))

    handles = [layer.mlp.register_forward_hook(hook) for layer in layers]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
