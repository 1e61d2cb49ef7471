"""What is answered correctly without the picture: the floor of a task of questions.

A blind guesser knows the question. “What color is the shape behind the fox?” has the answers that foxes have in this
data, so the best constant answer to all questions of a kind is too low a floor. The guesser gives each question the
answer that fits best to the same question elsewhere in the data, or to its kind where the same question is rare. It
learns from other questions than those it is scored on where the data have any: the best answers to these very ones
would be too good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from gatelens.data import Dataset, Example
from gatelens.measures.answers import vqa_accuracy

NAMED = (
    "kind",
    "category",
)  # where data sets keep the kind of a question (VQAv2: its answer type; MME: its subset)
SEED = 104_729  # of the questions it learns from, apart from all that are asked
LEARNS_FROM = 4  # this many times the questions that it answers…
AT_MOST = 2000  # …and at most
ENOUGH = 8  # the same question, so often, tells its usual answer
CANDIDATES = 20  # answers it chooses from, the most frequent ones


def facts(examples: Sequence[Example], by: str | None = None) -> pd.DataFrame:
    """``id, kind, question`` and the accepted ``answers``; examples that name no kind are of the kind ``""``."""
    rows = [(e.id, kind_of(e, by) or "", _question_of(e), list(e.answers)) for e in examples]
    return pd.DataFrame(rows, columns=["id", "kind", "question", "answers"])


def kind_of(example: Example, by: str | None = None) -> str | None:
    """What kind of question it is: the fact ``by`` of the example, or the first of ``kind`` and ``category``."""
    for name in NAMED if by is None else (by,):
        if example.meta.get(name) is not None:
            return str(example.meta[name])
    return None


def _question_of(example: Example) -> str:
    """The question without the words around it, where the data keep it."""
    return str(example.meta.get("question") or example.prompt)


def other_questions(data: Dataset, task: str, asked: Sequence[Example], seed: int) -> list[Example]:
    """Questions to learn from; none where the data have no others."""
    wanted, known = min(AT_MOST, LEARNS_FROM * len(asked)), {e.id for e in asked}
    return [e for e in data.examples(task, limit=wanted, seed=seed + SEED) if e.id not in known and e.answers]


def blind_scores(asked: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """VQA accuracy of the blind guesser on each question of ``asked``.

    Args:
        asked, others: ``kind, question`` and the accepted ``answers``. Without others the guess is the best one for
            the kind among ``asked`` themselves: a little too good, and it does not look at the question.
    """
    known = others if len(others) else asked
    usual = {kind: best_guess(part.answers.tolist()) for kind, part in known.groupby("kind")}
    alike = {
        place: best_guess(part.answers.tolist())
        for place, part in others.groupby(["kind", "question"])
        if len(part) >= ENOUGH
    }
    scores = []
    for row in asked.itertuples():
        by_kind = usual.get(row.kind, "")
        guesses = (alike.get((row.kind, row.question), by_kind), by_kind)
        scores.append([vqa_accuracy(guess, row.answers) for guess in guesses])
    table = pd.DataFrame(scores, columns=["question", "kind"], index=asked.index)
    # of each kind the better of the two ways of guessing
    means = table.groupby(asked.kind).transform("mean")
    return table.question.where(means.question >= means.kind, table.kind)


def best_guess(answers: Sequence[Sequence[str]]) -> str:
    """The answer that fits best to all of these questions; nothing where there are none."""
    usual = Counter(Counter(a).most_common(1)[0][0] for a in answers if len(a))
    guesses = [guess for guess, _ in usual.most_common(CANDIDATES)]
    return max(guesses, key=lambda g: float(np.mean([vqa_accuracy(g, a) for a in answers])), default="")
