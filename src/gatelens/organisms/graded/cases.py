"""Graded organisms as cases of a benchmark: a model, what it is asked, and which positions carry the answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gatelens import data
from gatelens.data.base import Example, Named
from gatelens.data.pairing import pairs as make_pairs
from gatelens.errors import DataError
from gatelens.model import HookedVLM
from gatelens.organisms.graded.kinds import IMAGE, KINDS, QUESTIONS
from gatelens.shipped_organisms import ORGANISM, organism_folder


@dataclass(eq=False, repr=False)
class PairedScenes(Named):
    """A data set: scenes of one object in pairs that differ in one fact, two and two, with the question for it."""

    name: str
    classes: tuple[str, ...]
    held: Sequence[Example]
    tasks: tuple[str, ...] = ("class",)

    def examples(self, task: str = "class", limit: int | None = None, seed: int = 0) -> list[Example]:
        """The examples, in order; at most ``limit`` of them."""
        return list(self.held)[:limit]


@dataclass(frozen=True, eq=False)
class GradedQuestion:
    """A fact of a graded organism.

    Attributes:
        name: the fact.
        data: what is asked; all prompts are of one length.
        partners: for each example the number of its pair's other one, which has another answer and the same prompt.
        carriers: absolute positions that carry the fact to the last row.
        decoys: by sort, positions that draw attention and carry nothing.
        candidates: absolute positions a carrier can be at: from the picture's first to the last but one.
    """

    name: str
    data: PairedScenes
    partners: tuple[int, ...]
    carriers: tuple[int, ...]
    decoys: Mapping[str, tuple[int, ...]]
    candidates: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GradedCase:
    """A graded organism as :func:`gatelens.bench.score` takes it.

    Attributes:
        name: of the organism.
        kind: what it is, of :data:`gatelens.organisms.graded.kinds.KINDS`.
        family: of its base.
        questions: the facts whose carriers were measured.
        layout: empty.
    """

    name: str
    kind: str
    family: str
    model: HookedVLM
    questions: tuple[GradedQuestion, ...]
    layout: str = ""


def measured_facts(name: str) -> list[str]:
    """The facts of a graded organism of which every test holds, as measured when it was made.

    Raises:
        ModelError: no such organism.
    """
    measured = json.loads((organism_folder(name) / "measured.json").read_text())
    return [fact for fact, holds in measured["holds"].items() if holds]


def graded_case(name: str, n: int = 24, seed: int = 0, facts: Sequence[str] | None = None) -> GradedCase:
    """A case: ``graded_case("open/gate-at-text-0")``.

    Args:
        n: pairs of scenes of each fact.
        facts: some of those that were measured; None takes all.

    Raises:
        ModelError: no such organism.
        DataError: it carries no such fact, or not as measured.
    """
    measured = measured_facts(name)
    wrong = next((fact for fact in facts or () if fact not in measured), None)
    if wrong is not None:
        raise DataError(
            f"organism '{name}' has no measured carriers of '{wrong}': give {', '.join(measured)}"
        )
    kind_name = json.loads((organism_folder(name) / "training.json").read_text())["kind"]
    model, kind = HookedVLM.from_pretrained(ORGANISM + name), KINDS[kind_name]
    questions = []
    for fact in measured if facts is None else facts:
        with warnings.catch_warnings():  # another colour of a held-out combination is one of training
            warnings.simplefilter("ignore", UserWarning)
            pairs = make_pairs(data.load("emoji-scenes"), differ=fact, n=n, seed=seed)
        examples = [
            replace(e, label=e.answers[0], task="class") for pair in pairs for e in (pair.clean, pair.corrupt)
        ]
        inputs = model.prepare(images=[examples[0].image], text=[examples[0].prompt])
        questions.append(
            GradedQuestion(
                fact,
                PairedScenes(f"{name} {fact}", QUESTIONS[fact][1], examples),
                tuple(i ^ 1 for i in range(len(examples))),
                kind.positions(fact),
                {} if kind.distractor is None else {"decoy": (kind.distractor,)},
                tuple(range(IMAGE[0], inputs.tokens.n_pos - 1)),
            )
        )
    return GradedCase(name, kind_name, "chameleon", model, tuple(questions))
