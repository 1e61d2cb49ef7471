"""Choosing rows of a tidy table to draw."""

from __future__ import annotations

import pandas as pd

from gatelens.errors import DataError


def rows_with(table: pd.DataFrame, column: str, value: str | None, name: str) -> pd.DataFrame:
    """The rows with a value in a column.

    Args:
        table: any table that has the column.
        column: where to look.
        value: what to look for; None is the first value there is.
        name: what errors call the table, such as “the knockout table”.

    Raises:
        DataError: no row has the value; the message lists those there are.
    """
    known = list(table[column].unique())
    wanted = value or (known[0] if known else "none")
    part = table[table[column] == wanted]
    if part.empty:
        listed = ", ".join(map(str, known)) or "none"
        raise DataError(f"{name} has no rows with {column}={wanted!r} (it has: {listed})")
    return part
