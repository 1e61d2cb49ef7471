"""The questions that are put to a compressed context: the data's own, by picture; MME's in pairs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from gatelens.data import Dataset, Example, scenes
from gatelens.data.base import TASKS, kind
from gatelens.data.prompts import QUESTION_PROMPT
from gatelens.errors import DataError

PICTURES = 60  # asked about, where the data is not MME: that is asked whole
QUESTIONS = 6  # drawn for each of them; several may be of one picture


def draw_questions(data: Dataset, n: int | None, seed: int) -> list[Example]:
    """The questions of pictures; none where the data asks nothing.

    Args:
        data: the data set.
        n: the maximum number of pictures; None is all of MME, or 60 of any other.
        seed: draws them.

    Raises:
        DataError: an example that is not a question about one picture.
    """
    task = next((t for t in data.tasks if kind(t) == "vqa"), None)
    if task is None or n == 0:
        return []
    most = PICTURES if n is None else n
    if data.name == "emoji-scenes":
        return scene_questions(most, getattr(data, "split", "test"), seed)
    if not are_paired(data.examples(task, limit=1, seed=seed)):
        drawn = data.examples(task, limit=QUESTIONS * most, seed=seed)
        return list(chain(*by_picture(drawn)[:most]))
    pairs = data.examples(task, limit=None, seed=seed)
    marked = [dataclasses.replace(e, meta={**e.meta, "kind": e.meta["category"]}) for e in pairs]
    return list(chain(*by_picture(marked)[:n]))


def are_paired(examples: Sequence[Example]) -> bool:
    """Whether these are MME's questions, two per picture."""
    return bool(examples) and all("category" in e.meta and "pair" in e.meta for e in examples)


def scene_questions(n: int, split: str = "test", seed: int = 0) -> list[Example]:
    """``n`` emoji scenes, those of the task ``vqa``, each with one question of every kind."""
    examples = []
    for i in range(n):
        scene = scenes.scene(split, seed * len(TASKS) + TASKS.index("vqa"), i)
        for asked, question, answer in scenes.questions(scene, np.random.default_rng([seed, i])):
            prompt = "<image>" + QUESTION_PROMPT.format(question=question)
            name = f"{split}-{seed}-{i}"
            meta = {"kind": asked, "scene": name}  # two scenes may have the same pixels
            examples.append(Example(scene.image, prompt, (answer,), "vqa", name, meta=meta))
    return examples


def by_picture(examples: Iterable[Example]) -> list[list[Example]]:
    """The questions about each picture, in the order in which the pictures first appear.

    Pictures are the same whose pixels are (scenes, whose number is).

    Raises:
        DataError: an example without a picture or answers, or one that shows several.
    """
    groups: dict[str, list[Example]] = {}
    for e in examples:
        if e.image is None or not e.answers or e.prompt.count("<image>") != 1:
            raise DataError(f"example {e.id!r} is not a question about one picture: give vqa examples")
        key = e.meta.get("scene") or hashlib.sha256(e.image.tobytes()).hexdigest()
        groups.setdefault(key, []).append(e)
    return list(groups.values())


def question_of(example: Example) -> str:
    """What is asked: the prompt without its ``<image>``."""
    return example.prompt.replace("<image>", "").strip()


def kind_of(example: Example) -> str:
    """What kind of question it is, empty where the data does not say."""
    return str(example.meta.get("kind", ""))
