"""The layout of a store's folder; ``docs/activation-store.md`` documents it.

::

    manifest.json                                     what was asked for
    shards/collect/00000/shard.parquet                its record: how many rows it has, and the checksum of each file;
                                                      the shard is whole when this is there
    rows/00000.parquet                                who each row of the shard is
    activations/resid_post.3/00000.safetensors        what they hold there: ``activations``, [row, ...]
"""

from __future__ import annotations

from pathlib import Path

COLLECT = "collect"  # what the folder calls the study and its only section
RECORD = "shard"  # the table of a unit


def point_name(site: str, layer: int) -> str:
    """``resid_post.3``."""
    return f"{site}.{layer}"


def point_of(name: str) -> tuple[str, int]:
    """(site, layer) of a point's name."""
    site, _, layer = name.rpartition(".")
    return site, int(layer)


def activation_file(folder: Path, point: tuple[str, int], shard: str) -> Path:
    """The activations of a shard at one site and layer."""
    return folder / "activations" / point_name(*point) / f"{shard}.safetensors"


def index_file(folder: Path, shard: str) -> Path:
    """Who each row of a shard is."""
    return folder / "rows" / f"{shard}.parquet"


def records_folder(folder: Path) -> Path:
    """The records of all shards, each in a folder with its name."""
    return folder / "shards" / COLLECT


def record_file(folder: Path, shard: str) -> Path:
    """The record of a shard."""
    return records_folder(folder) / shard / f"{RECORD}.parquet"
