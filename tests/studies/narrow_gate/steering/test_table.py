"""Words of captions, and the table of section steering, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from gatelens.studies.narrow_gate.steering.table import (
    content_words,
    names,
    score_captions,
    summarise,
    wording_of,
    words_kept,
)


def test_words_by_hand() -> None:
    assert names("Two foxes and a dog.", "fox") and names("a Fox", "fox") and not names("a foxglove", "fox")
    assert names("an ice cream cone", "ice cream")
    before = content_words("a fox on a red circle", ("fox", "pig"), frozenset({"a", "on"}))
    assert dict(before) == {"red": 1, "circle": 1}
    after = content_words("a pig on a red square and a pig", ("fox", "pig"), frozenset({"a", "on"}))
    assert words_kept(before, after) == pytest.approx(2 * 1 / (2 + 3))
    assert words_kept(before, before) == 1 and words_kept(before, content_words("", ())) == 0
    assert words_kept(content_words("", ()), content_words("", ())) == 1
    texts = ["a red dog"] * 9 + ["the blue dog"]
    assert wording_of(texts) == {"a", "red", "dog"}
    assert wording_of(texts[:9]) == frozenset()  # too few to know


def test_caption_scores_by_hand() -> None:
    rows = [
        ("1", "fox", "pig", "none", 0.0, "a fox on red"),
        ("2", "fox", "pig", "none", 0.0, "a crab on red"),
        ("1", "fox", "pig", "class means", 1.0, "a pig on red"),
        ("2", "fox", "pig", "class means", 1.0, "a pig and a fox on blue"),
    ]
    table = score_captions(
        pd.DataFrame(rows, columns=["id", "base", "target", "direction", "dose", "caption"])
    )
    assert table.named_base.tolist() == [True, False, True, False]
    assert table.success.tolist() == [False, False, True, False]
    assert table.kept[2] == 1
    assert table.kept[3] == pytest.approx(2 * 2 / (4 + 5))  # a crab on red | a and a on blue: "a", "on"


def test_table_by_hand() -> None:
    rows = []
    for i, (plain, wild) in enumerate([((1, 0), (0, 0)), ((1, 0), (1, 1)), ((0, 1), (0, 0))]):
        right = i < 2
        common = {
            "id": str(i),
            "base": "a",
            "target": "b",
            "dose": 1.0,
            "right": right,
            "p_base": 0.25,
            "p_target": 0.5,
        }
        rows.append(
            {**common, "direction": "class means", "repeat": 0, "is_target": plain[0], "is_base": plain[1]}
        )
        for repeat in (0, 1):
            rows.append(
                {
                    **common,
                    "direction": "random",
                    "repeat": repeat,
                    "is_target": wild[repeat],
                    "is_base": not wild[repeat],
                }
            )
    rows[4] = {**rows[4], "is_target": 0}  # the second picture's first random push fails after all
    questions = pd.DataFrame(
        [("q1", "class means", 1.0, 0.5, 0.75), ("q2", "class means", 1.0, 1.0, 0.25)],
        columns=["id", "direction", "dose", "score", "overlap"],
    )
    table = summarise(pd.DataFrame(rows), pd.DataFrame(), questions, {"gate": 2, "last": 3}, 50, 0)
    means = table.set_index(["pair", "direction", "measure"])["mean"]
    assert means["all", "class means", "success"] == 1  # the third picture was wrong unsteered
    assert means["a-b", "class means", "success"] == 1
    assert means["all", "random", "success"] == pytest.approx((0 + 0.5) / 2)
    assert means["all", "class means", "success above random"] == pytest.approx((1 + 0.5) / 2)
    assert means["all", "class means", "elsewhere"] == pytest.approx(0.25)
    assert means["all", "class means", "VQA accuracy"] == pytest.approx(0.75)
    assert means["all", "class means", "VQA overlap"] == pytest.approx(0.5)
    assert set(table.layer) == {2}
    one = table.set_index(["pair", "direction", "measure"]).n
    assert one["all", "random", "success"] == 2  # pictures, not repeats
