"""What is left of the answers when nothing behind the picture reads some places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.engine import last_logits
from gatelens.studies.common import How
from gatelens.studies.gate_finder.places import Batch, Places
from gatelens.studies.gate_finder.setup import Setup


@dataclass
class Effects:
    """Outcomes of knockouts, one row a set: whether the answer was right, and its log-probability."""

    right: Float[np.ndarray, "set example"]
    log_prob: Float[np.ndarray, "set example"]

    @property
    def prob(self) -> Float[np.ndarray, "set example"]:
        """The right answer's probability: an accuracy that lucky hits do not make jump."""
        return np.exp(self.log_prob)


@dataclass
class Clean(Effects):
    """Outcomes with nothing cut (one row), and the answers' distributions: over the labels, and whole."""

    label_log_probs: Float[np.ndarray, "example label"]
    answers: dict[int, Float[Tensor, " d_vocab"]]


def clean_run(setup: Setup) -> Clean:
    """Every example with nothing cut."""
    out = Clean(np.zeros((1, setup.n)), np.zeros((1, setup.n)), np.zeros((setup.n, len(setup.tokens))), {})
    for batch in setup.batches():
        logits = last_logits(setup.model, batch.inputs, [None])[0].float().cpu()
        rows = list(batch.examples)
        out.label_log_probs[rows] = logits.log_softmax(-1)[:, setup.tokens].double().numpy()
        for row, i in enumerate(rows):
            out.answers[i] = logits[row].softmax(-1)
        _note(setup, out, 0, rows, logits)
    return out


def cut(
    setup: Setup, how: How, sets: Sequence[Iterable[int]], half: int | None = None, spare: Iterable[int] = ()
) -> Effects:
    """Outcomes when the places of each set are read by nothing behind; ``spare`` places go on reading.

    ``half``: only those examples, in the order of their numbers; None is all.
    """
    out = Effects(np.full((len(sets), setup.n), np.nan), np.full((len(sets), setup.n), np.nan))
    for batch in setup.batches(half):
        runs = [knockouts(batch, setup.places, one, how, spare) for one in sets]
        for at, logits in enumerate(last_logits(setup.model, batch.inputs, runs)):
            _note(setup, out, at, list(batch.examples), logits.float().cpu())
    chosen = np.array(sorted(i for b in setup.batches(half) for i in b.examples))
    return Effects(out.right[:, chosen], out.log_prob[:, chosen])


def knockouts(
    batch: Batch, places: Places, cut: Iterable[int], how: How, spare: Iterable[int] = ()
) -> list[Any] | None:
    """Knockouts after which nothing behind the picture reads the places; None when no example has one.

    A place behind the picture goes on reading itself, and ``spare`` places read what they did.
    """
    from gatelens.interventions import knockout

    cut = list(cut)
    readers = batch.behind & ~batch.mask(spare)
    out = []
    picture = batch.mask([p for p in cut if places.all[p].in_picture])
    if bool(picture.any()):
        out.append(knockout(readers, picture, how=how))
    for p in cut:
        if not places.all[p].in_picture:
            key = batch.mask([p])
            if bool(key.any()):
                out.append(knockout(readers & ~key, key, how=how))
    return out or None


def _note(
    setup: Setup, out: Effects, at: int, rows: list[int], logits: Float[Tensor, "batch d_vocab"]
) -> None:
    wanted = torch.tensor([setup.tokens[c] for c in setup.labels[rows]])
    out.right[at, rows] = (logits.argmax(-1) == wanted).double().numpy()
    out.log_prob[at, rows] = (
        logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0].double().clamp_min(-1e4).numpy()
    )
