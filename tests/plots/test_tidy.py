"""Choosing rows of a table."""

from __future__ import annotations

import pandas as pd
import pytest

from gatelens.errors import DataError
from gatelens.plots.tidy import rows_with

TABLE = pd.DataFrame({"how": ["zero", "zero", "mask"], "mean": [1, 2, 3]})


def test_the_first_value_unless_told() -> None:
    assert list(rows_with(TABLE, "how", None, "the table")["mean"]) == [1, 2]
    assert list(rows_with(TABLE, "how", "mask", "the table")["mean"]) == [3]


def test_an_unknown_value_lists_those_there_are() -> None:
    message = r"the knockout table has no rows with how='soft' \(it has: zero, mask\)"
    with pytest.raises(DataError, match=message):
        rows_with(TABLE, "how", "soft", "the knockout table")
    with pytest.raises(DataError, match=r"it has: none"):
        rows_with(TABLE.iloc[:0], "how", None, "the knockout table")
