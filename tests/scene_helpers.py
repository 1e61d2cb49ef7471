"""A data set of one-coloured squares whose left half is an object with a mask."""

from __future__ import annotations

import dataclasses

import numpy as np

from gatelens.data import Example
from study_helpers import picture

NAMES = ("dog", "cat", "red", "blue")


@dataclasses.dataclass
class TinyScenes:
    """Pictures of one colour whose left half is the object."""

    name: str = "tiny-scenes"
    tasks: tuple[str, ...] = ("caption", "vqa")
    classes: tuple[str, ...] = NAMES
    n: int = 7

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Example]:
        out = []
        for i in range(min(self.n, limit or self.n)):
            label, mask = NAMES[i % 4], np.zeros((16, 16), bool)
            mask[:, :8] = True
            prompt = "<image>it shows" if task == "caption" else "<image>what color ?"
            meta = {"objects": [label], "masks": {label: mask}}
            image = picture(label, seed * 100 + i)
            out.append(Example(image, prompt, (label,), task, f"{task}-{i}", meta=meta))
        return out
