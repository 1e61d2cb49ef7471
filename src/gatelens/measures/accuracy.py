"""Whether the next token, or the whole answer, is the right one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import DataError
from gatelens.measures.vqa import normalise_answer


def accuracy(
    logits: Float[Tensor, "batch d_vocab"], labels: Int[Tensor, " batch"] | Sequence[Sequence[int]]
) -> Bool[Tensor, " batch"]:
    """Whether the greedy next token (argmax over the whole vocabulary) is a label's token.

    ``labels`` is one token id an example, or a list of accepted ids an example.

    Raises:
        DataError: the numbers of examples differ.
    """
    best = logits.argmax(dim=-1).tolist()
    accepted = _accepted(labels)
    if len(accepted) != len(best):
        raise DataError(f"accuracy: {len(best)} rows of logits but {len(accepted)} labels")
    return torch.tensor([b in a for b, a in zip(best, accepted, strict=True)], dtype=torch.bool)


def restricted_accuracy(
    logits: Float[Tensor, "batch d_vocab"],
    labels: Int[Tensor, " batch"] | Sequence[Sequence[int]],
    candidates: Sequence[int],
) -> Bool[Tensor, " batch"]:
    """Like :func:`accuracy`, with the argmax taken among ``candidates`` (token ids) only.

    Raises:
        DataError: no candidates, or the numbers of examples differ.
    """
    ids = sorted({int(c) for c in candidates})
    if not ids:
        raise DataError("restricted_accuracy: no candidate tokens; give the classes' token ids")
    index = torch.tensor(ids, device=logits.device)
    best = index[logits[:, index].argmax(dim=-1)].tolist()
    accepted = _accepted(labels)
    if len(accepted) != len(best):
        raise DataError(f"restricted_accuracy: {len(best)} rows of logits but {len(accepted)} labels")
    return torch.tensor([b in a for b, a in zip(best, accepted, strict=True)], dtype=torch.bool)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals one of the normalised answers, else 0.0."""
    wanted = {normalise_answer(a) for a in answers}
    return float(normalise_answer(prediction) in wanted)


def _accepted(labels: Int[Tensor, " batch"] | Sequence[Sequence[int]]) -> list[set[int]]:
    if isinstance(labels, Tensor):
        return [{int(x)} for x in labels.tolist()]
    return [{int(x) for x in row} for row in labels]
