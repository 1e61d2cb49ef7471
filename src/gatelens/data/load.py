"""Data sets by name or folder."""

from __future__ import annotations

from pathlib import Path

from gatelens.data.base import Dataset
from gatelens.data.easy_vqa import EasyVqa
from gatelens.data.emoji_scenes import EmojiScenes
from gatelens.data.folder import Folder
from gatelens.errors import DataError

NAMES = ("emoji-scenes", "easy-vqa")


def load(name: str | Path, split: str = "test") -> Dataset:
    """A data set.

    Args:
        name: ``"emoji-scenes"``, ``"easy-vqa"``, or a folder of pictures with ``data.csv`` or ``data.jsonl``.
        split: ``"train"`` or ``"test"``; a folder has no splits.

    Raises:
        DataError: neither a known name nor a folder.
    """
    if name == "emoji-scenes":
        return EmojiScenes(split)
    if name == "easy-vqa":
        return EasyVqa(split)
    if Path(name).is_dir():
        return Folder(name)
    raise DataError(f"no data set {str(name)!r}: use {', '.join(NAMES)}, or the path of an existing folder")
