"""Rows of a table by number, from wherever it lies, without reading more than is asked for.

Parquet files are read a row group and a column at a time, also from the hub: a thousand rows of two hundred
thousand do not download the rest, and labels are read without the pictures.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from gatelens.errors import DataError

Row = dict[str, Any]
TABLES = (".parquet", ".jsonl")


class Rows(Protocol):
    """A table: its columns, what its numbers stand for, and its rows by number."""

    label: str
    base: Path | None

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def features(self) -> Any:
        """The table's ``datasets.Features``, or None when nothing says."""
        ...

    def __len__(self) -> int: ...

    def column(self, name: str) -> list[Any]:
        """One column whole, nothing else read."""
        ...

    def read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        """The wanted rows, in rising order, each with its number."""
        ...


class ParquetRows:
    """Rows of Parquet files, local paths or anything fsspec opens (``hf://…``), as one table."""

    def __init__(self, files: Sequence[str], label: str, base: Path | None = None, features: Any = None):
        self.files, self.label, self.base = list(files), label, base
        self._given = features
        self._open: dict[int, pq.ParquetFile] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._file(0).schema_arrow.names)

    @cached_property
    def features(self) -> Any:
        if self._given:
            return self._given
        schema = self._file(0).schema_arrow
        if not (schema.metadata and b"huggingface" in schema.metadata):
            return None
        datasets = hub_library(self.label)
        return datasets.Features.from_arrow_schema(schema)

    def __len__(self) -> int:
        return sum(self._file(i).metadata.num_rows for i in range(len(self.files)))

    def column(self, name: str) -> list[Any]:
        parts = (self._file(i).read(columns=[name]).column(name) for i in range(len(self.files)))
        return [value for part in parts for value in part.to_pylist()]

    def read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        left = sorted(set(wanted))
        start, at = 0, 0
        for i in range(len(self.files)):
            if at == len(left):
                return
            metadata = self._file(i).metadata
            for group in range(metadata.num_row_groups):
                end = start + metadata.row_group(group).num_rows
                inside = []
                while at < len(left) and left[at] < end:
                    inside.append(left[at])
                    at += 1
                if inside:
                    table = self._read(i, group, columns).take(pa.array([n - start for n in inside]))
                    yield from zip(inside, table.to_pylist(), strict=True)
                start = end

    def _read(self, file: int, group: int, columns: Sequence[str]) -> pa.Table:
        present = [c for c in columns if c in self._file(file).schema_arrow.names]
        try:
            return self._file(file).read_row_group(group, columns=present)
        except Exception as error:  # as above; a connection can break while it reads
            raise DataError(f"{self.label}: {self.files[file]} cannot be read ({_line(error)})") from error

    def _file(self, i: int) -> pq.ParquetFile:
        if i not in self._open:
            import fsspec

            try:
                self._open[i] = pq.ParquetFile(fsspec.open(self.files[i], "rb").open())
            except Exception as error:  # OSError, Arrow's, and from the hub the HTTP client's
                if "://" in self.files[i]:
                    raise DataError(f"{self.label}: {_why(self.files[i], error)}") from error
                raise DataError(
                    f"{self.label}: {self.files[i]} is no readable Parquet file ({_line(error)})"
                ) from error
        return self._open[i]


class ListRows:
    """Rows that are in memory already: a JSON-lines table, or COCO's own annotations."""

    def __init__(self, rows: Sequence[Row], label: str, base: Path | None):
        self._rows, self.label, self.base = rows, label, base
        self.features = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for row in self._rows for name in row))

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> list[Any]:
        return [row.get(name) for row in self._rows]

    def read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        for i in sorted(set(wanted)):
            if i < len(self._rows):
                yield i, self._rows[i]


class TableRows:
    """Rows of a ``datasets.Dataset`` (``save_to_disk``)."""

    def __init__(self, table: Any, label: str, base: Path | None = None):
        self.features, self.label, self.base = table.features, label, base
        self._table = undecoded(table)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table)

    def column(self, name: str) -> list[Any]:
        return list(self._table.select_columns([name])[name])

    def read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        for i in sorted(set(wanted)):
            if i < len(self._table):
                yield i, self._table[i]


class StreamedRows:
    """Rows of a repository that is not Parquet, streamed: nothing behind the last row wanted is downloaded."""

    def __init__(self, table: Any, label: str, size: int | None):
        self.features, self.label = table.features, label
        self.base: Path | None = None
        self._table, self._size = undecoded(table), size

    @cached_property
    def columns(self) -> tuple[str, ...]:
        known = self._table.column_names
        return tuple(known) if known else tuple(next(iter(self._table), {}))

    def __len__(self) -> int:
        if self._size is None:
            self._size = sum(1 for _ in self._table)
        return self._size

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self._table.select_columns([name])]

    def read(self, wanted: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
        left = set(wanted)
        for i, row in enumerate(islice(self._table, max(left, default=-1) + 1)):
            if i in left:
                yield i, row


def undecoded(table: Any) -> Any:
    """The table with its pictures left as bytes or paths, so that a bad one spoils no other row."""
    datasets = hub_library("the data set")
    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def hub_library(what: str) -> Any:
    """The library ``datasets``.

    Raises:
        DataError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{what} needs the library datasets; run: pip install 'gatelens[hub]'") from None
    return datasets


def from_hub(
    repo: str, split: str, label: str, revision: str | None = None, files: str | None = None
) -> Rows:
    """The split of a repository; only its description is downloaded now. ``files``: a pattern for the split's.

    Raises:
        DataError: no network, no such repository, one that is gated, or one without this split; says what to do.
    """
    datasets = hub_library(label)
    fix = f"or give a local copy: --data {label}:FOLDER"
    which = {"revision": revision, "data_files": {split: files} if files else None}
    try:
        with _quiet():
            builder = datasets.load_dataset_builder(repo, **which)
        splits = dict(builder.config.data_files or {})
        if builder.name == "parquet" and split in splits:
            return ParquetRows([str(f) for f in splits[split]], label, features=builder.info.features)
        if splits and split not in splits:
            raise DataError(f"{label}: {repo} has no split {split!r} (it has: {', '.join(map(str, splits))})")
        size = getattr((builder.info.splits or {}).get(split), "num_examples", None)
        table = datasets.load_dataset(repo, split=split, streaming=True, **which)
        return StreamedRows(table, label, size or None)
    except DataError:
        raise
    except (
        Exception
    ) as error:  # the library raises ConnectionError, RuntimeError, ValueError, its own and httpx's
        raise DataError(f"{label}: {_why(repo, error)}; {fix}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hub client's warnings of every attempt to connect: what matters is in the error."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "huggingface_hub.utils._http")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _why(repo: str, error: Exception) -> str:
    """What stands between a person and the repository, and how to get past it."""
    chain: BaseException | None = error
    kinds = set()
    while chain is not None:
        kinds.add(type(chain).__name__)
        chain = chain.__cause__ or chain.__context__
    text = _line(error)
    if "GatedRepoError" in kinds or "gated" in text.lower():
        return f"{repo} is gated: accept its terms on its hub page and run 'hf auth login'"
    if kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError"} or isinstance(error, ConnectionError):
        return f"the hub cannot be reached for {repo} (offline?): connect"
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return f"the hub has no data set {repo}, or it is private: check the name, or run 'hf auth login'"
    return f"{repo} cannot be opened ({text}): name another repository ({{org}}/{{name}})"


def from_disk(path: Path, split: str, label: str) -> Rows:
    """A local copy: a ``save_to_disk`` folder, a Parquet or JSON-lines file, a folder of them, or COCO's own.

    Raises:
        DataError: nothing there that can be read, or not the split.
    """
    if path.is_file():
        return _from_files([path], path.parent, label)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        datasets = hub_library(label)
        try:
            table = datasets.load_from_disk(str(path))
        except Exception as error:  # damaged Arrow files raise many kinds
            raise DataError(f"{label}: {path} cannot be read ({_line(error)})") from error
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise DataError(f"{label}: {path} has no split {split!r} (it has: {', '.join(table)})")
            table = table[split]
        return TableRows(table, label, path)
    annotations = sorted(path.glob("**/instances_*.json"))
    if annotations:
        return _from_coco(annotations, split, path, label)
    for suffix in TABLES:
        found = sorted(path.glob(f"**/*{suffix}"))
        if found:
            return _from_files(_of_split(found, split, path, label), path, label)
    raise DataError(
        f"{label}: {path} holds no {' or '.join(TABLES)} file and no save_to_disk data set; give a copy with one"
    )


def _of_split(files: Sequence[Path], split: str, base: Path, label: str) -> list[Path]:
    """The files of a split by their names (``test-00000-of-00002.parquet``, ``test/0000.parquet``); all when no
    name tells."""
    told: dict[str, list[Path]] = {}
    for file in files:
        words = [file.name.split("-")[0].split(".")[0], *file.relative_to(base).parts[:-1]]
        name = next((w for w in words if w in ("train", "validation", "val", "test", "dev", split)), "")
        told.setdefault(name, []).append(file)
    same = {"validation": ("val", "dev"), "val": ("validation", "dev")}.get(split, ())
    for name in (split, *same, ""):
        if name in told:
            return told[name]
    raise DataError(f"{label}: {base} has no files of split {split!r} (it has: {', '.join(sorted(told))})")


def _from_files(files: Sequence[Path], base: Path, label: str) -> Rows:
    if files[0].suffix == ".parquet":
        return ParquetRows([str(f) for f in files], label, base)
    if files[0].suffix != ".jsonl":
        raise DataError(
            f"{label}: {files[0]} is neither {' nor '.join(TABLES)}; give one of these or a folder"
        )
    rows: list[Row] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{label}: {file} cannot be read: {error}") from error
        for number, line in enumerate(lines):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise DataError(f"{label}: {file.name} line {number + 1} is no JSON: {error.msg}") from error
            if row is not None and not isinstance(row, dict):
                raise DataError(f"{label}: {file.name} line {number + 1} is no JSON object")
            if row is not None:
                rows.append(row)
    return ListRows(rows, label, base)


def _from_coco(files: Sequence[Path], split: str, base: Path, label: str) -> Rows:
    """COCO's ``instances_val2017.json``: one row a picture that has objects."""
    chosen = next((f for f in files if split in f.stem), None)
    if chosen is None:
        raise DataError(
            f"{label}: {base} has no instances_{split}….json (it has: {', '.join(f.name for f in files)})"
        )
    try:
        content = json.loads(chosen.read_text(encoding="utf-8"))
        names = {c["id"]: c["name"] for c in content["categories"]}
        objects: dict[int, list[Row]] = {}
        for one in content["annotations"]:
            objects.setdefault(one["image_id"], []).append(
                {**one, "category_name": names[one["category_id"]]}
            )
        folder = chosen.stem.removeprefix("instances_")
        rows = [
            {**p, "folder": folder, "objects": objects[p["id"]]}
            for p in content["images"]
            if p["id"] in objects
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{label}: {chosen} is no COCO instance file ({_line(error)})") from error
    return ListRows(rows, label, base)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
