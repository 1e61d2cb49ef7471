"""The verdict on plants of known truth: a small share of ``python -m benchmarks.planted_verdicts``."""

from __future__ import annotations

import pytest
from benchmarks.planted_verdicts import POOL, draws, measure, rates, shown
from benchmarks.verdict_plants import KINDS, TRUTHS, Carried, holds, planted

NUMBERS = [2, 6, 9, 10, 13]  # of dev; the last is of Chameleon's class


@pytest.mark.parametrize("number", NUMBERS, ids=[KINDS[i % len(KINDS)].replace(" ", "-") for i in NUMBERS])
def test_the_study_says_what_was_planted(number: int) -> None:
    steps: list[int] = []
    found = measure("dev", 40, number, steps.append)["verdicts"]
    assert found.verdict.tolist() == [TRUTHS[KINDS[number % len(KINDS)]]] * 2 and steps == [1]
    assert found.how.tolist() == ["zero", "mask"] and set(found.n) == {40}
    table = rates(found)
    assert set(table.wrong) == {0.0} and (table.high > 0.5).all()  # of one draw each
    assert TRUTHS[found.kind[0]] in shown(table, "zero")


def test_a_plant_that_does_something_else_is_refused() -> None:
    one = planted("dev", 0)
    others = ("image tokens", "gate or image tokens", "nothing; the gate gathers, unread")
    assert holds(one.plant, "gate") and not any(holds(one.plant, kind) for kind in others)
    carried = Carried(one.plant)
    assert carried.accuracy("gate") < 0.5 < 0.9 < carried.accuracy("rest")
    assert carried.follows("gate") and carried.stays("rest") and not carried.stays("gate")


def test_draws_share_no_picture() -> None:
    for n in (40, 200, 500):
        blocks = [block for size, _, some in draws(POOL) if size == n for block in some]
        assert len(blocks) == len(set(blocks)) == POOL // n * n // 20
