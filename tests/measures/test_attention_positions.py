"""Positions that stand out, on tables written by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from gatelens.measures import standing_out


def table_of(shares: dict[tuple[str, int], list[float]], se: float = 0.0, n: int = 100) -> pd.DataFrame:
    rows = [
        (layer, *key, value, se, n, n) for key, values in shares.items() for layer, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["layer", "kind", "index", "share", "se", "n", "held"])


def test_one_of_a_thousand_is_found_whatever_its_index() -> None:
    even = 1 / 1000
    shares = {("image", i): [even, even] for i in range(998)}
    shares |= {("image", 32): [even, 0.05], ("row_break", 7): [0.012, 0.012], ("gate", -1): [0.4, 0.2]}
    found = standing_out(table_of(shares))
    assert list(zip(found.kind, found["index"], strict=True)) == [
        ("gate", -1),
        ("image", 32),
        ("row_break", 7),
    ]
    assert found.stands_out.all()
    assert found.layer.tolist() == [0, 1, 0]
    assert found["mean"].tolist() == pytest.approx([0.3, (even + 0.05) / 2, 0.012])
    assert found.even.tolist() == pytest.approx([even] * 3)


def test_an_even_share_of_few_positions_does_not_stand_out() -> None:
    shares = {("image", i): [1 / 64] for i in range(62)} | {("image", 62): [0.03], ("gate", -1): [0.04]}
    found = standing_out(table_of(shares))
    assert len(found) == 64  # all take more than 1 %
    assert found[found.stands_out].kind.tolist() == ["gate"]  # 0.03 is less than two even shares, 0.03125
    assert standing_out(table_of(shares), times=1.9).stands_out.sum() == 2
    assert len(standing_out(table_of(shares), least=0.035)) == 1


def test_noise_does_not_stand_out() -> None:
    shares = {("image", i): [1 / 64] for i in range(63)} | {("gate", -1): [0.04]}
    assert not standing_out(
        table_of(shares, se=0.005)
    ).stands_out.any()  # 0.04 − 1.96 · 0.005 = 0.0302 < 2/64
    assert standing_out(table_of(shares, se=0.004)).stands_out.sum() == 1  # 0.0322


def test_none() -> None:
    found = standing_out(table_of({("image", i): [1 / 200] for i in range(200)}))
    assert found.empty and {"kind", "index", "highest", "stands_out"} <= set(found.columns)
