"""The pictures that organisms are trained on: scenes of seen combinations, and easy-vqa's training pictures."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from gatelens.data import scenes as emoji
from gatelens.data.varied_scenes import varied_scene
from gatelens.pictures import load_image


def training_pictures(n_scenes: int, seed: int = 0, varied: bool = False) -> UInt8[np.ndarray, "n 64 64 3"]:
    """``n_scenes`` training scenes followed by easy-vqa's 4,000 training pictures."""
    return np.concatenate([scene_pictures(n_scenes, seed, varied=varied), easy_vqa_pictures("train")])


def scene_pictures(
    n: int, seed: int = 0, unnamed: bool = False, varied: bool = False
) -> UInt8[np.ndarray, "n 64 64 3"]:
    """The first ``n`` training scenes of this seed, in named or unnamed colours; kept in the temporary folder."""
    sample = training_scene(
        n - 1, seed, unnamed, varied
    ).pixels  # a change of how scenes are drawn changes the key
    key = hashlib.sha256(f"{n}-{seed}".encode() + sample.tobytes()).hexdigest()[:12]
    kept = Path(tempfile.gettempdir()) / f"gatelens-scenes-{key}.npy"
    if not kept.exists():
        pixels = np.stack([training_scene(i, seed, unnamed, varied).pixels for i in range(n)])
        partial = kept.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, pixels)
        partial.replace(kept)
    return np.load(kept, mmap_mode="c")


def training_scene(index: int, seed: int, unnamed: bool, varied: bool = False) -> emoji.Scene:
    """The scene that the picture of this index shows; of ``varied-scenes`` or of ``emoji-scenes``."""
    if varied:
        return varied_scene("unnamed" if unnamed else "train", seed, index)
    return emoji.unnamed_scene(seed, index) if unnamed else emoji.scene("train", seed, index)


def easy_vqa_pictures(split: str) -> UInt8[np.ndarray, "n 64 64 3"]:
    """All pictures of easy-vqa's split, in the order of their numbers."""
    import easy_vqa

    paths = easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    return np.stack([np.asarray(load_image(paths[i])) for i in sorted(paths)])
