"""Rows of a table by number, without reading more than is asked for.

Parquet files are read a row group and a column at a time, also from the hub: a thousand rows of two hundred
thousand do not download the rest, and labels are read without the pictures. The library ``datasets`` has no such
random access, it downloads a split whole or streams it from the start; it reads everything that is not Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gatelens.errors import DataError
from gatelens.hub_errors import hub_reason, one_line

Row = dict[str, Any]


class ParquetRows:
    """Rows of Parquet files, local paths or anything fsspec opens (``hf://…``), as one table.

    Attributes:
        base: the folder in which pictures that the rows name may be.
        features: the table's ``datasets.Features``, or None when nothing says.
    """

    def __init__(self, files: Sequence[str], label: str, base: Path | None = None, features: Any = None):
        self.files, self.label, self.base = list(files), label, base
        self._features = features
        self._open_files: dict[int, pq.ParquetFile] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._file(0).schema_arrow.names)

    @cached_property
    def features(self) -> Any:
        schema = self._file(0).schema_arrow
        if self._features or not (schema.metadata and b"huggingface" in schema.metadata):
            return self._features
        return hub_library(self.label).Features.from_arrow_schema(schema)

    def __len__(self) -> int:
        return sum(self._file(i).metadata.num_rows for i in range(len(self.files)))

    def column(self, name: str) -> list[Any]:
        """One column whole, nothing else read."""
        parts = (self._file(i).read(columns=[name]).column(name) for i in range(len(self.files)))
        return [value for part in parts for value in part.to_pylist()]

    def read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        """The wanted rows, in rising order, each with its number."""
        remaining = sorted(set(wanted), reverse=True)
        start = 0
        for i in range(len(self.files)):
            if not remaining:
                return
            metadata = self._file(i).metadata
            for group in range(metadata.num_row_groups):
                end = start + metadata.row_group(group).num_rows
                inside = []
                while remaining and remaining[-1] < end:
                    inside.append(remaining.pop())
                if inside:
                    present = [c for c in columns if c in self._file(i).schema_arrow.names]
                    table = self._file(i).read_row_group(group, columns=present)
                    rows = table.take(pa.array([n - start for n in inside])).to_pylist()
                    yield from zip(inside, rows, strict=True)
                start = end

    def _file(self, i: int) -> pq.ParquetFile:
        if i not in self._open_files:
            try:
                self._open_files[i] = pq.ParquetFile(fsspec.open(self.files[i], "rb").open())
            except Exception as error:  # OSError, Arrow's, and from the hub the HTTP client's
                reason = f"{self.files[i]} is not a readable Parquet file ({one_line(error)})"
                if "://" in self.files[i]:
                    reason = hub_reason(error, self.files[i], kind="dataset") or reason
                raise DataError(f"{self.label}: {reason}") from error
        return self._open_files[i]


class IndexedRows:
    """Rows that can be indexed: a list of records, or a ``datasets.Dataset`` (then with its ``features``)."""

    def __init__(self, rows: Any, base: Path | None, features: Any = None):
        self._rows, self.base, self.features = rows, base, features

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.features or dict.fromkeys(name for row in self._rows for name in row))

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> list[Any]:
        rows = self._rows.select_columns([name]) if self.features else self._rows
        return [row.get(name) for row in rows]

    def read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        for i in sorted(set(wanted)):
            if i < len(self._rows):
                yield i, self._rows[i]


class StreamedRows:
    """Rows of a repository that is not Parquet, streamed: nothing after the last row wanted is downloaded."""

    def __init__(self, table: Any, size: int | None):
        self.base: Path | None = None
        self.features = table.features
        self._table, self._size = undecoded(table), size

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._table.column_names or next(iter(self._table), {}))

    def __len__(self) -> int:
        if self._size is None:
            self._size = sum(1 for _ in self._table)
        return self._size

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self._table.select_columns([name])]

    def read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        chosen = set(wanted)
        rows = islice(self._table, max(chosen, default=-1) + 1)
        return ((i, row) for i, row in enumerate(rows) if i in chosen)


Rows = ParquetRows | IndexedRows | StreamedRows


def undecoded(table: Any) -> Any:
    """The table with its pictures left as bytes or paths, so that a bad one spoils no other row."""
    image = hub_library("the data set").Image
    for name, feature in (table.features or {}).items():
        if isinstance(feature, image):
            table = table.cast_column(name, image(decode=False))
    return table


def hub_library(what: str) -> ModuleType:
    """The library ``datasets``, which is an optional dependency.

    Raises:
        DataError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{what} needs the library datasets; run: pip install 'gatelens[hub]'") from None
    return datasets
