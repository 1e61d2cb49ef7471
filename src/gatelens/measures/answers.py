"""Whether an answer is right: the next token, the whole answer, or as VQA scores it.

VQA accuracy is that of Antol et al. 2015 and Goyal et al. 2017 with the evaluation's published answer normalisation.
The public evaluation skips the normalisation when all ten people agree; here it always runs, on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import DataError

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(i) for i, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
# Words whose form without the apostrophe is another English word (well, were, its, lets…) are left alone.
_WITH_APOSTROPHE = """
    aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't shouldn't wasn't
    weren't won't wouldn't ain't couldn't've shouldn't've wouldn't've could've might've must've should've would've
    they've we've you've i've who've he's she's that's there's what's where's who's when's how's why's it'll that'll
    they'll you'll who'll what'll they'd you'd who'd it'd that'd they're you're what're who're i'm o'clock y'all ma'am
"""
_CONTRACTIONS = {word.replace("'", ""): word for word in _WITH_APOSTROPHE.split()}


def normalise_answer(text: str) -> str:
    """The answer as the VQA evaluation compares it: no punctuation, case or articles; digits; contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    joined = bool(re.search(r"\d,\d", text))
    plain = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if at_edge or joined else " ")
    without_full_stops = re.sub(r"\.(?!\d)", "", plain)
    words = [_NUMBERS.get(w, w) for w in without_full_stops.lower().split()]
    return " ".join(_CONTRACTIONS.get(w, w) for w in words if w not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one predicted answer, in [0, 1].

    With ten answers or more (annotators' votes): the mean over leaving each annotator out of ``min(matches among the
    others / 3, 1)``, the VQA v2 evaluation's formula. With fewer (accepted alternatives): 1 for a match, else 0.

    Args:
        prediction: the answer as the model wrote it.
        answers: the annotators' answers, or accepted alternatives.

    Raises:
        DataError: no answers.

    Example:
        >>> gl.measures.vqa_accuracy("two", ["two", "two", *["three"] * 8])  # (2 · 1/3 + 8 · 2/3) / 10
        0.6
        >>> gl.measures.vqa_accuracy("two", ["two", "a pair"])
        1.0
    """
    if not answers:
        raise DataError("vqa_accuracy: the question has no answers to compare with")
    guess = normalise_answer(prediction)
    votes = [normalise_answer(a) == guess for a in answers]
    matches, n = sum(votes), len(votes)
    if n < 10:
        return float(matches > 0)
    return sum(min((matches - vote) / 3, 1.0) for vote in votes) / n


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals one of the normalised answers, else 0.0.

    Args:
        prediction: the answer as the model wrote it.
        answers: accepted answers.

    Example:
        >>> gl.measures.exact_match("A dog.", ["dog"]), gl.measures.exact_match("a puppy", ["dog"])
        (1.0, 0.0)
    """
    return float(normalise_answer(prediction) in {normalise_answer(a) for a in answers})


def accuracy(
    logits: Float[Tensor, "batch d_vocab"], labels: Int[Tensor, " batch"] | Sequence[Sequence[int]]
) -> Bool[Tensor, " batch"]:
    """Whether the greedy next token (argmax over the vocabulary) is an example's label, or one of its accepted ids.

    Args:
        logits: of the next token.
        labels: token ids, one for each example or several that count as right.

    Raises:
        DataError: the numbers of examples differ.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
        >>> gl.measures.accuracy(logits, torch.tensor([1, 2]))
        tensor([ True, False])
        >>> gl.measures.accuracy(logits, [[1], [0, 2]])  # the second example accepts two tokens
        tensor([True, True])
    """
    return _is_accepted(logits.argmax(dim=-1), labels, "accuracy")


def restricted_accuracy(
    logits: Float[Tensor, "batch d_vocab"],
    labels: Int[Tensor, " batch"] | Sequence[Sequence[int]],
    candidates: Sequence[int],
) -> Bool[Tensor, " batch"]:
    """Like :func:`accuracy`, with the argmax taken among ``candidates`` (token ids) only.

    Args:
        logits: of the next token.
        labels: token ids, one for each example or several that count as right.
        candidates: the token ids that compete.

    Raises:
        DataError: no candidates, or the numbers of examples differ.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
        >>> gl.measures.restricted_accuracy(logits, torch.tensor([2, 2]), candidates=[0, 2])
        tensor([ True, False])
    """
    ids = sorted({int(c) for c in candidates})
    if not ids:
        raise DataError("restricted_accuracy: no candidate tokens; give the classes' token ids")
    index = torch.tensor(ids, device=logits.device)
    return _is_accepted(index[logits[:, index].argmax(dim=-1)], labels, "restricted_accuracy")


def _is_accepted(
    best: Int[Tensor, " batch"], labels: Int[Tensor, " batch"] | Sequence[Sequence[int]], who: str
) -> Bool[Tensor, " batch"]:
    one_each = labels[:, None].tolist() if isinstance(labels, Tensor) else labels
    accepted = [set(map(int, row)) for row in one_each]
    if len(accepted) != len(best):
        raise DataError(f"{who}: {len(best)} rows of logits but {len(accepted)} labels")
    return torch.tensor([b in ids for b, ids in zip(best.tolist(), accepted, strict=True)], dtype=torch.bool)
