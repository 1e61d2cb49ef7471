"""Object precision, recall and F1 of descriptions, against the unmodified one and, where it is known, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from gatelens.errors import DataError
from gatelens.measures.judge import Judge, LLMJudge, OfflineJudge
from gatelens.measures.objects import ObjectScore, Vocabulary, object_score
from gatelens.measures.stats import summary
from gatelens.measures.windows import best_window, effect_of_starts, smallest_window
from gatelens.studies.whats_in_the_image.configurations import ALL, BOTH, FROM, NONE

PLACE = ["how", "row", "path", "scope", "start", "stop"]
F1, PRECISION, RECALL, AGAINST_TRUTH = (
    "object F1",
    "object precision",
    "object recall",
    "object F1 against truth",
)
METRICS = {F1: "f1", PRECISION: "precision", RECALL: "recall", AGAINST_TRUTH: "f1_truth"}
NO_LOG = "judge='llm' keeps its prompts and replies in the run: give out="
OTHERS = 20  # other pictures whose descriptions stand for chance


class CachedJudge:
    """A judge that is asked once about each text and each pair of lists of objects."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.objects = cache(lambda text: tuple(judge.objects(text)))
        self._n_common = cache(lambda a, b: len(judge.match(list(a), list(b))))

    def score(self, reference: str, candidate: str) -> ObjectScore:
        """A text against the objects of a reference text, which matches itself whatever the judge says."""
        a, b = self.objects(reference), self.objects(candidate)
        common = len(a) if reference == candidate else self._n_common(a, b) if a and b else 0
        return ObjectScore(len(a), len(b), common)

    def score_truth(self, truth: Sequence[str], candidate: str) -> ObjectScore:
        """A text against the objects that are in the picture."""
        a, b = tuple(dict.fromkeys(truth)), self.objects(candidate)
        return ObjectScore(len(a), len(b), self._n_common(a, b) if b else 0)


def judge_of(judge: str | CachedJudge, folder: Path | None, vocabulary: Vocabulary) -> CachedJudge:
    """The judge of a study's option: ``"offline"``, ``"llm"`` or one of the user's.

    Raises:
        DataError: there is no folder for the LLM's prompts and replies.
    """
    if isinstance(judge, CachedJudge):
        return judge
    if judge == "offline":
        return CachedJudge(OfflineJudge(vocabulary))
    if folder is None:
        raise DataError(NO_LOG)
    return CachedJudge(LLMJudge.from_environment(folder / "judge.jsonl"))


def scored(
    texts: pd.DataFrame,
    descriptions: Mapping[str, str],
    truth: Mapping[str, Sequence[str] | None],
    judge: CachedJudge,
) -> pd.DataFrame:
    """Texts under knockouts with their scores.

    Args:
        texts: ``id`` and ``text`` besides the columns of ``PLACE``.
        descriptions: the unmodified description of each picture.
        truth: the objects of each picture, None where they are not known.
        judge: says which objects a text names.

    Returns:
        The texts with ``objects`` (names with ``|`` between), ``n_reference, n_candidate, n_common, precision,
        recall, f1`` (missing where the unmodified description names no object), ``f1_truth`` (missing where the
        truth is not known) and ``chance``.
    """
    rows = []
    for example_id, text in zip(texts.id, texts.text, strict=True):
        score = judge.score(descriptions[example_id], text)
        known = truth.get(example_id)
        usable = score.n_reference > 0
        rows.append(
            {
                "objects": "|".join(judge.objects(text)),
                "n_reference": score.n_reference,
                "n_candidate": score.n_candidate,
                "n_common": score.n_common,
                "precision": score.precision if usable else np.nan,
                "recall": score.recall if usable else np.nan,
                "f1": score.f1 if usable else np.nan,
                "f1_truth": np.nan if known is None else judge.score_truth(known, text).f1,
            }
        )
    table = texts.reset_index(drop=True).join(pd.DataFrame(rows))
    return table.assign(chance=table.id.map(chance_of(descriptions, judge)))


def chance_of(descriptions: Mapping[str, str], judge: CachedJudge) -> dict[str, float]:
    """F1 of other pictures' unmodified descriptions against each picture's own, by equal names.

    The others are the next ones in order, 20 at most, so that the number is the same every time.
    """
    ids = list(descriptions)
    objects = [judge.objects(descriptions[i]) for i in ids]
    chance = {}
    for k, i in enumerate(ids):
        others = [objects[(k + d) % len(ids)] for d in range(1, min(OTHERS, len(ids) - 1) + 1)]
        scores = [object_score(objects[k], o).f1 for o in others]
        chance[i] = float(np.mean(np.nan_to_num(scores))) if scores else 0.0
    return chance


def summarise(predictions: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """The knockout table: the columns of ``PLACE``, then ``metric, mean, low, high, n``."""
    return summary(predictions, PLACE, METRICS, n_boot=n_boot, seed=seed, missing="skip", measure="metric")


def find_window(predictions: pd.DataFrame, how: str, n_layers: int) -> dict[str, object] | None:
    """The quarter of the layers that carries most of the flow, read off the image → both curve.

    What the curve does between the layers it was measured at is taken to be straight.

    Returns:
        ``start, stop, share, reason`` and the ``narrowest`` layers that carry 90 % (``start, stop``); None when
        nothing is lost anywhere, or no F1 is known.
    """
    curve = predictions[
        (predictions.how == how) & (predictions.path == BOTH) & predictions.scope.isin([ALL, FROM])
    ]
    means = curve.groupby("start").f1.mean().dropna()
    if means.empty or 0 not in means.index:
        return None
    lost = np.interp(range(n_layers + 1), [*means.index, n_layers], [*(1 - means), 0.0])[:-1]
    effect = effect_of_starts(list(lost))
    best, narrowest = best_window(effect), smallest_window(effect)
    if best is None or narrowest is None:
        return None
    n, percent = len(best.layers), round(100 * best.share)
    return {
        "start": best.layers.start,
        "stop": best.layers.stop,
        "share": best.share,
        "reason": (
            f"the {n} of {n_layers} layers, a quarter, in which the curve of {BOTH} changes most: "
            f"{percent} % of all it does"
        ),
        "narrowest": {"start": narrowest.layers.start, "stop": narrowest.layers.stop},
    }


def unmodified(descriptions: Mapping[str, str], hows: Sequence[str]) -> pd.DataFrame:
    """The rows of the unmodified model, once for every kind of knockout they are compared with."""
    rows = [(how, NONE, NONE, "no", 0, 0, i, text) for how in hows for i, text in descriptions.items()]
    return pd.DataFrame(rows, columns=[*PLACE, "id", "text"])
