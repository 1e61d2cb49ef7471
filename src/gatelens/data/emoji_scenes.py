"""The data set ``emoji-scenes``: prompts over scenes (see :mod:`gatelens.data.scenes`)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice
from typing import Any

import numpy as np

from gatelens.data import prompts, scenes
from gatelens.data.base import TASKS, Example, Named, check_drawn, check_kind, check_split, check_task
from gatelens.data.pairs import Pair
from gatelens.data.scene_pairs import KINDS, scene_pair

DEFAULT_LIMIT = 500
MOST = 100_000  # of a task: they are all held at once, about 30 kB each


class EmojiScenes(Named):
    """Scenes of one split; endless, so a task without a limit gives ``DEFAULT_LIMIT`` examples.

    ``class`` and ``draw`` use scenes of one object; ``vqa`` and ``caption`` scenes of one to three.
    """

    name = "emoji-scenes"
    tasks: tuple[str, ...] = TASKS
    classes: tuple[str, ...] = scenes.CLASSES
    differs: tuple[str, ...] = tuple(KINDS)

    splits: tuple[str, ...] = ("train", "test")
    draw = staticmethod(scenes.scene)

    def __init__(self, split: str = "test"):
        check_split(self.name, split, self.splits)
        self.split = split

    def examples(
        self, task: str, limit: int | None = None, seed: int = 0, *, kind: str | None = None
    ) -> list[Example]:
        """``limit`` (default 500) examples; the i-th depends on (split, task, seed, i) alone.

        Args:
            kind: of questions: ``limit`` of this one (``color``, ``shape``, ``presence``, ``side``, ``count`` or
                ``relation``); they are among those which a larger limit without a kind gives.

        Raises:
            DataError: unknown task or kind, or a limit outside 1 to ``MOST``.
        """
        check_task(self.name, task, self.tasks)
        check_kind(self.name, task, kind, scenes.QUESTION_KINDS if task == "vqa" else ())
        check_drawn(self.name, limit, seed, MOST)
        every = (self._example(task, seed, i) for i in count())
        wanted = (one for one in every if kind is None or one.meta["kind"] == kind)
        return list(islice(wanted, DEFAULT_LIMIT if limit is None else limit))

    def _example(self, task: str, seed: int, i: int) -> Example:
        makers: dict[str, Callable[[scenes.Scene, np.random.Generator], dict[str, Any]]] = {
            "class": _class,
            "vqa": _vqa,
            "caption": _caption,
            "draw": _draw,
        }
        one_object = 1 if task in ("class", "draw") else None
        # Tasks draw from seeds of their own, so that no two tasks ask about the same pictures.
        scene = self.draw(self.split, seed * len(TASKS) + TASKS.index(task), i, one_object)
        made = makers[task](scene, np.random.default_rng([seed, i]))
        made["meta"] = {"objects": scene.objects, "masks": scene.masks, **made.get("meta", {})}
        image = None if task == "draw" else scene.image
        return Example(image=image, task=task, id=f"{self.split}-{task}-{seed}-{i}", **made)

    def pairs(self, differ: str, n: int, seed: int = 0) -> list[Pair]:
        """``n`` pairs of scenes that differ in one fact; the i-th depends on (split, differ, seed, i) alone."""
        check_drawn(self.name, n, seed, MOST)
        task = "class" if differ == "class" else "vqa"
        made = []
        for i in range(n):
            # the clean scenes of class pairs are those of the task's examples
            two = scene_pair(differ, self.split, seed * len(TASKS) + TASKS.index(task), i, self.draw)
            sides = [
                Example(
                    scene.image,
                    two.prompt,
                    (answer,),
                    task,
                    f"{self.split}-{differ}-pair-{seed}-{i}-{side}",
                    answer if task == "class" else None,
                    {"objects": scene.objects, "masks": scene.masks, "kind": differ},
                )
                for side, scene, answer in (
                    ("clean", two.clean, two.target),
                    ("corrupt", two.corrupt, two.base),
                )
            ]
            made.append(Pair(sides[0], sides[1], differ, two.target, two.base, note=two.note))
        return made


def _class(scene: scenes.Scene, rng: np.random.Generator) -> dict[str, Any]:
    name = scene.objects[0].name
    return {"prompt": "<image>" + prompts.CLASS_PROMPT, "answers": (name,), "label": name}


def _vqa(scene: scenes.Scene, rng: np.random.Generator) -> dict[str, Any]:
    kind, question, answer = scenes.questions(scene, rng)[0]
    prompt = "<image>" + prompts.QUESTION_PROMPT.format(question=question)
    return {"prompt": prompt, "answers": (answer,), "meta": {"kind": kind, "question": question}}


def _caption(scene: scenes.Scene, rng: np.random.Generator) -> dict[str, Any]:
    return {"prompt": "<image>" + prompts.CAPTION_PROMPT, "answers": (scene.caption,)}


def _draw(scene: scenes.Scene, rng: np.random.Generator) -> dict[str, Any]:
    prompt = prompts.DRAW_PROMPT.format(caption=scene.caption)
    return {"prompt": prompt, "answers": (scene.caption,), "label": scene.objects[0].name}
