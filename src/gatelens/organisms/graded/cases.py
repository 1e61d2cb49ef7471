"""Graded organisms as cases of a benchmark: a model, what it is asked, and which positions carry the answer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from gatelens import data
from gatelens.data.base import Example
from gatelens.data.pairing import pairs as make_pairs
from gatelens.errors import DataError
from gatelens.model import HookedVLM
from gatelens.organisms.graded.kinds import IMAGE, KINDS, QUESTIONS
from gatelens.shipped_organisms import ORGANISM, organism_folder


@dataclass(frozen=True, eq=False)
class GradedCase:
    """One fact of one graded organism.

    Attributes:
        name: of the organism and its fact.
        model: the organism.
        examples: scenes in pairs that differ in the fact, two and two, with prompts of one length.
        partners: for each example the number of its pair's other one, which has another answer.
        classes: the answers there are.
        candidates: absolute positions a carrier can be at: from the picture's first to the last but one.
        carriers: those that carry the fact to the last row.
        decoys: by sort, positions that draw attention and carry nothing.
    """

    name: str
    model: HookedVLM
    examples: list[Example]
    partners: tuple[int, ...]
    classes: tuple[str, ...]
    candidates: tuple[int, ...]
    carriers: tuple[int, ...]
    decoys: Mapping[str, tuple[int, ...]]


def measured_facts(name: str) -> list[str]:
    """The facts of a graded organism of which every test holds, as measured when it was made.

    Raises:
        ModelError: no such organism.
    """
    measured = json.loads((organism_folder(name) / "measured.json").read_text())
    return [fact for fact, holds in measured["holds"].items() if holds]


def graded_case(
    name: str, fact: str, n: int = 24, seed: int = 0, model: HookedVLM | None = None
) -> GradedCase:
    """A case: ``graded_case("open/redundant-8", "class")``.

    Args:
        n: pairs of scenes.
        model: the organism, if it is loaded.

    Raises:
        ModelError: no such organism.
        DataError: it carries no such fact, or not as measured.
    """
    facts = measured_facts(name)
    if fact not in facts:
        raise DataError(f"organism '{name}' has no measured carriers of '{fact}': give {', '.join(facts)}")
    folder = organism_folder(name)
    kind = KINDS[json.loads((folder / "training.json").read_text())["kind"]]
    with warnings.catch_warnings():  # another colour of a held-out combination is one of training
        warnings.simplefilter("ignore", UserWarning)
        pairs = make_pairs(data.load("emoji-scenes"), differ=fact, n=n, seed=seed)
    examples = [example for pair in pairs for example in (pair.clean, pair.corrupt)]
    model = HookedVLM.from_pretrained(ORGANISM + name) if model is None else model
    inputs = model.prepare(images=[examples[0].image], text=[examples[0].prompt])
    return GradedCase(
        f"{name} {fact}",
        model,
        examples,
        tuple(i ^ 1 for i in range(len(examples))),
        QUESTIONS[fact][1],
        tuple(range(IMAGE[0], inputs.tokens.n_pos - 1)),
        kind.positions(fact),
        {"decoy": (kind.distractor,)} if kind.distractor is not None else {},
    )
