"""MME: yes-no questions in pairs about one picture (Fu et al. 2023, arXiv 2306.13394).

Every picture has two questions, one whose answer is yes and one whose answer is no. ACC is the share of questions
answered correctly, ACC+ the share of pictures with both answered correctly: chance is 50 and 25 %. A subset's score is
their sum in per cent, 200 at most; perception adds up ten subsets, cognition four.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from gatelens.errors import DataError
from gatelens.measures.stats import LEVEL, drawn_means, mean_interval, middle

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBSETS = PERCEPTION + COGNITION
COLUMNS = ("subset", "picture", "prediction", "answer")
ALL, MEAN = "all", "mean of subsets"

# Kaduri et al. 2025 (arXiv 2411.17491), InternVL2-76B on MME's 14 subsets, as reported there: ACC and ACC+ in
# per cent, and tokens of context. Their counts do not add up to one rule: 1,695 - 60 leaves 1,635 image tokens,
# of which 5 % are 82 and 2 % are 33, so their rows with K hold 58 to 59 tokens beyond "query only" and K.
REPORTED_COMPRESSED_CONTEXT = MappingProxyType(
    {
        "full": (84.83, 70.60, 1695),
        "K = 5 %": (81.46, 64.52, 201),
        "K = 2 %": (77.16, 55.94, 151),
        "query only": (61.03, 28.45, 60),
        "description re-prompt": (73.21, 56.14, 172),
    }
)


def yes_or_no(answer: str) -> str:
    """``yes``, ``no`` (also of "not", "know" …) or ``other``, by the first four characters, as the benchmark does.

    Example:
        >>> [gl.measures.yes_or_no(words) for words in ("Yes, it is.", "No.", "A red bus")]
        ['yes', 'no', 'other']
    """
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_scores(
    rows: pd.DataFrame | Iterable[tuple[str, str, str, str]], n_boot: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """ACC and ACC+ of each subset, of all questions together, and as the mean over subsets.

    Args:
        rows: one per question: subset, picture (unique within its subset), prediction (the model's words), answer.
        n_boot, seed: of the 95 % intervals, which are over pictures, not questions.

    Returns:
        ``subset, acc, acc_low, acc_high, acc_plus, acc_plus_low, acc_plus_high, score, n_pictures, n_questions,
        n_other``: shares from 0 to 1, the score up to 200, answers that are neither yes nor no. Subsets in MME's order,
        others after them; then ``all``, every question weighing the same, and ``mean of subsets``, every subset
        weighing the same, whose intervals draw pictures within each subset.

    Raises:
        DataError: no rows, columns missing, an answer that is neither yes nor no, or a picture without two.

    Example:
        >>> rows = [("color", "1.png", "Yes", "yes"), ("color", "1.png", "Yes.", "no")]
        >>> rows += [("color", "2.png", "yes", "yes"), ("color", "2.png", "No, it is red", "no")]
        >>> table = gl.measures.mme_scores(rows)  # three of four answers, one of two pictures
        >>> table[["acc", "acc_plus", "score"]].values[0].tolist()
        [0.75, 0.5, 125.0]
    """
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), columns=list(COLUMNS))
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(f"mme: column {missing[0]!r} is missing; give {', '.join(COLUMNS)}")
    if table.empty:
        raise DataError("mme: no rows; give two questions for each picture")
    wanted = table.answer.astype(str).str.strip().str.lower()
    if not wanted.isin(["yes", "no"]).all():
        odd = table[~wanted.isin(["yes", "no"])].iloc[0]
        raise DataError(f"mme: answer {odd.answer!r} of picture {odd.picture!r} is neither yes nor no")
    said = table.prediction.astype(str).map(yes_or_no)
    marked = table.assign(right=(said == wanted).astype(int), other=(said == "other").astype(int))
    pictures = marked.groupby(["subset", "picture"], sort=False).agg(
        right=("right", "sum"), n=("right", "size"), other=("other", "sum")
    )
    if not (pictures.n == 2).all():
        (subset, picture), n = next((i, int(n)) for i, n in pictures.n.items() if n != 2)
        raise DataError(
            f"mme: picture {picture!r} of {subset!r} has {n} question(s); MME has two per picture"
        )
    given = list(dict.fromkeys(table.subset))
    order = [name for name in SUBSETS if name in given] + [name for name in given if name not in SUBSETS]
    parts = {name: pictures.loc[name] for name in order} | {ALL: pictures}
    out = []
    for name, part in parts.items():
        out.append(_row(name, part, [mean_interval(m, n_boot=n_boot, seed=seed) for m in _measures(part)]))
    subsets = pd.DataFrame(out[:-1])
    drawn = np.mean(
        [drawn_means(*_measures(parts[name]), n_boot=n_boot, seed=seed + i) for i, name in enumerate(order)],
        axis=0,
    )
    around = subsets[["acc", "acc_plus"]].mean()
    mean = _row(MEAN, pictures, [middle(*pair) for pair in zip(drawn, (LEVEL, LEVEL), around, strict=True)])
    return pd.DataFrame([*out, mean | dict(subsets[["acc", "acc_plus", "score"]].mean())])


def mme_totals(table: pd.DataFrame) -> dict[str, float]:
    """MME's own two numbers: the sums of the scores of the perception (≤ 2,000) and cognition (≤ 800) subsets.

    Raises:
        DataError: a subset of MME is not in the table of :func:`mme_scores`.

    Example:
        >>> from gatelens.measures.mme import SUBSETS
        >>> rows = [(subset, "1.png", answer, answer) for subset in SUBSETS for answer in ("yes", "no")]
        >>> gl.measures.mme_totals(gl.measures.mme_scores(rows, n_boot=100))
        {'perception': 2000.0, 'cognition': 800.0}
    """
    scores = dict(zip(table.subset, table.score, strict=True))
    missing = [name for name in SUBSETS if name not in scores]
    if missing:
        raise DataError(f"mme: no subset {missing[0]!r}; the totals need all {len(SUBSETS)}")
    parts = {"perception": PERCEPTION, "cognition": COGNITION}
    return {part: sum(scores[name] for name in names) for part, names in parts.items()}


def _measures(pictures: pd.DataFrame) -> tuple[Float[np.ndarray, " picture"], Float[np.ndarray, " picture"]]:
    """Of each picture the share of its questions answered correctly, and whether both were."""
    right = pictures.right.to_numpy()
    return right / 2, (right == 2).astype(float)


def _row(name: str, pictures: pd.DataFrame, intervals: Sequence[tuple[float, float]]) -> dict[str, Any]:
    acc, plus = (float(measure.mean()) for measure in _measures(pictures))
    (acc_low, acc_high), (plus_low, plus_high) = intervals
    return {
        "subset": name,
        "acc": acc,
        "acc_low": acc_low,
        "acc_high": acc_high,
        "acc_plus": plus,
        "acc_plus_low": plus_low,
        "acc_plus_high": plus_high,
        "score": 100 * (acc + plus),
        "n_pictures": len(pictures),
        "n_questions": 2 * len(pictures),
        "n_other": int(pictures.other.sum()),
    }
