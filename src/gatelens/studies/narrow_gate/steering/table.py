"""From steered answers to the table of section *steering*: what a push turns, and what it costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from gatelens.measures.captions import caption_words
from gatelens.measures.stats import CHANGE, SHARE, mean_interval
from gatelens.studies.narrow_gate.class_pairs import pair_name
from gatelens.studies.narrow_gate.steering.directions import MEANS, NOTHING, RANDOM, REFERENCE

ALL = "all"
SUCCESS, KEPT, ELSEWHERE = "success", "base kept", "elsewhere"
ABOVE = "success above random"
CAPTION_SUCCESS, CAPTION_KEPT = "caption names the target", "rest of the caption kept"
VQA, VQA_OVERLAP = "VQA accuracy", "VQA overlap"
COLUMNS = ["pair", "layer", "dose", "direction", "measure", "mean", "low", "high", "n"]
WORDING = 0.9  # a word in this share of the unsteered captions is wording, not content
FEWEST_FOR_WORDING = 10
AddRow = Callable[[str, float, str, str, pd.Series], None]


def names(text: str, name: str) -> bool:
    """Whether a text has the name as a word of its own, also in the plural."""
    return re.search(rf"\b{re.escape(name.lower())}(?:e?s)?\b", text.lower()) is not None


def content_words(
    caption: str, leave_out: Sequence[str], wording: frozenset[str] = frozenset()
) -> Counter[str]:
    """How often each word of a caption stands in it, without the names to leave out and the wording."""
    text = caption.lower()
    for name in leave_out:
        text = re.sub(rf"\b{re.escape(name.lower())}(?:e?s)?\b", " ", text)
    return Counter(w for w in caption_words(text) if w not in wording)


def wording_of(captions: Sequence[str]) -> frozenset[str]:
    """Words in at least nine captions of ten; none where there are fewer than ten captions."""
    if len(captions) < FEWEST_FOR_WORDING:
        return frozenset()
    count = Counter(w for text in captions for w in set(caption_words(text)))
    return frozenset(w for w, n in count.items() if n >= WORDING * len(captions))


def words_kept(before: Counter[str], after: Counter[str]) -> float:
    """F1 of two bags of words: 2 |A ∩ B| / (|A| + |B|); 1 where both are empty."""
    total = before.total() + after.total()
    return 2 * (before & after).total() / total if total else 1.0


def score_captions(captions: pd.DataFrame) -> pd.DataFrame:
    """Adds ``named_base`` (unsteered), ``success`` (the caption names the target, not the base) and ``kept`` (F1 of
    the content words with the unsteered caption's, the two names aside)."""
    clean = captions[captions.direction == NOTHING]
    before = {(r.id, r.base, r.target): r.caption for r in clean.itertuples()}
    wording = wording_of(list(clean.caption))
    rows = []
    for r in captions.itertuples():
        own = before[r.id, r.base, r.target]
        bags = [content_words(text, (r.base, r.target), wording) for text in (own, r.caption)]
        turned = names(r.caption, r.target) and not names(r.caption, r.base)
        rows.append((names(own, r.base) and not names(own, r.target), turned, words_kept(*bags)))
    added = pd.DataFrame(rows, index=captions.index, columns=["named_base", "success", "kept"])
    return pd.concat([captions, added], axis=1)


def summarise(
    pictures: pd.DataFrame,
    captions: pd.DataFrame,
    questions: pd.DataFrame,
    layers: dict[str, int],
    n_boot: int,
    seed: int,
) -> pd.DataFrame:
    """The table of the section: ``pair, layer, dose, direction, measure, mean, low, high, n``.

    Captions and questions may be empty. Measures of the class answer are over pictures answered rightly when
    unsteered: ``success`` (the prediction is the target class), ``base kept``, ``elsewhere`` (probability on neither
    class), ``success above random`` (paired differences with the mean of the random directions). Repeats are averaged
    within a picture first.
    """
    rows: list[tuple[object, ...]] = []

    def add(pair: str, dose: float, direction: str, measure: str, values: pd.Series) -> None:
        numbers = values.to_numpy(dtype=np.float64)
        if len(numbers):
            bounds = {ABOVE: CHANGE, ELSEWHERE: None, VQA_OVERLAP: None}.get(measure, SHARE)
            low, high = mean_interval(numbers, bounds, n_boot=n_boot, seed=seed)
            layer = layers["last" if direction == REFERENCE else "gate"]
            rows.append((pair, layer, dose, direction, measure, numbers.mean(), low, high, len(numbers)))

    _class_rows(pictures, add)
    for (direction, dose), part in captions.groupby(["direction", "dose"]) if len(captions) else ():
        add(ALL, dose, direction, CAPTION_SUCCESS, part[part.named_base].success)
        add(ALL, dose, direction, CAPTION_KEPT, part.kept)
    for (direction, dose), part in questions.groupby(["direction", "dose"]) if len(questions) else ():
        add(ALL, dose, direction, VQA, part.score)
        add(ALL, dose, direction, VQA_OVERLAP, part.overlap)
    return pd.DataFrame(rows, columns=COLUMNS)


def _class_rows(pictures: pd.DataFrame, add: AddRow) -> None:
    right = pictures[pictures.right].copy()
    right[SUCCESS], right[KEPT] = right.is_target.astype(float), right.is_base.astype(float)
    right[ELSEWHERE] = (1 - right.p_base - right.p_target).clip(lower=0)
    keys = ["direction", "dose", "base", "target", "id"]
    means = right.groupby(keys)[[SUCCESS, KEPT, ELSEWHERE]].mean()  # over the repeats of a random direction
    for (direction, dose), part in means.groupby(level=["direction", "dose"]):
        for measure in (SUCCESS, KEPT, ELSEWHERE):
            add(ALL, dose, direction, measure, part[measure])
        if direction == MEANS:
            for pair, mine in part.groupby(level=["base", "target"]):
                add(pair_name(pair), dose, direction, SUCCESS, mine[SUCCESS])
            control = means.xs((RANDOM, dose))[SUCCESS] if (RANDOM, dose) in means.index else None
            if control is not None:
                add(ALL, dose, direction, ABOVE, part.loc[direction, dose][SUCCESS] - control)
