"""Data sets by name or folder."""

from __future__ import annotations

from pathlib import Path

from gatelens.data.base import Dataset
from gatelens.data.combined import CombinedDataset
from gatelens.data.easy_vqa import EasyVqa
from gatelens.data.emoji_scenes import EmojiScenes
from gatelens.data.folder import Folder
from gatelens.data.hub import ENTRIES, HubDataset
from gatelens.data.varied_scenes import VariedScenes
from gatelens.errors import DataError

NAMES = ("emoji-scenes", "varied-scenes", "easy-vqa", *ENTRIES)


def load(name: str | Path, split: str | None = None, skip_bad: bool = False) -> Dataset:
    """A data set.

    Args:
        name: ``"emoji-scenes"``, ``"varied-scenes"``, ``"easy-vqa"``; one of the papers' (``"vqav2"``,
            ``"flickr30k"``, ``"coco"``, ``"imagenet"``, ``"mme"``, ``"coco-objects"``), from the hub, or from a copy as
            ``"vqav2:FOLDER"`` or ``"vqav2:org/name"``; a folder of pictures with ``data.csv`` or ``data.jsonl``; or
            several of these with commas between them.
        split: None for the one made for testing (``"test"``, or the papers'); ``varied-scenes`` has ``"style"``
            too; a folder has no splits.
        skip_bad: leave bad rows out and list them in ``skipped`` (folders and the papers' data sets) instead of
            raising an error that names the first.

    Raises:
        DataError: neither a known name nor a folder; or bad data.

    Example:
        >>> scenes = gl.data.load("emoji-scenes")
        >>> scenes.examples("class", limit=1)
        [Example(test-class-0-0, class: '<image>this is a' -> 'sunflower'; objects, masks)]
    """
    text = str(name)
    if text == "emoji-scenes":
        return EmojiScenes(split or "test")
    if text == "varied-scenes":
        return VariedScenes(split or "test")
    if text == "easy-vqa":
        return EasyVqa(split or "test")
    if Path(text).is_dir():
        return Folder(text, skip_bad)
    known, _, where = text.partition(":")
    one = known in ENTRIES and ("," not in where or Path(where).expanduser().exists())
    if "," in text and not one:
        parts = [part.strip() for part in text.split(",")]
        return CombinedDataset([load(part, split, skip_bad) for part in parts if part])
    if one:
        if ":" in text and not where:
            raise DataError(
                f"data {text!r} names no place after the colon; give a folder or a repository (org/name)"
            )
        return HubDataset(known, where or None, split=split, skip_bad=skip_bad)
    raise DataError(f"no data set {text!r}: use {', '.join(NAMES)}, or the path of an existing folder")


def from_anywhere(name: str | Path) -> str:
    """The same data by a name that :func:`load` takes in any working directory: folders by their whole paths."""
    text = str(name)
    if Path(text).is_dir():
        return str(Path(text).resolve())
    known, _, where = text.partition(":")
    if known in ENTRIES and where and (path := Path(where).expanduser()).exists():
        return f"{known}:{path.resolve()}"
    if "," in text:
        return ",".join(from_anywhere(part.strip()) for part in text.split(",") if part.strip())
    return text
