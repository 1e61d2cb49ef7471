"""What is guessed without the picture: by hand, and on scenes whose answers' chances are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gatelens.data import load, scenes
from gatelens.studies.narrow_gate.blind import best_guess, blind_scores, facts, other_questions


def table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame([(k, q, [a]) for k, q, a in rows], columns=["kind", "question", "answers"])


def test_best_guess_by_hand() -> None:
    assert best_guess([["one"], ["two"], ["one"], ["three"]]) == "one"
    assert best_guess([]) == ""
    # "red" fits the first wholly and the second by what the 2 of its 10 annotators are worth; "blue" the second alone
    assert best_guess([["red"] * 10, ["red"] * 2 + ["blue"] * 8]) == "red"


def test_the_guesser_knows_the_question_and_not_the_answers() -> None:
    others = table(
        *[("color", "what color is the fox?", "red")] * 9,
        *[("color", "what color is the pig?", "blue")] * 9,
        *[("color", "what color is the cat?", "green")] * 20,
        *[("color", "what color is the bus?", "white")] * 3,
    )
    asked = table(
        ("color", "what color is the fox?", "red"),
        ("color", "what color is the pig?", "red"),
        ("color", "what color is the bus?", "green"),  # asked too rarely to be known: the kind's usual answer
        ("count", "how many are there?", "one"),  # a kind that is nowhere else
    )
    assert blind_scores(asked, others).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_without_other_questions_it_is_the_best_constant_of_the_kind() -> None:
    asked = table(("count", "a", "one"), ("count", "b", "two"), ("count", "c", "one"), ("side", "d", "left"))
    assert blind_scores(asked, asked[:0]).tolist() == [1.0, 0.0, 1.0, 1.0]


def test_the_questions_it_learns_from_are_not_those_it_answers() -> None:
    class Finite:
        def examples(self, task: str, limit: int, seed: int) -> list[Any]:
            return [SimpleNamespace(id=f"q{i}", answers=("a",)) for i in range(min(limit, 30))]

    data: Any = Finite()
    asked = data.examples("vqa", 10, 0)
    assert [e.id for e in other_questions(data, "vqa", asked, 0)] == [f"q{i}" for i in range(10, 30)]
    assert other_questions(data, "vqa", data.examples("vqa", 30, 0), 0) == []


def test_colours_of_scenes_are_guessed_in_one_case_of_three() -> None:
    """A class stands on three colours in scenes that are held out, whichever of them: who knows the class is right in
    a third, who does not in about a fifth."""
    source = load("emoji-scenes")
    asked = facts(source.examples("vqa", 700, 0))
    scores = blind_scores(asked, facts(other_questions(source, "vqa", source.examples("vqa", 700, 0), 0)))
    usual = [
        max(
            pd.Series([color for color, _ in scenes._combinations(name, "test")]).value_counts(normalize=True)
        )
        for name in scenes.CLASSES
    ]
    known = float(np.mean(usual))
    assert known == pytest.approx(1 / 3)
    colours = scores[asked.kind == "color"]
    assert colours.mean() == pytest.approx(known, abs=3 * (known * (1 - known) / len(colours)) ** 0.5)
    constant = asked[asked.kind == "color"].answers.str[0].value_counts(normalize=True).max()
    assert constant < 0.27 < colours.mean()
