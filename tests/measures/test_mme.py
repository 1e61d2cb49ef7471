"""MME's ACC and ACC+ against counts made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gatelens.errors import DataError
from gatelens.measures.mme import (
    ALL,
    COGNITION,
    COLUMNS,
    MEAN,
    PERCEPTION,
    REPORTED_COMPRESSED_CONTEXT,
    SUBSETS,
    mme_scores,
    mme_totals,
    yes_or_no,
)


@pytest.mark.parametrize(
    "answer, kind",
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("YES, it is", "yes"),
        (" yes", "yes"),
        ("No, there is not", "no"),
        ("Not at all", "no"),
        ("know", "no"),  # as released: the first four characters are searched
        ("The answer is yes", "other"),
        ("ye", "other"),
        ("", "other"),
        ("a yes", "other"),
        ("\nno", "no"),
    ],
)
def test_answers_count_by_their_first_four_characters(answer: str, kind: str) -> None:
    assert yes_or_no(answer) == kind


def pair(subset: str, picture: str, first: str, second: str) -> list[tuple[str, str, str, str]]:
    return [(subset, picture, first, "yes"), (subset, picture, second, "No")]


ROWS = [
    *pair("count", "a", "yes", "no"),
    *pair("count", "b", "yes", "yes"),
    *pair("count", "c", "no", "yes"),
    *pair("count", "d", "yes", "perhaps"),
    *pair("existence", "a", "Yes, it is.", "No, it is not."),
    *pair("of mine", "a", "hm", "hm"),
]


def row(table: pd.DataFrame, name: str) -> Any:
    return table[table.subset == name].iloc[0]


def test_counts_by_hand() -> None:
    table = mme_scores(ROWS)
    assert list(table.subset) == ["existence", "count", "of mine", ALL, MEAN]
    count = row(table, "count")
    assert (count.acc, count.acc_plus, count.score) == (4 / 8, 1 / 4, 75.0)
    assert (count.n_pictures, count.n_questions, count.n_other) == (4, 8, 1)
    assert row(table, "existence").score == 200.0 and row(table, "of mine").score == 0.0
    assert row(table, ALL).acc == 6 / 12 and row(table, ALL).acc_plus == 2 / 6
    assert row(table, MEAN).acc == pytest.approx((1 + 0.5 + 0) / 3)
    assert row(table, MEAN).acc_plus == pytest.approx((1 + 0.25 + 0) / 3)
    assert row(table, MEAN).n_questions == 12


def test_the_order_of_rows_does_not_matter_and_frames_are_taken() -> None:
    frame = pd.DataFrame(ROWS, columns=list(COLUMNS))
    mixed = frame.sample(frac=1, random_state=3).assign(more=1)
    a, b = mme_scores(frame).set_index("subset"), mme_scores(mixed).set_index("subset")
    columns = ["acc", "acc_plus", "score", "n_pictures", "n_questions", "n_other"]
    pd.testing.assert_frame_equal(a[columns], b.loc[a.index, columns])


def test_both_right_is_rarer_than_one_and_intervals_draw_pictures() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["no", "yes"])
    rows = [
        one
        for i in range(400)
        for one in pair("scene", str(i), words[int(rng.random() < 0.8)], words[int(rng.random() > 0.8)])
    ]
    scene = row(mme_scores(rows, n_boot=4000), "scene")
    assert scene.acc == pytest.approx(0.8, abs=0.04) and scene.acc_plus == pytest.approx(0.64, abs=0.06)
    assert scene.acc_low < scene.acc < scene.acc_high
    width = scene.acc_plus_high - scene.acc_plus_low  # of a share of 400 pictures
    assert width == pytest.approx(2 * 1.96 * np.sqrt(scene.acc_plus * (1 - scene.acc_plus) / 400), rel=0.1)
    # two answers that are right together vary as one picture, not as two questions
    rows = [one for i in range(400) for one in pair("scene", str(i), *(("yes", "no") if i % 2 else ("", "")))]
    scene = row(mme_scores(rows, n_boot=4000), "scene")
    assert scene.acc_high - scene.acc_low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.1)


def test_the_mean_of_subsets_has_an_interval_of_its_own() -> None:
    rows = [*pair("count", "a", "yes", "no"), *pair("OCR", "a", "", "")]
    mean = row(mme_scores(rows), MEAN)
    assert mean.acc == mean.acc_plus == 0.5
    assert 0 < mean.acc_low < 0.5 < mean.acc_high < 1  # one picture a subset says little
    # the variance of a mean of independent subsets is the mean of theirs over their number
    rows = [
        one
        for subset, right in (("count", 0.5), ("OCR", 0.9))
        for i in range(400)
        for one in pair(subset, str(i), *(("yes", "no") if i < 400 * right else ("", "")))
    ]
    mean = row(mme_scores(rows, n_boot=4000), MEAN)
    wanted = 2 * 1.96 * np.sqrt((0.25 + 0.09) / 400 / 4)
    assert mean.acc_high - mean.acc_low == pytest.approx(wanted, rel=0.1)


def test_totals() -> None:
    assert (len(PERCEPTION), len(COGNITION), len(SUBSETS)) == (10, 4, 14)
    rows = [one for name in PERCEPTION for one in pair(name, "a", "yes", "no")]
    rows += [one for name in COGNITION for one in pair(name, "a", "yes", "yes")]
    assert mme_totals(mme_scores(rows)) == {"perception": 2000.0, "cognition": 200.0}
    with pytest.raises(DataError, match="no subset 'existence'"):
        mme_totals(mme_scores(ROWS[:8]))


@pytest.mark.parametrize(
    "rows, why",
    [
        ([], "no rows"),
        ([("count", "a", "yes", "yes")], "has 1 question"),
        ([*ROWS, ("count", "a", "yes", "yes")], "has 3 question"),
        ([("count", "a", "yes", "maybe"), ("count", "a", "yes", "no")], "answer 'maybe'"),
        (
            pd.DataFrame({"subset": ["x"], "picture": [1], "answer": ["yes"]}),
            "column 'prediction' is missing",
        ),
    ],
)
def test_what_cannot_be_counted(rows: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        mme_scores(rows)


def test_reported_numbers_are_those_of_the_paper() -> None:
    """Fewer tokens, fewer right answers; the arithmetic of the note beside the numbers."""
    rows = [REPORTED_COMPRESSED_CONTEXT[k] for k in ("query only", "K = 2 %", "K = 5 %", "full")]
    assert all(list(column) == sorted(column) for column in zip(*rows, strict=True))
    full, none = 1695, 60
    beyond = [
        n - none - share * (full - none) for (_, _, n), share in zip(rows[1:3], (0.02, 0.05), strict=True)
    ]
    assert [round(x) for x in beyond] == [58, 59]
