"""A prompt that has run, the keys and values chosen from it, and answers to questions from these alone."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.decoding import Decoder, Greedy, decode
from gatelens.engine.generation import Generation, eos_ids, text_before_end
from gatelens.engine.memory import halving
from gatelens.errors import InputError, InterventionError, ModelError, shown
from gatelens.hooked_model import HookedModel, check_room
from gatelens.interventions.arguments import as_count, as_flag
from gatelens.tokens import Role, SelectorLike, TokenMap

ALWAYS, AMONG = "~image", "image"
Questions = str | Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Answers:
    """What was answered.

    Attributes:
        texts: by prompt and question.
        token_ids: the same, Int[new] each; after the end of sequence, that token again.
        seconds: for all of them.
    """

    texts: list[list[str]]
    token_ids: list[list[Int[Tensor, " new"]]]
    seconds: float

    @property
    def seconds_each(self) -> float:
        return self.seconds / max(1, sum(len(one) for one in self.texts))


@dataclass(frozen=True, eq=False)
class CompressedContext:
    """Some of the keys and values of description prompts, to answer questions from.

    Attributes:
        described: where it comes from.
        keep: the share of image tokens it was asked to keep.
        kept: which positions of the prompt each layer keeps.
        layers: keys and values by layer, [batch, kv_head, kept, d], padded on the left in the batch.
        mask: 1 where that is not padding, [batch, kept]; the same in every layer.
        seconds: what choosing and copying took (describing: ``described.seconds``).

    Example:
        >>> context = gl.engine.compress(model, inputs, keep=1.0)  # all of it: needs no description
        >>> context.answer("it is a", max_new_tokens=1).texts
        [['sunflower']]
    """

    described: Described
    keep: float
    kept: Bool[Tensor, "layer batch pos"]
    layers: Sequence[tuple[Tensor, Tensor]]
    mask: Int[Tensor, "batch kept"]
    seconds: float

    @property
    def description(self) -> Generation | None:
        return self.described.description

    @property
    def n_kept(self) -> list[int]:
        """Tokens kept of each prompt, in each layer."""
        return self.mask.sum(dim=1).tolist()

    @property
    def n_prompt(self) -> list[int]:
        """Tokens of each prompt."""
        return (self.described.tokens.roles != Role.PAD).sum(dim=1).tolist()

    @property
    def nbytes(self) -> list[int]:
        """Bytes of the keys and values kept of each prompt, padding not counted."""
        one = sum(
            x.element_size() * x.shape[1] * x.shape[3] for keys_values in self.layers for x in keys_values
        )
        return [one * n for n in self.n_kept]

    def dropped(self, layer: int) -> Bool[Tensor, "batch pos"]:
        """What a layer no longer holds; as ``keys`` of a knockout it says the same of the full prompt."""
        return (self.described.tokens.roles != Role.PAD).cpu() & ~self.kept[layer]

    @torch.no_grad()
    def answer(
        self,
        questions: Questions,
        max_new_tokens: int = 20,
        stop_at_eos: bool = True,
        batch_size: int = 64,
    ) -> Answers:
        """Answer each question greedily, as if it followed the prompt; no question sees another.

        Args:
            questions: one for all prompts; or, of a single prompt, several; or several a prompt, as a list of
                lists. A question is tokenised alone, without special tokens: begin it with what parts it from
                the prompt, and end it with what asks for an answer, where the model is used to that.
            max_new_tokens: the maximum number of new tokens each.
            stop_at_eos: end an answer at its end of sequence.
            batch_size: how many are answered at once.

        Raises:
            InputError: questions that do not fit the prompts, are empty or hold a picture.
            InterventionError: they would reach beyond a window of the model.
        """
        max_new_tokens = as_count(max_new_tokens, "max_new_tokens")
        batch_size = as_count(batch_size, "batch_size")
        model = self.described.model
        ends = eos_ids(model) if as_flag(stop_at_eos, "stop_at_eos") else []
        token_ids = list[Tensor]()

        def decode_some(some: tuple[tuple[int, list[int]], ...]) -> Tensor:
            return decode(self._decoder(some), Greedy(ends), max_new_tokens)

        with model.lock:
            pairs = self._pairs(questions)
            self._check_length(pairs, max_new_tokens)
            began = now(model)
            for first in range(0, len(pairs), batch_size):
                for _, ids in halving(pairs[first : first + batch_size], decode_some):
                    token_ids += list(ids)
            seconds = now(model) - began
        texts = [text_before_end(model, ids.tolist(), ends) for ids in token_ids]
        return Answers(self._nested(pairs, texts), self._nested(pairs, token_ids), seconds)

    @torch.no_grad()
    def logits(self, questions: Questions) -> Float[Tensor, "question d_vocab"]:
        """What follows each question, prompt after prompt: logits of its last token. Raises as :meth:`answer`."""
        with self.described.model.lock:
            pairs = self._pairs(questions)
            self._check_length(pairs, 0)
            parts = list(halving(pairs, lambda some: self._decoder(some).prompt()))
        return torch.cat([logits for _, logits in parts])

    def _decoder(self, pairs: tuple[tuple[int, list[int]], ...]) -> Decoder:
        """Decodes after questions, each put after what is kept of its prompt."""
        model, device = self.described.model, self.described.model.device
        rows, longest = [b for b, _ in pairs], max(len(ids) for _, ids in pairs)
        past = DynamicCache()
        for layer, (keys, values) in enumerate(self.layers):
            past.update(keys[rows], values[rows], layer)
        # on the left, between context and question; any token will do, nothing reads it
        ids = torch.tensor([[q[0]] * (longest - len(q)) + q for _, q in pairs], device=device)
        own = torch.tensor([[0] * (longest - len(q)) + [1] * len(q) for _, q in pairs])
        places = (own.cumsum(dim=1) - 1).clamp_min(0).to(device)
        positions = self.described.next_position.to(device)[rows][:, None] + places
        if self.described.streams:
            positions = positions.expand(self.described.streams, -1, -1)
        mask = torch.cat([self.mask[rows], own], dim=1).to(device)
        tensors: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return Decoder(model, tensors, past)

    def _pairs(self, questions: Questions) -> list[tuple[int, list[int]]]:
        """(number of the prompt, token ids) of every question. Raises InputError."""
        n = len(self.mask)
        if not isinstance(questions, str | list | tuple):
            raise InputError(f"questions is {shown(questions)}: give a question, or a list of them")
        if isinstance(questions, str):
            nested: list[list[str]] = [[questions]] * n
        elif n == 1 and all(isinstance(q, str) for q in questions):
            nested = [[str(q) for q in questions]]
        elif len(questions) == n and all(isinstance(q, list | tuple) for q in questions):
            nested = [list(q) for q in questions]
        else:
            raise InputError(f"questions for {n} prompt(s): give a list of questions for each of them")
        model = self.described.model
        if model.tokenizer is None:
            raise ModelError("this model has no tokenizer: pass processor= to from_module")
        pairs = []
        for b, asked in enumerate(nested):
            for question in asked:
                if not isinstance(question, str):
                    raise InputError(f"a question for prompt {b} is {shown(question)}: give text")
                ids = list(model.tokenizer(question, add_special_tokens=False)["input_ids"])
                if not ids:
                    raise InputError(f"a question for prompt {b} is empty: write one")
                if model.layout.placeholder_id in ids:
                    raise InputError(f"question {question!r} holds a picture: only prompts can")
                pairs.append((b, ids))
        if not pairs:
            raise InputError("no questions: give at least one")
        return pairs

    def _nested(self, pairs: list[tuple[int, list[int]]], answers: list[Any]) -> list[list[Any]]:
        """The answers by prompt."""
        nested: list[list[Any]] = [[] for _ in self.mask]
        for (b, _), answer in zip(pairs, answers, strict=True):
            nested[b].append(answer)
        return nested

    def _check_length(self, pairs: list[tuple[int, list[int]]], more: int) -> None:
        prompt, after = self.n_prompt, self.described.next_position
        ends = torch.stack([after[b] + len(ids) - 1 for b, ids in pairs])
        check_room(self.described.model, ends, more)
        check_windows(self.described.model, max(prompt[b] + len(ids) for b, ids in pairs) + more)


@dataclass(frozen=True, eq=False)
class Described:
    """Description prompts that have run; contexts of any size can be cut from them.

    Attributes:
        model: the model.
        tokens: the prompts' map.
        description: what the model wrote; None when it was not asked to.
        attention: of the rows that wrote it, to each position of the prompt, averaged over heads and rows: the
            prompt's last row, then every word's. None without a description.
        layers: keys (after the rotary embedding) and values of the prompts by layer, [batch, kv_head, pos, d].
        next_position: position of the first token after each prompt.
        streams: of position ids (three where positions have time, height and width); 0 is one, without an axis.
        seconds: what it took.

    Example:
        >>> described = gl.engine.describe(model, inputs, max_new_tokens=2)
        >>> [described.compress(keep).n_kept for keep in (0.0, 0.25, 1.0)]  # of 64 image tokens and 6 others
        [[6], [22], [70]]
    """

    model: HookedModel
    tokens: TokenMap
    description: Generation | None
    attention: Float[Tensor, "layer batch pos"] | None
    layers: Sequence[tuple[Tensor, Tensor]]
    next_position: Int[Tensor, " batch"]
    streams: int
    seconds: float

    @torch.no_grad()
    def compress(
        self, keep: float = 0.05, always: SelectorLike = ALWAYS, among: SelectorLike = AMONG
    ) -> CompressedContext:
        """Keep ``always`` and, by layer, the share ``keep`` of ``among`` with the most attention.

        The number is the nearest whole one, halves up, and at least one unless ``keep`` is 0. Equal attention
        goes to the earlier token.

        Raises:
            InterventionError: a share outside 0 … 1, one between them without a description, or nothing left.
        """
        check_share(keep)
        began = now(self.model)
        kept = self._kept(keep, always, among)
        counts = kept[0].sum(dim=1)
        if int(counts.min()) == 0:
            raise InterventionError(
                f"keep={keep} with always={str(always)!r} keeps nothing of prompt {int(counts.argmin())}: "
                "a question needs something to follow"
            )
        n = int(counts.max())
        layers = []
        for mine, (keys, values) in zip(kept, self.layers, strict=True):
            # real positions last, each example's in their order: stable on "is it kept"
            index = mine.long().sort(dim=1, stable=True).indices[:, -n:].to(keys.device)
            layers.append((_rows(keys, index), _rows(values, index)))
        mask = (torch.arange(n) >= n - counts[:, None]).long()
        return CompressedContext(self, keep, kept, layers, mask, now(self.model) - began)

    def _kept(
        self, keep: float, always: SelectorLike, among: SelectorLike
    ) -> Bool[Tensor, "layer batch pos"]:
        real = (self.tokens.roles != Role.PAD).cpu()
        whole = self.tokens.mask(always) & real
        ranked = self.tokens.mask(among) & real & ~whole
        kept = whole.expand(len(self.layers), -1, -1).clone()
        if keep == 1:
            return kept | ranked
        if keep == 0:
            return kept
        if self.attention is None:
            raise InterventionError(f"keep={keep} selects by attention: give max_new_tokens of 1 or more")
        scores = self.attention.masked_fill(~ranked, -1.0)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        counts = [max(1, math.floor(keep * n + 0.5)) if n else 0 for n in ranked.sum(dim=1).tolist()]
        for b, count in enumerate(counts):
            kept[:, b].scatter_(1, order[:, b, :count], True)
        return kept


def check_windows(model: HookedModel, length: int) -> None:
    """A window counts places in the cache, and dropped tokens would let it reach too far back."""
    shortest = min((w for w in model.cfg.attention_windows if w is not None), default=length)
    if length > shortest:
        raise InterventionError(
            f"layers of this model look back {shortest} positions, and prompt, question and answer take up to "
            f"{length}: a compressed context would move old tokens into their window; use a shorter prompt, or a "
            "model without windows"
        )


def now(model: HookedModel) -> float:
    """The time when all that was asked for is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _rows(tensor: Float[Tensor, "batch head pos d"], index: Int[Tensor, "batch kept"]) -> Tensor:
    """Other positions of each example."""
    return tensor.gather(2, index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))


def check_share(keep: float) -> None:
    if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 <= keep <= 1:
        raise InterventionError(f"keep={shown(keep)}: give a share from 0 to 1, e.g. 0.05 for 5 %")
