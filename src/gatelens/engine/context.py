"""Questions answered from chosen keys and values of a prompt; see :mod:`.compress`, which chooses them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.decode import Generation, eos_ids
from gatelens.engine.memory import halving
from gatelens.engine.replay import greedy
from gatelens.errors import InputError, InterventionError, ModelError
from gatelens.inputs import next_position_ids
from gatelens.roles import Role

if TYPE_CHECKING:
    from gatelens.engine.compress import Described
    from gatelens.model import HookedVLM

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
        mask: 1 where that is no padding, [batch, kept]; the same in every layer.
        seconds: what choosing and copying took (describing: ``described.seconds``).
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
            max_new_tokens: at most so many new tokens each.
            stop_at_eos: end an answer at its end of sequence.
            batch_size: how many are answered at once.

        Raises:
            InputError: questions that do not fit the prompts, are empty or hold a picture.
            InterventionError: they would reach beyond a window of the model.
        """
        if max_new_tokens < 1:
            raise InterventionError(f"max_new_tokens={max_new_tokens}: give at least 1")
        model, pairs = self.described.model, self._pairs(questions)
        self._check_length(pairs, max_new_tokens)
        ends = eos_ids(model) if stop_at_eos else []
        began, found = now(model), list[Tensor]()

        def decode(some: tuple[tuple[int, list[int]], ...]) -> Tensor:
            logits, past, mask, positions = self._ask(some)

            def step(n: int, chosen: Int[Tensor, " batch"]) -> Tensor:
                nonlocal mask
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                new = {
                    "input_ids": chosen[:, None].to(mask.device),
                    "attention_mask": mask,
                    "position_ids": next_position_ids(positions, n),
                }
                return model.forward_step(new, past=past)[0][:, -1]

            return greedy(logits, step, max_new_tokens, ends)

        for first in range(0, len(pairs), batch_size):
            for _, ids in halving(pairs[first : first + batch_size], decode):
                found += list(ids)
        seconds = now(model) - began
        texts = [_text(model, ids, ends) for ids in found]
        return Answers(_nested(pairs, texts, len(self.mask)), _nested(pairs, found, len(self.mask)), seconds)

    @torch.no_grad()
    def logits(self, questions: Questions) -> Float[Tensor, "question d_vocab"]:
        """What follows each question, prompt after prompt: logits of its last token. Raises as :meth:`answer`."""
        pairs = self._pairs(questions)
        self._check_length(pairs, 0)
        return torch.cat([logits for _, logits in halving(pairs, lambda some: self._ask(some)[0])])

    def _ask(self, pairs: tuple[tuple[int, list[int]], ...]) -> tuple[Tensor, DynamicCache, Tensor, Tensor]:
        """(logits after each question, the grown cache, its mask, positions of the questions)."""
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
        logits, _ = model.forward_step({**tensors, "logits_to_keep": 1}, past=past)
        return logits[:, -1], past, mask, positions

    def _pairs(self, questions: Questions) -> list[tuple[int, list[int]]]:
        """(number of the prompt, token ids) of every question. Raises InputError."""
        n = len(self.mask)
        if isinstance(questions, str):
            nested: list[list[str]] = [[questions]] * n
        elif n == 1 and all(isinstance(q, str) for q in questions):
            nested = [[str(q) for q in questions]]
        elif len(questions) == n and not any(isinstance(q, str) for q in questions):
            nested = [list(q) for q in questions]
        else:
            raise InputError(f"questions for {n} prompt(s): give a list of questions for each of them")
        model = self.described.model
        if model.tokenizer is None:
            raise ModelError("this model has no tokenizer: pass processor= to from_module")
        pairs = []
        for b, asked in enumerate(nested):
            for question in asked:
                ids = list(model.tokenizer(question, add_special_tokens=False)["input_ids"])
                if not ids:
                    raise InputError(f"a question for prompt {b} is empty: write one")
                if model.layout.placeholder_id in ids:
                    raise InputError(f"question {question!r} holds a picture: only prompts can")
                pairs.append((b, ids))
        if not pairs:
            raise InputError("no questions: give at least one")
        return pairs

    def _check_length(self, pairs: list[tuple[int, list[int]]], more: int) -> None:
        prompt = self.n_prompt
        check_windows(self.described.model, max(prompt[b] + len(ids) for b, ids in pairs) + more)


def check_windows(model: HookedVLM, length: int) -> None:
    """A window counts places in the cache, and dropped tokens would let it reach too far back."""
    shortest = min((w for w in model.cfg.attention_windows if w is not None), default=length)
    if length > shortest:
        raise InterventionError(
            f"layers of this model look back {shortest} positions, and prompt, question and answer take up to "
            f"{length}: a compressed context would move old tokens into their window; use a shorter prompt, or a "
            "model without windows"
        )


def now(model: HookedVLM) -> float:
    """The time when all that was asked for is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _text(model: HookedVLM, ids: Int[Tensor, " new"], ends: list[int]) -> str:
    words = ids.tolist()
    stop = next((i for i, word in enumerate(words) if word in ends), len(words))
    return model.decode(words[:stop])[0] if stop else ""


def _nested(pairs: list[tuple[int, list[int]]], found: list[Any], n: int) -> list[list[Any]]:
    """What belongs to each prompt."""
    out: list[list[Any]] = [[] for _ in range(n)]
    for (b, _), one in zip(pairs, found, strict=True):
        out[b].append(one)
    return out
