"""CIDEr-D against stored scores of the public COCO implementation, and its properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gatelens.errors import DataError
from gatelens.measures.captions import caption_words, cider_d

ORACLE = json.loads((Path(__file__).parent / "cider_oracle.json").read_text())


def test_equals_the_public_scorer() -> None:
    scores = cider_d(ORACLE["candidates"], ORACLE["references"], words=str.split)
    np.testing.assert_allclose(scores, ORACLE["scores"], rtol=1e-12, atol=1e-12)
    assert scores.mean() == pytest.approx(ORACLE["mean"])


def test_identical_caption_scores_ten_when_it_is_the_only_reference() -> None:
    refs = [["a red dog near a tree"], ["two blue boats below one star"], ["an old car"]]
    scores = cider_d([r[0] for r in refs], refs)
    assert scores[:2] == pytest.approx([10, 10])
    assert scores[2] == pytest.approx(7.5)  # three words have no 4-gram


def test_repeating_a_word_earns_nothing_and_no_words_score_zero() -> None:
    refs = [["a red dog near a tree"], ["two blue boats"], ["an old car"]]
    once, often, nothing = (cider_d([c, "x", "x"], refs)[0] for c in ("dog", "dog dog dog dog dog", ""))
    assert often < once
    assert nothing == 0


def test_one_picture_has_no_idf() -> None:
    assert cider_d(["a dog"], [["a dog"]]).tolist() == [0.0]


def test_an_outside_corpus_supplies_the_idf() -> None:
    corpus = [["a dog"], ["a cat"], ["a tree"]]
    assert cider_d(["a dog"], [["a dog"]], corpus=corpus)[0] > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's bowl.", ["a", "dog", "'s", "bowl"]),
        ("It isn't RED, is it?", ["it", "is", "n't", "red", "is", "it"]),
        ("black-and-white; 2 cats!", ["black-and-white", "2", "cats"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert caption_words(text) == words


def test_errors_name_the_offender() -> None:
    with pytest.raises(DataError, match="2 candidates but 1"):
        cider_d(["a", "b"], [["a"]])
    with pytest.raises(DataError, match=r"references\[0\]"):
        cider_d(["a"], ["a"])  # a string is not a list of captions
