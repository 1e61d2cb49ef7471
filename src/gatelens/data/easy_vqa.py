"""The data set ``easy-vqa`` (PyPI, MIT): 64 x 64 pictures of one coloured shape, made by others."""

from __future__ import annotations

import numpy as np

from gatelens.data import prompts
from gatelens.data.base import Example, Named, check_drawn, check_kind, check_split, check_task
from gatelens.errors import DataError
from gatelens.pictures import load_image


class EasyVqa(Named):
    """easy-vqa's questions; ``split`` is ``train`` (38,575) or ``test`` (9,673)."""

    name = "easy-vqa"
    tasks: tuple[str, ...] = ("vqa",)

    def __init__(self, split: str = "test"):
        try:
            import easy_vqa
        except ImportError:
            raise DataError("easy-vqa is not installed; run: pip install 'gatelens[data]'") from None
        check_split(self.name, split)
        self.split = split
        train = split == "train"
        self._paths = easy_vqa.get_train_image_paths() if train else easy_vqa.get_test_image_paths()
        read = easy_vqa.get_train_questions if train else easy_vqa.get_test_questions
        self._questions, self._answers, self._pictures = read()
        self.classes: tuple[str, ...] = tuple(sorted(easy_vqa.get_answers()))

    def examples(
        self, task: str, limit: int | None = None, seed: int = 0, *, kind: str | None = None
    ) -> list[Example]:
        """``limit`` questions drawn by ``seed`` (all 9,673 of the test split when ``None``).

        Raises:
            DataError: any task but ``vqa``, or a kind: its questions are not told apart.
        """
        check_task(self.name, task, self.tasks)
        check_kind(self.name, task, kind, ())
        check_drawn(self.name, limit, seed)
        n = len(self._questions)
        chosen = np.random.default_rng(seed).permutation(n)[: n if limit is None else limit]
        return [self._example(int(i)) for i in chosen]

    def _example(self, i: int) -> Example:
        question, picture = self._questions[i], self._pictures[i]
        return Example(
            image=load_image(self._paths[picture]),
            prompt="<image>" + prompts.QUESTION_PROMPT.format(question=question),
            answers=(self._answers[i],),
            task="vqa",
            id=f"{self.split}-{i}",
            meta={"question": question, "picture": picture},
        )
