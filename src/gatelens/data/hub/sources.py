"""Opening the rows of a data set wherever they are: on the hub, in files, or in COCO's own annotation file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gatelens.data.hub.rows import IndexedRows, ParquetRows, Row, Rows, StreamedRows, hub_library, undecoded
from gatelens.data.tables import json_object, read_json_lines
from gatelens.errors import DataError
from gatelens.hub_errors import hub_reason, one_line

TABLES = (".parquet", ".jsonl")
_SPLITS = ("train", "validation", "val", "test", "dev")
_OTHER_NAMES = {"validation": ("val", "dev"), "val": ("validation", "dev")}


def from_hub(
    repo: str, split: str, label: str, revision: str | None = None, files: str | None = None
) -> Rows:
    """The split of a repository; only its description is downloaded now.

    Args:
        repo: ``org/name`` on the hub, or a folder laid out like one.
        split: the split's name.
        label: what error messages call the data set.
        revision: the repository's default one when None.
        files: a pattern for the split's files, where the repository's layout does not tell.

    Raises:
        DataError: no network, no such repository, one that is gated, or one without this split; says what to do.
    """
    datasets = hub_library(label)
    options = {"revision": revision, "data_files": {split: files} if files else None}
    try:
        with _hub_warnings_off():
            builder = datasets.load_dataset_builder(repo, **options)
        splits = dict(builder.config.data_files or {})
        if builder.name == "parquet" and split in splits:
            return ParquetRows([str(f) for f in splits[split]], label, features=builder.info.features)
        if not splits or split in splits:
            size = getattr((builder.info.splits or {}).get(split), "num_examples", None)
            table = datasets.load_dataset(repo, split=split, streaming=True, **options)
            return StreamedRows(table, size or None)
    except (
        Exception
    ) as error:  # ConnectionError, RuntimeError, ValueError, the library's own, the HTTP client's
        reason = hub_reason(error, repo, kind="dataset", revision=revision) or (
            f"{repo} cannot be opened ({one_line(error)}): name another repository ({{org}}/{{name}})"
        )
        raise DataError(f"{label}: {reason}; or give a local copy: --data {label}:FOLDER") from error
    raise DataError(f"{label}: {repo} has no split {split!r} (it has: {', '.join(map(str, splits))})")


@contextmanager
def _hub_warnings_off() -> Iterator[None]:
    """Without the hub client's warnings of every attempt to connect: what matters is in the error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def from_disk(path: Path, split: str, label: str) -> Rows:
    """A local copy: a ``save_to_disk`` folder, a Parquet or JSON-lines file, a folder of them, or COCO's own.

    Raises:
        DataError: nothing there that can be read, or not the split.
    """
    if path.is_file():
        return _from_files([path], path.parent, label)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _from_saved(path, split, label)
    annotations = sorted(path.glob("**/instances_*.json"))
    if annotations:
        return _from_coco(annotations, split, path, label)
    for suffix in TABLES:
        files = sorted(path.glob(f"**/*{suffix}"))
        if files:
            return _from_files(_of_split(files, split, path, label), path, label)
    raise DataError(
        f"{label}: {path} holds no {' or '.join(TABLES)} file and no save_to_disk data set; give a copy with one"
    )


def _from_saved(path: Path, split: str, label: str) -> Rows:
    """A folder written by ``save_to_disk``: one table, or one for each split."""
    datasets = hub_library(label)
    try:
        table = datasets.load_from_disk(str(path))
    except Exception as error:  # damaged Arrow files raise many kinds
        raise DataError(f"{label}: {path} cannot be read ({one_line(error)})") from error
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise DataError(f"{label}: {path} has no split {split!r} (it has: {', '.join(table)})")
        table = table[split]
    return IndexedRows(undecoded(table), path, features=table.features)


def _of_split(files: Sequence[Path], split: str, base: Path, label: str) -> list[Path]:
    """The files of a split by their names (``test-00000-of-00002.parquet``, ``test/0000.parquet``); all when no
    name tells."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        words = [file.name.split("-")[0].split(".")[0], *file.relative_to(base).parts[:-1]]
        name = next((word for word in words if word in (*_SPLITS, split)), "")
        by_split.setdefault(name, []).append(file)
    for name in (split, *_OTHER_NAMES.get(split, ()), ""):
        if name in by_split:
            return by_split[name]
    raise DataError(
        f"{label}: {base} has no files of split {split!r} (it has: {', '.join(sorted(by_split))})"
    )


def _from_files(files: Sequence[Path], base: Path, label: str) -> Rows:
    if files[0].suffix == ".parquet":
        return ParquetRows([str(f) for f in files], label, base)
    if files[0].suffix != ".jsonl":
        raise DataError(
            f"{label}: {files[0]} is neither {' nor '.join(TABLES)}; give one of these or a folder"
        )
    return IndexedRows([row for file in files for row in _from_json_lines(file, label)], base)


def _from_json_lines(file: Path, label: str) -> list[Row]:
    rows = []
    for number, line in read_json_lines(file):
        try:
            rows.append(json_object(line))
        except ValueError as error:
            raise DataError(f"{label}: {file.name} line {number}: {error}; fix the line") from error
    return rows


def _from_coco(files: Sequence[Path], split: str, base: Path, label: str) -> Rows:
    """COCO's ``instances_val2017.json``: one row per picture that has objects."""
    file = next((f for f in files if split in f.stem), None)
    if file is None:
        raise DataError(
            f"{label}: {base} has no instances_{split}….json (it has: {', '.join(f.name for f in files)})"
        )
    try:
        rows = _coco_rows(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{label}: {file} is not a COCO instance file ({one_line(error)})") from error
    folder = file.stem.removeprefix("instances_")
    return IndexedRows([{**row, "folder": folder} for row in rows], base)


def _coco_rows(content: dict[str, Any]) -> list[Row]:
    """The pictures of an instance file, each with its objects and their names."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[int, list[Row]] = {}
    for annotation in content["annotations"]:
        named = {**annotation, "category_name": names[annotation["category_id"]]}
        objects.setdefault(annotation["image_id"], []).append(named)
    return [{**p, "objects": objects[p["id"]]} for p in content["images"] if p["id"] in objects]
