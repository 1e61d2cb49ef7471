"""What is asked of the compressed context: the data's own questions, MME's in pairs with its ACC and ACC+."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from gatelens.data.base import kind
from gatelens.measures.answers import vqa_accuracy
from gatelens.measures.mme import MEAN, mme_scores, yes_or_no
from gatelens.studies.whats_in_the_image.compressed_context import Asked, Score, by_picture, scene_questions

if TYPE_CHECKING:
    from gatelens.data import Dataset

PICTURES = 60  # asked about, where the data is not MME: that is asked whole
QUESTIONS = 6  # drawn for each of them; several may be of one picture


def questions(data: Dataset, n: int | None, seed: int) -> tuple[list[Asked], bool]:
    """Pictures with all their questions, and whether they are MME's; none where the data asks nothing.

    Args:
        data: the data set.
        n: at most so many pictures; None is all of MME, or 60 of any other.
        seed: draws them.
    """
    task = next((t for t in data.tasks if kind(t) == "vqa"), None)
    if task is None or n == 0:
        return [], False
    if data.name == "emoji-scenes":
        return scene_questions(PICTURES if n is None else n, getattr(data, "split", "test"), seed), False
    paired = all("category" in e.meta and "pair" in e.meta for e in data.examples(task, limit=1, seed=seed))
    if not paired:
        most = PICTURES if n is None else n
        return by_picture(data.examples(task, limit=QUESTIONS * most, seed=seed), most), False
    examples = data.examples(task, limit=None, seed=seed)
    marked = [dataclasses.replace(e, meta={**e.meta, "kind": e.meta["category"]}) for e in examples]
    return by_picture(marked, n), True


def score(paired: bool) -> Score:
    """How an answer is scored: by MME's rule, or as a VQA answer."""
    return _yes_no if paired else vqa_accuracy


def _yes_no(answer: str, accepted: Sequence[str]) -> float:
    return float(yes_or_no(answer) == yes_or_no(accepted[0]))


def mme_table(answers: pd.DataFrame, asked: Sequence[Asked], n_boot: int, seed: int) -> pd.DataFrame:
    """ACC and ACC+ of MME's subsets for every context: :func:`gatelens.measures.mme.mme_scores` after ``context``.

    Args:
        answers: one row a context, picture and question, as :func:`.compressed_context.answer_all` gives them.
        asked: the questions with their right answers.
        n_boot, seed: of the intervals.
    """
    right = {(p.id, q.kind, q.text): q.answers[0] for p in asked for q in p.questions}
    parts = []
    for name, part in answers.groupby("context", sort=False):
        rows = pd.DataFrame(
            {
                "subset": part.kind,
                "picture": part.picture,
                "prediction": part.prediction,
                "answer": [right[k] for k in zip(part.picture, part.kind, part.question, strict=True)],
            }
        )
        table = mme_scores(rows, n_boot, seed)
        table.insert(0, "context", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def mme_means(table: pd.DataFrame) -> pd.DataFrame:
    """The row "mean of subsets" of every context."""
    return table[table.subset == MEAN].reset_index(drop=True)
