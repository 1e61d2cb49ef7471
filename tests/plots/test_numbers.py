"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from gatelens.plots import numbers


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.5, 2, "0.50"),
        (-0.5, 2, "−0.50"),
        (-0.001, 2, "0.00"),
        (-0.001, 3, "−0.001"),
        (-0.0, 2, "0.00"),
        (-0.4, 0, "0"),
    ],
)
def test_a_number_has_a_real_minus_and_no_minus_zero(value: float, digits: int, text: str) -> None:
    assert numbers.number(value, digits) == text


def test_signed_numbers() -> None:
    assert [numbers.signed(x) for x in (0.5, -0.5, 0.0, -0.001)] == ["+0.50", "−0.50", "+0.00", "+0.00"]


def test_percent() -> None:
    assert numbers.percent(0.123) == "12\u00a0%"
    assert numbers.percent(-0.001) == "0\u00a0%"
    assert numbers.percent(-0.5) == "−50\u00a0%"
    assert numbers.percent(0.1234, 1) == "12.3\u00a0%"
    assert numbers.percent(math.nan) == numbers.percent(math.inf) == "n/a"


def test_intervals() -> None:
    assert numbers.span(-0.1, 0.9) == "−0.10 – 0.90"
    assert numbers.interval(0.88, 0.93) == "[0.88, 0.93]"
    assert numbers.cell(0.91, 0.88, 0.93) == "0.91 [0.88, 0.93]"
    assert numbers.percent_cell(0.91, 0.88, 0.93) == "91\u00a0% [88\u00a0%, 93\u00a0%]"
