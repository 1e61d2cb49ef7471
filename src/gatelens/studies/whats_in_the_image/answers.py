"""What a compressed context costs and saves: questions answered from it and from the full context.

Of every picture a description prompt is run once (:mod:`gatelens.engine.compression`); then all its questions are
answered from contexts of several sizes. Two more rows are added, neither compressed: ``asked afresh``
puts each question into a prompt of its own with the picture, as one would without any of this, and
``description re-prompt`` puts it after the description's words, without the picture (Kaduri et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from gatelens.data import Example
from gatelens.data.prompts import CAPTION_PROMPT
from gatelens.engine.compressed_context import ALWAYS, AMONG, Described
from gatelens.engine.compression import DESCRIPTION_TOKENS, describe
from gatelens.errors import DataError, InterventionError
from gatelens.examples import consecutive
from gatelens.measures.answers import normalise_answer, vqa_accuracy
from gatelens.measures.stats import CHANGE, SHARE, Bounds, mean_interval
from gatelens.model import HookedVLM
from gatelens.studies.whats_in_the_image.questions import kind_of, question_of
from gatelens.tokens import Role, SelectorLike

KEEPS = (1.0, 0.05, 0.02, 0.0)
AFRESH, REPROMPT, FULL = "asked afresh", "description re-prompt", "K = 100 %"
Score = Callable[[str, Sequence[str]], float]


def answer_all(
    model: HookedVLM,
    pictures: Sequence[Sequence[Example]],
    keeps: Sequence[float] = KEEPS,
    prompt: str = "<image>" + CAPTION_PROMPT,
    describe_tokens: int = DESCRIPTION_TOKENS,
    max_new_tokens: int = 20,
    always: SelectorLike = ALWAYS,
    among: SelectorLike = AMONG,
    others: bool = True,
    batch_size: int = 16,
    score: Score = vqa_accuracy,
    joint: str = " ",
    chat: bool = False,
) -> pd.DataFrame:
    """Every question answered from every context.

    Args:
        model: the model.
        pictures: the questions about each, see :func:`gatelens.studies.whats_in_the_image.questions.by_picture`.
        keeps: shares of image tokens; the full context is always among them.
        prompt: what has the picture described; questions follow it after ``joint``.
        describe_tokens, max_new_tokens: the longest description and answer.
        always, among: selectors of what every context keeps, and of what is ranked.
        others: whether to ask afresh and after the description's words as well.
        batch_size: pictures at once.
        score: (answer, accepted answers) to a number from 0 to 1.
        joint: the text between the prompt and a question.
        chat: whether ``prompt`` becomes a user turn; questions are appended as they are.

    Returns:
        One row a context, picture and question: ``context, keep, picture, kind, question, prediction, score,
        tokens, nbytes``. ``tokens`` and ``nbytes``: what the question finds in the cache.

    Raises:
        DataError: no pictures, or one without questions.
    """
    if not pictures or not all(pictures):
        raise DataError("compressed context: give pictures, each with at least one question")
    shares = list(dict.fromkeys([1.0, *(float(k) for k in keeps)]))
    parts: list[pd.DataFrame] = []
    with torch.inference_mode():
        for _, _, some in consecutive(pictures, batch_size):
            inputs = model.prepare([[asked[0].image] for asked in some], [prompt] * len(some), chat=chat)
            bare = describe(model, inputs, 0)
            described = bare
            if others or any(0 < k < 1 for k in shares):
                described = describe(model, inputs, describe_tokens)
            asker = _Asker(model, some, max_new_tokens, score, joint, _bytes_per_token(bare))
            if others:
                parts += [asker.afresh(), asker.after_description(described)]
            parts += [asker.context(described if 0 < k < 1 else bare, k, always, among) for k in shares]
    table = pd.concat(parts, ignore_index=True)
    order = {name: i for i, name in enumerate([AFRESH, *map(context_name, shares), REPROMPT])}
    return table.sort_values("context", key=lambda c: c.map(order), kind="stable", ignore_index=True)


def _bytes_per_token(bare: Described) -> int:
    """Bytes of keys and values, which are the same in every context."""
    full = bare.compress(1.0)
    return int(full.nbytes[0] // full.n_kept[0])


@dataclass(frozen=True)
class _Asker:
    """Puts all questions about a few pictures to one context after another."""

    model: HookedVLM
    pictures: Sequence[Sequence[Example]]
    max_new_tokens: int
    score: Score
    joint: str
    bytes_per_token: int

    @property
    def questions(self) -> list[Example]:
        """All questions, picture after picture."""
        return [e for asked in self.pictures for e in asked]

    def context(
        self, described: Described, keep: float, always: SelectorLike, among: SelectorLike
    ) -> pd.DataFrame:
        """Answers from a compressed context."""
        context = described.compress(keep, always, among)
        questions = [[self.joint + question_of(e) for e in asked] for asked in self.pictures]
        answers = context.answer(questions, self.max_new_tokens)
        tokens = [n for n, asked in zip(context.n_kept, self.pictures, strict=True) for _ in asked]
        texts = [text for of_picture in answers.texts for text in of_picture]
        return self._table(context_name(keep), keep, texts, tokens)

    def afresh(self) -> pd.DataFrame:
        """Each question in a prompt of its own, with the picture."""
        prompts = ["<image>" + question_of(e) for e in self.questions]
        return self._prompts(AFRESH, 1.0, prompts, [[e.image] for e in self.questions])

    def after_description(self, described: Described) -> pd.DataFrame:
        """Each question after the description's words."""
        assert described.description is not None
        prompts = [
            f"{text.strip()}{self.joint}{question_of(e)}"
            for text, asked in zip(described.description.texts, self.pictures, strict=True)
            for e in asked
        ]
        return self._prompts(REPROMPT, float("nan"), prompts, None)

    def _prompts(self, name: str, keep: float, prompts: list[str], images: list[Any] | None) -> pd.DataFrame:
        """Answers to prompts as they are; the question's own tokens are not counted."""
        inputs = self.model.prepare(images, prompts)
        texts = self.model.generate(inputs, max_new_tokens=self.max_new_tokens)
        tokenizer = self.model.tokenizer
        own = [len(tokenizer(question_of(e), add_special_tokens=False)["input_ids"]) for e in self.questions]
        lengths = (inputs.tokens.roles != Role.PAD).sum(dim=1).tolist()
        tokens = [length - n for length, n in zip(lengths, own, strict=True)]
        return self._table(name, keep, texts, tokens)

    def _table(self, name: str, keep: float, texts: list[str], tokens: list[int]) -> pd.DataFrame:
        questions = self.questions
        return pd.DataFrame(
            {
                "context": name,
                "keep": keep,
                "picture": [asked[0].id for asked in self.pictures for _ in asked],
                "kind": [kind_of(e) for e in questions],
                "question": [question_of(e) for e in questions],
                "prediction": [text.strip() for text in texts],
                "score": [self.score(text, e.answers) for text, e in zip(texts, questions, strict=True)],
                "tokens": tokens,
                "nbytes": [n * self.bytes_per_token for n in tokens],
            }
        )


def context_name(keep: float) -> str:
    """How a context is called."""
    return "query only" if keep == 0 else f"K = {100 * keep:g} %"


def summarise(answers: pd.DataFrame, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The trade-off, one row a context.

    Args:
        answers: from :func:`answer_all`.
        n_boot, seed: of the intervals, which are over pictures with all their questions.

    Returns:
        ``context, keep, accuracy, low, high, difference, difference_low, difference_high`` (to the full
        context after the same prompt, paired by picture), ``same_answer`` (share of answers equal to
        the full context's), ``tokens, nbytes`` (means over questions), ``n_pictures,
        n_questions``. Read bytes as ``row["nbytes"]``: pandas gives ``row.nbytes`` a meaning of its own.

    Raises:
        InterventionError: no full context among the answers.
    """
    if FULL not in set(answers.context):
        raise InterventionError(f"the answers hold no {FULL!r} to compare with: answer with keeps=1.0 too")
    full = answers[answers.context == FULL].reset_index(drop=True)
    of_picture = full.groupby("picture", sort=False).score.agg(["sum", "size"]).astype(float)
    n, right_in_full = of_picture["size"].to_numpy(), of_picture["sum"].to_numpy()

    rows = []
    for name, part in answers.groupby("context", sort=False):
        part = part.reset_index(drop=True)
        right = part.groupby("picture", sort=False).score.sum().loc[of_picture.index].to_numpy(float)
        low, high = _per_question(right, n, SHARE, n_boot, seed)
        change, same_context = right - right_in_full, name == FULL
        difference = (0.0, 0.0) if same_context else _per_question(change, n, CHANGE, n_boot, seed)
        same = part.prediction.map(normalise_answer) == full.prediction.map(normalise_answer)
        rows.append(
            {
                "context": name,
                "keep": part.keep.iloc[0],
                "accuracy": part.score.mean(),
                "low": low,
                "high": high,
                "difference": part.score.mean() - full.score.mean(),
                "difference_low": difference[0],
                "difference_high": difference[1],
                "same_answer": same.mean(),
                **part[["tokens", "nbytes"]].mean(),
                "n_pictures": len(of_picture),
                "n_questions": len(part),
            }
        )
    return pd.DataFrame(rows)


def _per_question(
    total: np.ndarray, n: np.ndarray, bounds: Bounds, n_boot: int, seed: int
) -> tuple[float, float]:
    """Interval of a mean over all questions, from each picture's sum over its ``n`` questions.

    Pictures are the units. Where their numbers of questions differ, the ratio of the two means is made linear, as is
    usual (Cochran, Sampling Techniques, 1977, ch. 6).
    """
    if (n == n[0]).all():
        return mean_interval(total / n, bounds, n_boot=n_boot, seed=seed)
    ratio, largest = total.sum() / n.sum(), n.max() / n.mean()
    limits = (ratio + (bounds[0] - ratio) * largest, ratio + (bounds[1] - ratio) * largest)
    return mean_interval(ratio + (total - ratio * n) / n.mean(), limits, n_boot=n_boot, seed=seed)
