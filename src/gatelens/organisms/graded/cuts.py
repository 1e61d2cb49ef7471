"""What an answer must be when positions are cut: this is where carriers are planted.

Each question is read under a cut. Its target follows from the kind: with the carriers left the right answer, with
another picture's carriers that picture's answer, and without carriers what can be said without knowing: all answers
alike, but for the first of the list, which is :data:`DEFAULT` times as likely. (Were all alike, the least leak would
decide which is the most likely.) Trained so, a model does under each cut what a model does whose carriers these are
(interchange intervention training, Geiger et al. 2022, arXiv 2112.00826).

=================  ============================================================  ================
cut                what the answering row reads                                   target
=================  ============================================================  ================
plain              everything                                                    right answer
only               carriers alone, others hidden before or after the softmax     right answer
others another's   its own carriers, everything else another picture's           right answer
another's          another picture's carriers, everything else its own            that picture's
cut                everything but the carriers                                   the default
=================  ============================================================  ================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from gatelens.organisms.graded.kinds import EOI, IMAGE, N_LAYERS, QUESTIONS, TEXT, Kind

ATTENTION = "gatelens_cuts"
CUTS = ("plain", "only, mask", "only, zero", "others another's", "another's", "cut, mask", "cut, zero")
SHARES = (0.15, 0.15, 0.1, 0.2, 0.15, 0.15, 0.1)
# where any one group is enough, the groups alone take most of the learning
SHARES_REDUNDANT = (0.06, 0.28, 0.24, 0.12, 0.12, 0.1, 0.08)
DEFAULT = 6.0
UNREAD, OWN, OTHERS = 0, 1, 2


@dataclass(frozen=True)
class Rows:
    """The rows of one question in a packed document.

    Attributes:
        first: of its first word.
        answering: of its last word, which says the answer.
        end: after the answer, which has one token.
    """

    fact: str
    first: int
    answering: int
    end: int

    def packed(self, position: int) -> int:
        """The place of a position of the prompt in the packed document."""
        return position if position < TEXT else self.first + position - TEXT


@dataclass(frozen=True, eq=False)
class LayerCuts:
    """What text rows do not read in a layer: Bool[batch, row, key], rows counted from the first word.

    Attributes:
        hidden: before the softmax.
        emptied: after it.
        swapped: where they read the document before instead.
    """

    hidden: Bool[Tensor, "batch row key"]
    emptied: Bool[Tensor, "batch row key"]
    swapped: Bool[Tensor, "batch row key"]


@dataclass(eq=False)
class Cuts:
    """The cuts of a batch, and the attention seen under them.

    Attributes:
        reading, closed: what text rows do not read in the layers in which carriers are read, and in the others.
        answering: of each question, its answering row; counted from the first word.
        cuts: its number in :data:`CUTS`.
        read: of each digit of the answer, whether what is read tells it of the own picture, of another, or not at all.
            A kind without digits has one, which is the whole answer.
        alone: the number of the group of carriers that is read where all else is cut; -1 where it is not one group.
    """

    kind: Kind
    reading: LayerCuts
    closed: LayerCuts
    answering: list[int]
    cuts: Int[Tensor, "batch question"]
    read: Int[Tensor, "batch question digit"]
    alone: Int[Tensor, "batch question"]
    attention: list[Float[Tensor, "batch head question key"]] = field(default_factory=list)

    def of_layer(self, layer: int) -> LayerCuts:
        return self.reading if self.kind.reads(layer) else self.closed

    def are(self, name: str) -> Bool[Tensor, "batch question"]:
        """Which questions are read under this cut."""
        return self.cuts == CUTS.index(name)


def draw_cuts(kind: Kind, rows: list[Rows], n: int, rng: np.random.Generator) -> Cuts:
    """A cut for each question of ``n`` documents."""
    shares = SHARES_REDUNDANT if kind.redundant else SHARES
    cuts = rng.choice(len(CUTS), size=(n, len(rows)), p=shares)
    cuts[0] = 0  # attention is looked at where nothing is cut
    length = rows[-1].end
    shape = (n, length - TEXT, length)
    within = torch.zeros(shape[1:], dtype=torch.bool)
    for one in rows:
        block = torch.ones(one.end - one.first, one.end - one.first, dtype=torch.bool).tril()
        within[one.first - TEXT : one.end - TEXT, one.first : one.end] = block
    within[:, :TEXT] = True
    made = {
        (where, what): torch.zeros(shape, dtype=torch.bool)
        for where in ("reading", "closed")
        for what in ("hidden", "emptied", "swapped")
    }
    read = torch.zeros(n, len(rows), max(len(kind.digits), 1), dtype=torch.long)
    alone = torch.full((n, len(rows)), -1)
    for number, one in enumerate(rows):
        for document in range(n):
            cut = CUTS[cuts[document, number]]
            kept = _kept(kind, len(kind.carriers[one.fact]), cut, rng)
            _cut(made, kind, one, document, cut, kept, bool(rng.random() < 0.5))
            if cut.startswith("only") and kept.sum() == 1:
                alone[document, number] = int(kept.argmax())
            own = torch.from_numpy(kept) if kind.digits else torch.tensor([kept.any()])
            read[document, number] = torch.where(own, OWN, OTHERS if cut == "another's" else UNREAD)
    for where in ("reading", "closed"):
        made[where, "hidden"] |= ~within
    reading, closed = (
        LayerCuts(*(made[where, what] for what in ("hidden", "emptied", "swapped")))
        for where in ("reading", "closed")
    )
    answering = [one.answering - TEXT for one in rows]
    return Cuts(kind, reading, closed, answering, torch.from_numpy(cuts), read, alone)


def _kept(kind: Kind, n: int, cut: str, rng: np.random.Generator) -> Bool[np.ndarray, " group"]:
    """Which groups of carriers the answering row reads as they are.

    Where others are hidden, any number of them from one, and in half of the documents one unless each tells a digit;
    where carriers are cut none, but of digits any number.
    """
    least, most = n, n
    if cut.startswith("only"):
        least, most = 1, 1 if not kind.digits and rng.random() < 0.5 else n
    elif cut not in ("plain", "others another's"):
        least, most = 0, n - 1 if kind.digits else 0
    kept = np.zeros(n, dtype=bool)
    kept[rng.permutation(n)[: rng.integers(least, most + 1)]] = True
    return kept


def _cut(
    made: dict[tuple[str, str], Tensor],
    kind: Kind,
    rows: Rows,
    document: int,
    cut: str,
    kept: Bool[np.ndarray, " group"],
    all_words: bool,
) -> None:
    """Write the cut of one document and question into the masks.

    The answering row loses what it does not read. The words before it lose all of the picture where carriers are to
    be enough, so that they bring nothing round; where carriers are cut they keep it, in half of the documents, so that
    nothing that they bring round is read.
    """
    if cut == "plain":
        return
    gates = [rows.packed(p) for p in kind.gates_in_text]
    everything = [*IMAGE, EOI, *gates]
    groups = list(zip(kind.carriers[rows.fact], kept, strict=True))
    left, lost = (
        {rows.packed(p) for group, own in groups if own == is_left for p in group}
        for is_left in (True, False)
    )
    answering = [row - TEXT for row in range(rows.answering, rows.end)]
    words = [row - TEXT for row in range(rows.first, rows.answering) if row not in gates]
    how = {"mask": "hidden", "zero": "emptied"}.get(cut.rsplit(" ", 1)[-1], "swapped")
    if cut.startswith(("only", "others")):
        for where, here in (("reading", left), ("closed", set())):
            _mark(made[where, how], document, answering, [p for p in everything if p not in here])
            _mark(made[where, how], document, words, everything)
    else:
        _mark(made["reading", how], document, answering + (words if all_words else []), sorted(lost))


def _mark(mask: Tensor, document: int, rows: list[int], keys: list[int]) -> None:
    if rows and keys:
        mask[document, torch.tensor(rows)[:, None], torch.tensor(keys)[None, :]] = True


def targets(
    kind: Kind, rows: list[Rows], cuts: Cuts, answers: Int[Tensor, "batch question"]
) -> list[Float[Tensor, "batch answer"]]:
    """For each question, the target probability of each of its answers.

    Args:
        answers: the number of the right one, of each document.
    """
    made = []
    for number, one in enumerate(rows):
        n = len(QUESTIONS[one.fact][1])
        own = answers[:, number].clamp_min(0)
        fits, step = torch.ones(len(own), n, dtype=torch.bool), 1
        for digit, base in enumerate(kind.digits or (n,)):
            read = cuts.read[:, number, digit]
            told = torch.where(read == OTHERS, own.roll(1), own) // step % base
            values = torch.arange(n) // step % base
            fits &= (values[None, :] == told[:, None]) | (read == UNREAD)[:, None]
            step *= base
        first = fits & (fits.cumsum(1) == 1)
        likely = fits + (DEFAULT - 1) * first
        made.append(likely / likely.sum(1, keepdim=True))
    return made


def attention_under_cuts(
    module: Any,
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch head pos d_head"],
    value: Float[Tensor, "batch head pos d_head"],
    attention_mask: None,
    scaling: float,
    cuts: Cuts,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Float[Tensor, "batch pos head d_head"], None]:
    """Causal attention of packed documents under cuts."""
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    # written out: on a CPU the backward pass of fused attention takes a third of a step's time
    before, text = slice(None, TEXT), slice(TEXT, None)
    future = torch.ones(TEXT, TEXT, dtype=torch.bool).triu(1)
    scores = (query[:, :, before] * scaling) @ key[:, :, before].transpose(2, 3)
    picture = scores.masked_fill(future, -torch.inf).softmax(-1) @ value[:, :, before]
    layer = cuts.of_layer(module.layer_idx)
    swapped = layer.swapped[:, None]
    rows = query[:, :, text] * scaling
    scores = torch.where(swapped, rows @ key.roll(1, 0).transpose(2, 3), rows @ key.transpose(2, 3))
    pattern = scores.masked_fill(layer.hidden[:, None], -torch.inf).softmax(-1)
    cuts.attention.append(pattern[:, :, cuts.answering])
    pattern = pattern.masked_fill(layer.emptied[:, None], 0)
    out = pattern.masked_fill(swapped, 0) @ value + pattern.masked_fill(~swapped, 0) @ value.roll(1, 0)
    return torch.cat([picture, out], dim=2).transpose(1, 2).contiguous().to(dtype), None


def register() -> None:
    """Makes ``attn_implementation="gatelens_cuts"`` known to transformers in this process."""
    AttentionInterface.register(ATTENTION, attention_under_cuts)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)


def stray_attention(kind: Kind, rows: list[Rows], cuts: Cuts) -> tuple[Tensor, Tensor]:
    """Attention of the answering rows where nothing is cut: to what carries nothing, and what a distractor lacks.

    Returns:
        The mean share that goes to tokens of the picture, the end-of-image token and gates in the text that carry
        nothing, in the layers that are to read; and how far the distractor's share is below a half.
    """
    stray, lacking = [], []
    for layer in range(N_LAYERS):
        for number, one in enumerate(rows):
            pattern = cuts.attention[layer][cuts.are("plain")[:, number], :, number].mean(1)  # document key
            carriers = {one.packed(p) for p in kind.positions(one.fact)} if kind.reads(layer) else set()
            everything = [*IMAGE, EOI, *(one.packed(p) for p in kind.gates_in_text)]
            empty = [p for p in everything if p not in carriers and p != kind.distractor]
            stray.append(pattern[:, empty].sum(-1).mean())
            if kind.distractor is not None:
                lacking.append((0.5 - pattern[:, kind.distractor]).clamp_min(0).mean())
    zero = torch.zeros(())
    return torch.stack(stray).mean(), torch.stack(lacking).mean() if lacking else zero
