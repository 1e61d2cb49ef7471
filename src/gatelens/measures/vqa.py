"""VQA accuracy (Antol et al. 2015; Goyal et al. 2017) with the evaluation's published answer normalisation.

Rules: new lines and tabs become spaces; punctuation is dropped or becomes a space; a full stop that is not in
front of a digit is dropped; lower case; number words up to ten become digits; articles go; contractions get
their apostrophe. The public evaluation skips this when all ten people agree; here it always runs, on both
sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gatelens.errors import DataError

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(i)
    for i, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
# Words whose form without the apostrophe is another English word (well, were, its, ill…) are left alone.
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in [
        "aren't",
        "can't",
        "couldn't",
        "didn't",
        "doesn't",
        "don't",
        "hadn't",
        "hasn't",
        "haven't",
        "isn't",
        "mightn't",
        "mustn't",
        "needn't",
        "shouldn't",
        "wasn't",
        "weren't",
        "won't",
        "wouldn't",
        "ain't",
        "couldn't've",
        "shouldn't've",
        "wouldn't've",
        "could've",
        "might've",
        "must've",
        "should've",
        "would've",
        "they've",
        "we've",
        "you've",
        "i've",
        "who've",
        "he's",
        "she's",
        "that's",
        "there's",
        "what's",
        "where's",
        "who's",
        "when's",
        "how's",
        "why's",
        "it'll",
        "that'll",
        "they'll",
        "you'll",
        "who'll",
        "what'll",
        "they'd",
        "you'd",
        "who'd",
        "it'd",
        "that'd",
        "they're",
        "you're",
        "what're",
        "who're",
        "i'm",
        "let's",
        "o'clock",
        "y'all",
        "ma'am",
    ]
    if word not in {"let's"}
}
_PERIOD = re.compile(r"\.(?!\d)")
_DIGIT_COMMA = re.compile(r"\d,\d")

CONSENSUS_ANSWERS = 10
"""From this many answers on they are votes of annotators, below it accepted alternatives."""


def normalise_answer(text: str) -> str:
    """The answer as the VQA evaluation compares it."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joined = bool(_DIGIT_COMMA.search(text))
    out = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if at_edge or joined else " ")
    words = [_NUMBERS.get(w, w) for w in _PERIOD.sub("", out).lower().split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one predicted answer, in [0, 1].

    With ten answers or more (annotators' votes): the mean over leaving each annotator out of
    ``min(matches among the others / 3, 1)``, the VQA v2 evaluation's formula. With fewer: 1 when the
    prediction matches one of them (accepted alternatives), else 0.

    Raises:
        DataError: no answers.
    """
    if not answers:
        raise DataError("vqa_accuracy: the question has no answers to compare with")
    guess = normalise_answer(prediction)
    votes = [normalise_answer(a) == guess for a in answers]
    matches, n = sum(votes), len(votes)
    if n < CONSENSUS_ANSWERS:
        return float(matches > 0)
    return sum(min((matches - vote) / 3, 1.0) for vote in votes) / n
