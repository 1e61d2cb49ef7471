"""From F1 under knockouts to a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gatelens.studies.whats_in_the_image import configurations as wi
from gatelens.studies.whats_in_the_image import scores
from gatelens.studies.whats_in_the_image.planted import PLANTED
from gatelens.studies.whats_in_the_image.verdict import kept_shares, verdict


def predictions(generated: float, query: float, both: float = 0.1, n: int = 120) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for path, mean in ((wi.GENERATED, generated), (wi.QUERY, query), (wi.BOTH, both), (wi.NONE, 1.0)):
        scope = wi.ALL if path != wi.NONE else "no"
        values = (rng.permutation(n) < round(mean * n)).astype(float)
        rows += [("mask", path, path, scope, 0, 6, f"{i}", v, 0.05) for i, v in enumerate(values)]
    return pd.DataFrame(rows, columns=[*scores.PLACE, "id", "f1", "chance"])


def judged(generated: float, query: float, planted: str = "", **rest: Any) -> dict[str, Any]:
    table = predictions(generated, query, **rest)
    summary = table.assign(precision=table.f1, recall=table.f1, f1_truth=table.f1)
    knockouts = scores.summarise(summary, 50, 0)
    return verdict(kept_shares(table, 200, 0), knockouts, None, [], PLANTED.get(planted))


@pytest.mark.parametrize(
    ("generated", "query", "wanted"),
    [
        (0.9, 0.1, "stored"),
        (0.46, 0.1, "stored"),  # as the paper has it: 0.40 and 0.00 of what the picture is worth
        (0.1, 1.0, "direct"),
        (0.95, 0.95, "either"),
        (0.15, 0.15, "needed"),
        (0.6, 0.5, "mixed"),
    ],
)
def test_verdicts(generated: float, query: float, wanted: str) -> None:
    said = judged(generated, query)
    assert said["verdict"] == wanted
    assert said["planted"] is None
    assert not said["disagree"]


def test_shares_in_closed_form() -> None:
    row = kept_shares(predictions(0.7, 0.4), 200, 0).iloc[0]
    assert row.floor == pytest.approx(0.1)
    assert row.generated == pytest.approx((0.7 - 0.1) / 0.9)
    assert row["query"] == pytest.approx((0.4 - 0.1) / 0.9)
    assert row.generated_low < row.generated < row.generated_high


def test_inconclusive_says_why() -> None:
    assert "only 8" in judged(0.9, 0.1, n=8)["sentence"]
    blind = judged(0.95, 0.95, both=0.95)
    assert blind["verdict"] == "inconclusive"
    assert "still 0.95" in blind["sentence"]
    nothing = predictions(0.9, 0.1).assign(f1=float("nan"))
    assert kept_shares(nothing, 50, 0).verdict.tolist() == ["inconclusive"]


def test_the_planted_truth_can_fail() -> None:
    right = judged(0.9, 0.1, planted="organism:gated")["planted"]
    assert right["accordingly"] is True
    wrong = judged(0.1, 0.9, planted="organism:gated")["planted"]
    assert wrong["accordingly"] is False
    assert [c["holds"] for c in wrong["checks"]] == [False, False, False]
    assert judged(0.9, 0.1, n=8, planted="organism:gated")["planted"]["accordingly"] is None


def test_paths_that_differ_by_too_little_are_mixed() -> None:
    """Less than half is kept without the query tokens, more without the others, and not clearly more."""
    for generated, query in ((0.5, 0.3), (0.3, 0.5)):
        row = kept_shares(predictions(generated, query), 200, 0).iloc[0]
        assert 0 < abs(row.generated - row["query"]) < 0.25
        assert row.verdict == "mixed"


def test_most_counts_by_its_interval() -> None:
    row = kept_shares(predictions(0.6, 0.6), 200, 0).iloc[0]
    assert row.generated > 0.5 > row.generated_low and row.verdict == "mixed"
    row = kept_shares(predictions(0.5, 0.5), 200, 0).iloc[0]
    assert row.generated < 0.5 < row.generated_high and row.verdict == "mixed"


def test_the_floor_is_at_least_chance_in_every_draw() -> None:
    """All pictures score alike: with chance left out of a draw, its share would lie far above."""
    table = predictions(0.0, 0.0).assign(chance=0.3)
    for path, score in ((wi.GENERATED, 0.65), (wi.QUERY, 0.37), (wi.BOTH, 0.1)):
        table.loc[table.path == path, "f1"] = score
    row = kept_shares(table, 50, 0).iloc[0]
    assert row.floor == pytest.approx(0.3)
    for name, share in (("generated", 0.35 / 0.7), ("query", 0.07 / 0.7)):
        assert row[name] == pytest.approx(share)
        assert share - 0.06 < row[f"{name}_low"] < share < row[f"{name}_high"] < share + 0.06
    row = kept_shares(table.assign(chance=0.05), 50, 0).iloc[0]
    assert row.floor == pytest.approx(0.1) and row.generated == pytest.approx(0.55 / 0.9)
