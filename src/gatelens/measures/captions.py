"""CIDEr-D (Vedantam et al. 2015, section 5; the variant of the COCO caption evaluation), written out.

Values are multiplied by 10, as the COCO evaluation prints them: a table's 1.20 is often quoted as "CIDEr 120". As in
the public implementation, term frequencies are raw counts, a document is the set of references of one picture, and
the length in the penalty is the number of bigrams (so captions of no and of one word count as equally long).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from gatelens.errors import DataError

_WORD = re.compile(r"n't|[^\W_]+(?:[-.][^\W_]+)*|'(?:s|re|ve|ll|d|m)\b")
Ngram = tuple[str, ...]


def caption_words(text: str) -> list[str]:
    """Words in lower case, without punctuation, clitics split off ("dog's" → dog 's; "isn't" → is n't).

    A stand-in for the COCO evaluation's Penn Treebank tokeniser, which needs Java; they differ on rare things such as
    abbreviations with inner full stops.
    """
    text = text.lower().replace("’", "'")
    text = re.sub(r"n't\b", " n't", text)
    return _WORD.findall(text)


def _ngrams(words: Sequence[str], n: int) -> Counter[Ngram]:
    return Counter(tuple(words[i : i + k]) for k in range(1, n + 1) for i in range(len(words) - k + 1))


class _Vector:
    """Tf-idf weights of one caption, with a norm per n-gram length and the caption's length in bigrams."""

    def __init__(self, counts: Counter[Ngram], idf: Callable[[Ngram], float], n: int) -> None:
        self.weights = {g: c * idf(g) for g, c in counts.items()}
        squares = [0.0] * n
        for gram, weight in self.weights.items():
            squares[len(gram) - 1] += weight**2
        self.norms = [math.sqrt(s) for s in squares]
        self.length = sum(c for g, c in counts.items() if len(g) == 2)


def _similarity(hyp: _Vector, ref: _Vector, n: int, sigma: float) -> float:
    dots = [0.0] * n
    for gram, weight in hyp.weights.items():
        other = ref.weights.get(gram, 0.0)
        dots[len(gram) - 1] += min(weight, other) * other  # clipping: repeating a word earns nothing
    penalty = math.exp(-((hyp.length - ref.length) ** 2) / (2 * sigma**2))
    scaled = [d / (a * b) if a and b else d for d, a, b in zip(dots, hyp.norms, ref.norms, strict=True)]
    return penalty * sum(scaled) / n


def cider_d(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    n: int = 4,
    sigma: float = 6.0,
    corpus: Sequence[Sequence[str]] | None = None,
    words: Callable[[str], Sequence[str]] = caption_words,
) -> Float[np.ndarray, " example"]:
    """CIDEr-D of each candidate against its references (×10; the corpus score is the mean); one pair alone scores 0.

    N-grams are weighted by how few pictures have them, ``idf(g) = log N − log max(1, df(g))`` over ``corpus`` (default
    ``references``), which is 0 with one picture. The length penalty is ``exp(−Δ²/2σ²)``.

    Args:
        candidates: captions to be scored.
        references: of each candidate.
        n: n-grams of 1 to ``n`` words count, each length alike.
        sigma: of the length penalty, in words.
        corpus: references of the pictures whose document frequencies are counted; None is ``references``.
        words: splits a caption into words.

    Raises:
        DataError: different numbers of candidates and reference lists, or a candidate without references.

    Example:
        >>> references = [["a dog runs on the grass"], ["two cats sleep indoors"]]
        >>> gl.measures.cider_d(["a dog runs on the grass", "a red bus"], references)
        array([10.,  0.])
    """
    if len(candidates) != len(references):
        raise DataError(f"cider_d: {len(candidates)} candidates but {len(references)} lists of references")
    for i, refs in enumerate(references):
        if isinstance(refs, str) or not refs:
            raise DataError(f"cider_d: references[{i}] must be a non-empty list of captions")
    counted = [[_ngrams(words(r), n) for r in refs] for refs in references]
    documents = counted if corpus is None else [[_ngrams(words(r), n) for r in refs] for refs in corpus]
    frequency: Counter[Ngram] = Counter(g for refs in documents for g in set().union(*refs))
    log_n = math.log(max(1, len(documents)))

    def idf(gram: Ngram) -> float:
        return log_n - math.log(max(1, frequency[gram]))

    scores = []
    for text, counts in zip(candidates, counted, strict=True):
        hyp = _Vector(_ngrams(words(text), n), idf, n)
        scores.append(10 * sum(_similarity(hyp, _Vector(c, idf, n), n, sigma) for c in counts) / len(counts))
    return np.asarray(scores, dtype=np.float64)
