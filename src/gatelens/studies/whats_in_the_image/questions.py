"""The questions that are put to a compressed context: the data's own, by picture; MME's in pairs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gatelens.data import Dataset, Example, scenes
from gatelens.data.base import TASKS, kind
from gatelens.data.prompts import QUESTION_PROMPT
from gatelens.errors import DataError

PICTURES = 60  # asked about, where the data is not MME: that is asked whole
QUESTIONS = 6  # drawn for each of them; several may be of one picture


@dataclass(frozen=True)
class Question:
    """What is asked after the description prompt, its accepted answers, and its kind."""

    text: str
    answers: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Asked:
    """A picture and all that is asked about it."""

    id: str
    image: Image.Image
    questions: tuple[Question, ...]


def draw_questions(data: Dataset, n: int | None, seed: int) -> list[Example]:
    """The questions of pictures; none where the data asks nothing.

    Args:
        data: the data set.
        n: at most so many pictures; None is all of MME, or 60 of any other.
        seed: draws them.

    Raises:
        DataError: an example that is no question about one picture.
    """
    task = next((t for t in data.tasks if kind(t) == "vqa"), None)
    if task is None or n == 0:
        return []
    most = PICTURES if n is None else n
    if data.name == "emoji-scenes":
        return scene_questions(most, getattr(data, "split", "test"), seed)
    if not are_paired(data.examples(task, limit=1, seed=seed)):
        return _of_pictures(data.examples(task, limit=QUESTIONS * most, seed=seed), most)
    pairs = data.examples(task, limit=None, seed=seed)
    marked = [dataclasses.replace(e, meta={**e.meta, "kind": e.meta["category"]}) for e in pairs]
    return _of_pictures(marked, n)


def _of_pictures(examples: Sequence[Example], n: int | None) -> list[Example]:
    """All questions about the first ``n`` pictures."""
    return [e for same in _grouped(examples)[:n] for e in same]


def are_paired(examples: Sequence[Example]) -> bool:
    """Whether these are MME's questions, two a picture."""
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


def by_picture(examples: Iterable[Example], n: int | None = None) -> list[Asked]:
    """Questions of any data set put together by their picture: the first ``n`` pictures.

    Pictures are the same whose pixels are (scenes, whose number is); a question is the prompt without its ``<image>``.

    Raises:
        DataError: an example without a picture or answers, or one that shows several.
    """
    asked = []
    for same in _grouped(examples)[:n]:
        questions = [
            Question(e.prompt.replace("<image>", "").strip(), tuple(e.answers), str(e.meta.get("kind", "")))
            for e in same
        ]
        image = same[0].image
        assert image is not None
        asked.append(Asked(same[0].id, image, tuple(questions)))
    return asked


def _grouped(examples: Iterable[Example]) -> list[list[Example]]:
    """The examples about each picture, in the order in which the pictures first appear."""
    groups: dict[str, list[Example]] = {}
    for e in examples:
        if e.image is None or not e.answers or e.prompt.count("<image>") != 1:
            raise DataError(f"example {e.id!r} is no question about one picture: give vqa examples")
        key = e.meta.get("scene") or hashlib.sha256(e.image.tobytes()).hexdigest()
        groups.setdefault(key, []).append(e)
    return list(groups.values())
