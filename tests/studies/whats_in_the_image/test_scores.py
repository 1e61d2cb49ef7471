"""Scores of descriptions against numbers known in advance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from gatelens.measures.judge import OfflineJudge
from gatelens.measures.objects import Vocabulary
from gatelens.studies.whats_in_the_image import configurations as wi
from gatelens.studies.whats_in_the_image import scores


def test_scores_in_closed_form() -> None:
    descriptions = {"a": "a dog and a cat", "b": "a red bus", "c": "nothing here"}
    judge = scores.CachedJudge(OfflineJudge(Vocabulary(["dog", "cat", "bus"])))
    rows = [("a", "two dogs"), ("b", "a cat"), ("c", "a dog")]
    texts = pd.DataFrame(
        [("mask", "r", wi.BOTH, wi.ALL, 0, 3, *r) for r in rows], columns=[*scores.PLACE, "id", "text"]
    )
    table = scores.scored(texts, descriptions, {"a": ["dog"], "b": ["bus"], "c": None}, judge).set_index("id")
    assert table.loc["a", ["precision", "recall", "f1", "f1_truth"]].tolist() == pytest.approx(
        [1, 1 / 2, 2 / 3, 1]
    )
    assert table.loc["b", "f1"] == 0
    assert np.isnan(table.loc["c", "f1"])  # its unmodified description names nothing
    assert np.isnan(table.loc["c", "f1_truth"])
    assert table.chance.tolist() == [0, 0, 0]  # no two descriptions have an object in common
    means = scores.summarise(table.reset_index(), 50, 0).set_index("metric")
    assert means.loc["object F1", "mean"] == pytest.approx(1 / 3)
    assert means.loc["object F1", "n"] == 2


def test_chance_is_another_pictures_description() -> None:
    judge = scores.CachedJudge(OfflineJudge(Vocabulary(["dog", "cat"])))
    chance = scores.chance_of({"a": "a dog", "b": "a dog", "c": "a cat"}, judge)
    assert chance == {"a": 0.5, "b": 0.5, "c": 0.0}


def curve(f1: list[float], n: int = 30, path: str = wi.BOTH) -> pd.DataFrame:
    """F1 of every picture when a path is cut from each layer on."""
    rows = [
        ("mask", "", path, wi.ALL if start == 0 else wi.FROM, start, len(f1), f"{i}", value, 0.1)
        for start, value in enumerate(f1)
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=[*scores.PLACE, "id", "f1", "chance"])


def test_the_window_is_where_the_curve_changes() -> None:
    window = scores.find_window(curve([0.1, 0.1, 0.1, 0.2, 0.8, 0.9, 1.0, 1.0]), "mask", 8)
    assert window is not None
    assert (window["start"], window["stop"]) == (2, 4)
    assert window["share"] == pytest.approx(0.7 / 0.9)
    assert scores.find_window(curve([1.0, 1.0, 1.0]), "mask", 3) is None  # nothing is lost anywhere


def test_a_judge_is_asked_once_about_a_text() -> None:
    asked = []

    class Counting(OfflineJudge):
        def objects(self, text: str) -> list[str]:
            asked.append(text)
            return super().objects(text)

        def match(self, a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
            asked.append(f"{a} {b}")
            return super().match(a, b)

    judge = scores.CachedJudge(Counting(Vocabulary(["dog", "cat"])))
    for _ in range(2):
        assert judge.score("a dog and a cat", "a dog").f1 == pytest.approx(2 / 3)
        assert judge.score("a dog", "a dog").f1 == 1  # a text matches itself without being asked
        assert judge.score_truth(["dog"], "a dog").f1 == 1
    assert asked == ["a dog and a cat", "a dog", "['dog', 'cat'] ['dog']", "['dog'] ['dog']"]
