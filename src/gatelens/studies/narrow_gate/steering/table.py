"""From steered answers to the table of section *steering*: what a push changes, and what it costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd

from gatelens.measures.captions import caption_words
from gatelens.measures.stats import CHANGE, SHARE, Bounds, mean_interval
from gatelens.studies.narrow_gate.steering.directions import MEANS, NOTHING, RANDOM, REFERENCE

ALL = "all"
SUCCESS, KEPT, ELSEWHERE = "success", "base kept", "elsewhere"
ABOVE = "success above random"
CAPTION_SUCCESS, CAPTION_KEPT = "caption names the target", "rest of the caption kept"
VQA, VQA_OVERLAP = "VQA accuracy", "VQA overlap"
COLUMNS = ["pair", "layer", "dose", "direction", "measure", "mean", "low", "high", "n"]
WORDING = 0.9  # a word in this share of the unsteered captions is wording, not content
FEWEST_FOR_WORDING = 10
BOUNDS: dict[str, Bounds | None] = {ABOVE: CHANGE, ELSEWHERE: None, VQA_OVERLAP: None}  # of others SHARE
BY = ["pair", "dose", "direction", "measure"]


def names(text: str, name: str) -> bool:
    """Whether a text has the name as a word of its own, also in the plural."""
    return re.search(rf"\b{re.escape(name.lower())}(?:e?s)?\b", text.lower()) is not None


def content_words(
    caption: str, leave_out: Sequence[str], wording: frozenset[str] = frozenset()
) -> Counter[str]:
    """How often each word of a caption occurs in it, without the names to leave out and the wording."""
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

    Captions and questions may be empty. Measures of the class answer are over pictures answered correctly when
    unsteered: ``success`` (the prediction is the target class), ``base kept``, ``elsewhere`` (probability on neither
    class), ``success above random`` (paired differences with the mean of the random directions). Repeats are averaged
    within a picture first.
    """
    rows = []
    for (pair, dose, direction, measure), part in by_example(pictures, captions, questions).groupby(
        BY, sort=False
    ):
        numbers = part.value.to_numpy()
        low, high = mean_interval(numbers, BOUNDS.get(measure, SHARE), n_boot=n_boot, seed=seed)
        layer = layers["last" if direction == REFERENCE else "gate"]
        rows.append((pair, layer, dose, direction, measure, numbers.mean(), low, high, len(numbers)))
    return pd.DataFrame(rows, columns=COLUMNS)


def by_example(pictures: pd.DataFrame, captions: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """What :func:`summarise` averages: ``pair, dose, direction, measure, id, value``.

    The ``id`` of a picture names the pair it is steered along, too.
    """
    parts = list(_classes_by_example(pictures))
    for (direction, dose), part in captions.groupby(["direction", "dose"]) if len(captions) else ():
        named = part.set_index(part.id + ": " + part.base + " → " + part.target)
        parts.append((ALL, dose, direction, CAPTION_SUCCESS, named[named.named_base].success))
        parts.append((ALL, dose, direction, CAPTION_KEPT, named.kept))
    for (direction, dose), part in questions.groupby(["direction", "dose"]) if len(questions) else ():
        asked = part.set_index("id")
        parts += [
            (ALL, dose, direction, VQA, asked.score),
            (ALL, dose, direction, VQA_OVERLAP, asked.overlap),
        ]
    tables = [
        pd.DataFrame(
            {**dict(zip(BY, names, strict=True)), "id": values.index, "value": values.to_numpy(float)}
        )
        for *names, values in parts
    ]
    return pd.concat([pd.DataFrame(columns=[*BY, "id", "value"]), *tables], ignore_index=True).astype(
        {"value": float, "dose": float}
    )


def _classes_by_example(pictures: pd.DataFrame) -> Iterator[tuple[str, float, str, str, pd.Series]]:
    """``pair, dose, direction, measure`` and the values by picture."""
    right = pictures[pictures.right].copy()
    right[SUCCESS], right[KEPT] = right.is_target.astype(float), right.is_base.astype(float)
    right[ELSEWHERE] = (1 - right.p_base - right.p_target).clip(lower=0)
    right["pair"] = right.base + "-" + right.target
    right["id"] = right.id + ": " + right.base + " → " + right.target
    # over the repeats of a random direction
    means = right.groupby(["direction", "dose", "pair", "id"])[[SUCCESS, KEPT, ELSEWHERE]].mean()
    means = means.reset_index("pair")
    for (direction, dose), part in means.groupby(level=["direction", "dose"]):
        here = part.droplevel(["direction", "dose"])
        for measure in (SUCCESS, KEPT, ELSEWHERE):
            yield ALL, dose, direction, measure, here[measure]
        if direction == MEANS:
            for pair, mine in here.groupby("pair"):
                yield str(pair), dose, direction, SUCCESS, mine[SUCCESS]
            if (RANDOM, dose) in means.index:
                control = means.xs((RANDOM, dose))[SUCCESS]
                yield ALL, dose, direction, ABOVE, here[SUCCESS] - control
