"""VQA accuracy, exact match and next-token accuracy."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.answers import (
    accuracy,
    exact_match,
    normalise_answer,
    restricted_accuracy,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("The Red, ball.", "red ball"),
        ("two", "2"),
        ("None", "0"),
        ("dont", "don't"),
        ("isnt it", "isn't it"),
        ("1,000", "1000"),
        ("3.5 m", "3.5 m"),
        ("t-shirt", "t shirt"),
        ("yes!", "yes"),
        ("black\nand\twhite", "black and white"),
        ("  A  ", ""),
        ("well", "well"),
    ],
)
def test_normalisation(raw: str, clean: str) -> None:
    assert normalise_answer(raw) == clean
    assert normalise_answer(clean) == clean


@pytest.mark.parametrize("k", range(11))
def test_ten_votes_closed_form(k: int) -> None:
    answers = ["red"] * k + ["blue"] * (10 - k)
    expected = (k * min((k - 1) / 3, 1) + (10 - k) * min(k / 3, 1)) / 10 if k else 0.0
    assert vqa_accuracy("Red.", answers) == pytest.approx(expected)
    if k >= 4:
        assert vqa_accuracy("red", answers) == pytest.approx(1)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("dont", "don't"),  # an apostrophe that is missing is put in
        ("100,978", "100978"),  # no space for a comma between digits
        ("2:50 pm", "2:50 pm"),  # colons often refer to time
        ("girl's", "girl's"),  # possessives are not plurals
    ],
)
def test_the_published_examples(raw: str, clean: str) -> None:
    """Those of visualqa.org/evaluation, which says of each why."""
    assert normalise_answer(raw) == clean


@pytest.mark.parametrize("k", range(11))
def test_mean_over_all_nine_of_ten_annotators(k: int) -> None:
    """The published definition word by word: min(#annotators / 3, 1), averaged over all 10 choose 9 sets."""
    answers = ["red"] * k + ["blue"] * (10 - k)
    nine = [min(chosen.count("red") / 3, 1) for chosen in itertools.combinations(answers, 9)]
    assert len(nine) == 10
    assert vqa_accuracy("red", answers) == pytest.approx(statistics.mean(nine))


def test_few_answers_are_alternatives() -> None:
    assert vqa_accuracy("A sofa", ["couch", "sofa"]) == 1
    assert vqa_accuracy("chair", ["sofa"]) == 0
    with pytest.raises(DataError, match="no answers"):
        vqa_accuracy("chair", [])
    assert exact_match("The sofa!", ["sofa"]) == 1


def test_next_token_accuracy() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0], [5.0, 0.0, 1.0, 2.0]])
    assert accuracy(logits, torch.tensor([1, 3])).tolist() == [True, False]
    assert restricted_accuracy(logits, torch.tensor([1, 3]), [1, 2, 3]).tolist() == [True, True]
    assert accuracy(logits, [[2, 1], [0]]).tolist() == [True, True]
    with pytest.raises(DataError, match="candidate"):
        restricted_accuracy(logits, torch.tensor([1, 3]), [])
    with pytest.raises(DataError, match="2 rows of logits but 1"):
        accuracy(logits, torch.tensor([1]))
