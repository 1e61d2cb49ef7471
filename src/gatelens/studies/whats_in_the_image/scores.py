"""Object precision, recall and F1 of descriptions, against the unmodified one and, where it is known, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gatelens.measures.judge import Judge
from gatelens.measures.objects import ObjectScore, object_score
from gatelens.measures.stats import bootstrap_interval
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
OTHERS = 20  # other pictures whose descriptions stand for chance


class Named:
    """The objects a judge finds in a text, each text asked once; and how two texts match."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._objects: dict[str, list[str]] = {}
        self._scores: dict[tuple[str, str], ObjectScore] = {}

    def objects(self, text: str) -> list[str]:
        if text not in self._objects:
            self._objects[text] = self.judge.objects(text)
        return self._objects[text]

    def score(self, reference: str, candidate: str) -> ObjectScore:
        """Score of a text against the objects of a reference text."""
        key = (reference, candidate)
        if key not in self._scores:
            a, b = self.objects(reference), self.objects(candidate)
            common = len(a) if reference == candidate else len(self.judge.match(a, b)) if a and b else 0
            self._scores[key] = ObjectScore(len(a), len(b), common)
        return self._scores[key]

    def score_truth(self, truth: Sequence[str], candidate: str) -> ObjectScore:
        """Score of a text against the objects that are in the picture."""
        b = self.objects(candidate)
        return ObjectScore(
            len(set(truth)), len(b), len(self.judge.match(list(dict.fromkeys(truth)), b)) if b else 0
        )


def scored(
    texts: pd.DataFrame,
    descriptions: Mapping[str, str],
    truth: Mapping[str, Sequence[str] | None],
    named: Named,
) -> pd.DataFrame:
    """Texts under knockouts with their scores.

    Args:
        texts: ``id`` and ``text`` beside the columns of ``PLACE``.
        descriptions: the unmodified description of each picture.
        truth: the objects of each picture, None where they are not known.
        named: the judge.

    Returns:
        The texts with ``objects`` (names with ``|`` between), ``n_reference, n_candidate, n_common, precision,
        recall, f1`` (missing where the unmodified description names no object), ``f1_truth`` (missing where the
        truth is not known) and ``chance``.
    """
    chance = chance_of(descriptions, named)
    rows = []
    for r in texts.itertuples():
        score = named.score(descriptions[r.id], r.text)
        against = truth.get(r.id)
        known = float("nan") if against is None else named.score_truth(against, r.text).f1
        usable = score.n_reference > 0
        numbers = (score.precision, score.recall, score.f1) if usable else (float("nan"),) * 3
        rows.append(
            (
                "|".join(named.objects(r.text)),
                score.n_reference,
                score.n_candidate,
                score.n_common,
                *numbers,
                known,
            )
        )
    columns = ["objects", "n_reference", "n_candidate", "n_common", "precision", "recall", "f1", "f1_truth"]
    out = texts.reset_index(drop=True).join(pd.DataFrame(rows, columns=columns))
    out["chance"] = out.id.map(chance)
    return out


def chance_of(descriptions: Mapping[str, str], named: Named) -> dict[str, float]:
    """F1 of other pictures' unmodified descriptions against each picture's own, by equal names.

    The others are the next ones in order, 20 at most, so that the number is the same every time.
    """
    ids = list(descriptions)
    objects = [named.objects(descriptions[i]) for i in ids]
    out = {}
    for k, i in enumerate(ids):
        others = [objects[(k + d) % len(ids)] for d in range(1, min(OTHERS, len(ids) - 1) + 1)]
        scores = [object_score(objects[k], o).f1 for o in others]
        out[i] = float(np.mean(np.nan_to_num(scores))) if scores else 0.0
    return out


def summarise(predictions: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """The knockout table: the columns of ``PLACE``, then ``metric, mean, low, high, n``."""
    rows = []
    for place, part in predictions.groupby(PLACE, sort=False):
        for metric, column in METRICS.items():
            values = part[column].dropna().to_numpy(np.float64)
            if len(values):
                low, high = bootstrap_interval(values, n_boot=n_boot, seed=seed)
                rows.append((*place, metric, values.mean(), low, high, len(values)))
    return pd.DataFrame(rows, columns=[*PLACE, "metric", "mean", "low", "high", "n"])


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
