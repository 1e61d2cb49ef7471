"""Examples of two lengths, and a store of them that several tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gatelens.activation_store import ActivationStore, collect
from gatelens.data import Example
from study_helpers import picture

NAMES = ("dog", "cat", "red", "dog", "cat", "red", "dog", "cat")
PROMPTS = ("<image>this animal is a", "<image>what color is the dog ?")


def examples(n: int = 8) -> list[Example]:
    return [
        Example(picture(name, seed=i // 2), PROMPTS[i % 2], (name,), "class", f"e{i}", name)
        for i, name in enumerate(NAMES[:n])
    ]


def small_store(model: Any, folder: Path, **options: Any) -> ActivationStore:
    """Four shards of two examples; 17 rows of each: 16 patches and the last position."""
    given = {"sites": ["resid_pre"], "layers": [1, 2], "at": "image | last", "dtype": "float32"}
    given |= {"batch_size": 2, "shard_rows": 40, "progress": False, "out": folder}
    return collect(model, examples(), **(given | options))
