"""What a compressed context costs and saves: questions answered from it, beside the full context.

Of every picture a description prompt is run once (:mod:`gatelens.engine.compress`); then all its questions are
answered from contexts of several sizes. Two more rows stand beside them, neither compressed: ``asked afresh``
puts each question into a prompt of its own with the picture, as one would without any of this, and
``description re-prompt`` puts it after the description's words, without the picture (Kaduri et al. 2025).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from gatelens.data import scenes
from gatelens.data.base import TASKS
from gatelens.data.prompts import CAPTION_PROMPT, QUESTION_PROMPT
from gatelens.engine.compress import ALWAYS, AMONG, DESCRIPTION_TOKENS, Described, describe
from gatelens.errors import DataError, InterventionError
from gatelens.measures.stats import bootstrap_replicates
from gatelens.measures.vqa import normalise_answer, vqa_accuracy
from gatelens.roles import Role
from gatelens.selectors import SelectorLike
from gatelens.studies.common import Progress, chunks

if TYPE_CHECKING:
    from PIL.Image import Image

    from gatelens.data import Example
    from gatelens.model import HookedVLM

KEEPS = (1.0, 0.05, 0.02, 0.0)
AFRESH, REPROMPT, FULL = "asked afresh", "description re-prompt", "K = 100 %"
Score = Callable[[str, Sequence[str]], float]


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
    image: Image
    questions: tuple[Question, ...]


def scene_questions(n: int, split: str = "test", seed: int = 0) -> list[Asked]:
    """``n`` emoji scenes, those of the task ``vqa``, each with one question of every kind."""
    out = []
    for i in range(n):
        scene = scenes.scene(split, seed * len(TASKS) + TASKS.index("vqa"), i)
        found = scenes.questions(scene, np.random.default_rng([seed, i]))
        questions = tuple(Question(QUESTION_PROMPT.format(question=q), (a,), kind) for kind, q, a in found)
        out.append(Asked(f"{split}-{seed}-{i}", scene.image, questions))
    return out


def by_picture(examples: Iterable[Example], n: int | None = None) -> list[Asked]:
    """Questions of any data set put together by their picture: the first ``n`` pictures.

    Pictures are the same whose pixels are; a question is the prompt without its ``<image>``.

    Raises:
        DataError: an example without a picture or answers, or one that shows several.
    """
    found: dict[str, Asked] = {}
    for e in examples:
        if e.image is None or not e.answers or e.prompt.count("<image>") != 1:
            raise DataError(f"example {e.id!r} is no question about one picture: give vqa examples")
        pixels = hashlib.sha256(e.image.tobytes()).hexdigest()
        question = Question(e.prompt.replace("<image>", "").strip(), e.answers, str(e.meta.get("kind", "")))
        if pixels in found:
            old = found[pixels]
            found[pixels] = dataclasses.replace(old, questions=(*old.questions, question))
        elif n is None or len(found) < n:
            found[pixels] = Asked(e.id, e.image, (question,))
    return list(found.values())


def trade_off(
    model: HookedVLM,
    pictures: Sequence[Asked],
    keeps: Sequence[float] = KEEPS,
    n_boot: int = 1000,
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """Accuracy, tokens, bytes and time of contexts of several sizes.

    Args:
        model: the model.
        pictures: from :func:`scene_questions` or :func:`by_picture`.
        keeps: shares of image tokens; the full context is always among them.
        n_boot, seed: of the 95 % bootstrap intervals, which draw pictures with all their questions.
        settings: of :func:`answer_all`.

    Returns:
        See :func:`summarise`.
    """
    return summarise(answer_all(model, pictures, keeps, **settings), n_boot, seed)


def answer_all(
    model: HookedVLM,
    pictures: Sequence[Asked],
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
    progress: bool = False,
) -> pd.DataFrame:
    """Every question answered from every context.

    Args:
        prompt: what has the picture described; questions follow it after ``joint``.
        describe_tokens, max_new_tokens: the longest description and answer.
        always, among: selectors of what every context keeps, and of what is ranked.
        others: whether to ask afresh and after the description's words as well.
        batch_size: pictures at once.
        score: (answer, accepted answers) to a number from 0 to 1.
        chat: whether ``prompt`` becomes a user turn; questions are appended as they are.

    Returns:
        One row a context, picture and question: ``context, keep, picture, kind, question, prediction, score,
        tokens, nbytes, seconds, seconds_before``. ``tokens`` and ``nbytes``: what the question finds in the
        cache. ``seconds``: of the answer, a batch's time shared alike; ``seconds_before``: of the prompt and,
        where the context takes one, of its description, shared alike among the picture's questions.

    Raises:
        DataError: no pictures, or one without questions.
    """
    if not pictures or not all(p.questions for p in pictures):
        raise DataError("compressed context: give pictures, each with at least one question")
    shares = list(dict.fromkeys([1.0, *(float(k) for k in keeps)]))
    parts: list[pd.DataFrame] = []
    with torch.inference_mode(), Progress(len(pictures), progress) as bar:
        for _, _, some in chunks(pictures, batch_size):
            inputs = model.prepare([[p.image] for p in some], [prompt] * len(some), chat=chat)
            bare = describe(model, inputs, 0)
            run = _Batch(model, some, max_new_tokens, score, joint, bare)
            told = (
                describe(model, inputs, describe_tokens) if others or any(0 < k < 1 for k in shares) else bare
            )
            if others:
                parts.append(run.afresh())
            parts += [run.context(told if 0 < k < 1 else bare, k, always, among) for k in shares]
            if others:
                parts.append(run.reprompt(told))
            bar.step("compressed context", len(some))
    table = pd.concat(parts, ignore_index=True)
    order = {name: i for i, name in enumerate(dict.fromkeys([AFRESH, *map(named, shares), REPROMPT]))}
    return table.sort_values("context", key=lambda c: c.map(order), kind="stable", ignore_index=True)


class _Batch:
    """The questions of a few pictures."""

    def __init__(
        self,
        model: HookedVLM,
        some: Sequence[Asked],
        max_new_tokens: int,
        score: Score,
        joint: str,
        bare: Described,
    ) -> None:
        self.model, self.some, self.max_new_tokens, self.score = model, some, max_new_tokens, score
        self.joint, self.n = joint, sum(len(p.questions) for p in some)
        full = bare.compress(1.0)
        self.per_token = full.nbytes[0] // full.n_kept[0]  # bytes of keys and values, in every context alike

    def context(
        self, described: Described, keep: float, always: SelectorLike, among: SelectorLike
    ) -> pd.DataFrame:
        """Answers from a compressed context."""
        context = described.compress(keep, always, among)
        asked = [[self.joint + q.text for q in p.questions] for p in self.some]
        answers = context.answer(asked, self.max_new_tokens)
        tokens = [n for n, p in zip(context.n_kept, self.some, strict=True) for _ in p.questions]
        texts = [text for one in answers.texts for text in one]
        before = (described.seconds + context.seconds) / self.n
        return self._table(named(keep), keep, texts, tokens, answers.seconds, before)

    def afresh(self) -> pd.DataFrame:
        """Each question in a prompt of its own, with the picture."""
        return self._prompts(
            AFRESH, 1.0, [["<image>" + q.text for q in p.questions] for p in self.some], True
        )

    def reprompt(self, described: Described) -> pd.DataFrame:
        """Each question after the description's words."""
        assert described.description is not None
        texts = [text.strip() for text in described.description.texts]
        prompts = [
            [f"{text}{self.joint}{q.text}" for q in p.questions]
            for text, p in zip(texts, self.some, strict=True)
        ]
        return self._prompts(REPROMPT, float("nan"), prompts, False, described.seconds / self.n)

    def _prompts(
        self, name: str, keep: float, prompts: list[list[str]], pictured: bool, before: float = 0.0
    ) -> pd.DataFrame:
        flat = [text for one in prompts for text in one]
        images = [[p.image] for p in self.some for _ in p.questions] if pictured else None
        inputs = self.model.prepare(images, flat)
        began = time.perf_counter()
        texts = self.model.generate(inputs, max_new_tokens=self.max_new_tokens)
        seconds = time.perf_counter() - began
        asked = [q.text for p in self.some for q in p.questions]
        own = [len(self.model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in asked]
        whole = (inputs.tokens.roles != Role.PAD).sum(dim=1).tolist()
        tokens = [a - b for a, b in zip(whole, own, strict=True)]
        return self._table(name, keep, texts, tokens, seconds, before)

    def _table(
        self, name: str, keep: float, texts: list[str], tokens: list[int], seconds: float, before: float
    ) -> pd.DataFrame:
        rows = [(p.id, q) for p in self.some for q in p.questions]
        return pd.DataFrame(
            {
                "context": name,
                "keep": keep,
                "picture": [picture for picture, _ in rows],
                "kind": [q.kind for _, q in rows],
                "question": [q.text for _, q in rows],
                "prediction": [text.strip() for text in texts],
                "score": [self.score(t, q.answers) for t, (_, q) in zip(texts, rows, strict=True)],
                "tokens": tokens,
                "nbytes": [n * self.per_token for n in tokens],
                "seconds": seconds / self.n,
                "seconds_before": before,
            }
        )


def named(keep: float) -> str:
    """How a context is called."""
    return "query only" if keep == 0 else f"K = {100 * keep:g} %"


def summarise(answers: pd.DataFrame, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The trade-off, one row a context.

    Args:
        answers: from :func:`answer_all`.
        n_boot, seed: of the intervals. Pictures are drawn, with all their questions.

    Returns:
        ``context, keep, accuracy, low, high, difference, difference_low, difference_high`` (to the full
        context after the same prompt, on the same drawn pictures), ``same_answer`` (share of answers equal to
        the full context's), ``tokens, nbytes`` (means over questions), ``seconds`` and ``seconds_before`` (an
        answer), ``n_pictures, n_questions``. Read bytes as ``row["nbytes"]``: pandas gives ``row.nbytes`` a
        meaning of its own. A context that is answered badly may take longer, its answers having no end.

    Raises:
        InterventionError: no full context among the answers.
    """
    if FULL not in set(answers.context):
        raise InterventionError(f"the answers hold no {FULL!r} to compare with: answer with keeps=1.0 too")
    full = answers[answers.context == FULL].reset_index(drop=True)
    of_picture = full.groupby("picture", sort=False).score.agg(["sum", "size"])
    rows = []
    for name, part in answers.groupby("context", sort=False):
        part = part.reset_index(drop=True)
        right = part.groupby("picture", sort=False).score.sum().loc[of_picture.index]
        columns = (
            right.to_numpy(float),
            of_picture["sum"].to_numpy(float),
            of_picture["size"].to_numpy(float),
        )
        drawn = bootstrap_replicates(_accuracy, columns[0], columns[2], n_boot=n_boot, seed=seed)
        apart = bootstrap_replicates(_apart, *columns, n_boot=n_boot, seed=seed)
        same = part.prediction.map(normalise_answer) == full.prediction.map(normalise_answer)
        rows.append(
            {
                "context": name,
                "keep": part.keep.iloc[0],
                "accuracy": part.score.mean(),
                "low": np.percentile(drawn, 2.5),
                "high": np.percentile(drawn, 97.5),
                "difference": part.score.mean() - full.score.mean(),
                "difference_low": np.percentile(apart, 2.5),
                "difference_high": np.percentile(apart, 97.5),
                "same_answer": same.mean(),
                "tokens": part.tokens.mean(),
                "nbytes": part["nbytes"].mean(),
                "seconds": part.seconds.mean(),
                "seconds_before": part.seconds_before.mean(),
                "n_pictures": len(of_picture),
                "n_questions": len(part),
            }
        )
    return pd.DataFrame(rows)


def _accuracy(right: np.ndarray, n: np.ndarray) -> np.ndarray:
    return right.sum(axis=-1) / n.sum(axis=-1)


def _apart(right: np.ndarray, full: np.ndarray, n: np.ndarray) -> np.ndarray:
    return (right - full).sum(axis=-1) / n.sum(axis=-1)
