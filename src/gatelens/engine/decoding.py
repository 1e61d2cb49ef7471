"""The one decode loop: a pass over the prompts, then a pass for every new token on top of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.stacked_runs import StackedRuns
from gatelens.errors import InputError
from gatelens.hooked_model import HookedModel
from gatelens.inputs import VLMInputs, next_position_ids
from gatelens.interventions.hooks import HookPair


class Chooser(Protocol):
    """Picks the next token of each example; ``finished`` once no further token is needed."""

    @property
    def finished(self) -> bool: ...

    def __call__(self, logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]: ...


class Decoder:
    """A batch of prompts and the KV cache that grows by one token of each at a time.

    Args:
        model: the model.
        tensors: transformers' arguments for the prompts, ``attention_mask`` (over the cache and the prompts) and
            ``position_ids`` among them.
        past: the cache; every layer keeps every position, in order. None computes every pass whole.
        runs: the interventions that hold in every pass; None for no interventions.
        raw_logits: give the logits of the unembedding, before a family masks some tokens out of them.
    """

    def __init__(
        self,
        model: HookedModel,
        tensors: dict[str, Any],
        past: DynamicCache | None,
        runs: StackedRuns | None = None,
        raw_logits: bool = False,
    ) -> None:
        self.model, self.tensors, self.runs = model, tensors, runs
        self.past: Any = past
        self.mask: Int[Tensor, "batch pos"] = tensors["attention_mask"]
        self.n_prompt, self.n_new = self.mask.shape[1], 0
        self._reading: list[HookPair] = [("unembed.hook_out", self._keep_raw)] if raw_logits else []
        self._raw: Tensor | None = None

    def prompt(self) -> Float[Tensor, "batch d_vocab"]:
        """Logits after the prompts. Raises InterventionError when a hook has not fired."""
        self._at(0, self.n_prompt)
        logits = self._forward({**self.tensors, "logits_to_keep": 1})
        if self.runs is not None:
            self.runs.check_fired()
        return logits[:, -1]

    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
        """Put a token after each example; the logits after it."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        position = self.n_prompt + self.n_new
        self._at(position, position + 1)
        tensors = {
            "input_ids": tokens[:, None].to(self.mask.device),
            "attention_mask": self.mask,
            "position_ids": next_position_ids(self.tensors["position_ids"], self.n_new),
        }
        self.n_new += 1
        return self._forward(tensors)[:, -1]

    def _at(self, offset: int, stop: int) -> None:
        if self.runs is not None:
            self.runs.at(offset, stop)

    def _forward(self, tensors: dict[str, Any]) -> Float[Tensor, "batch pos d_vocab"]:
        """One pass."""
        acting = nullcontext(list[HookPair]()) if self.runs is None else self.runs.acting()
        with acting as pairs:
            hooks = [*pairs, *self._reading]
            logits, _ = self.model.forward_step(tensors, hooks, past=self.past)
        return logits if self._raw is None else self._raw

    def _keep_raw(self, logits: Tensor, hook: Any) -> None:
        self._raw = logits.clone()  # transformers goes on to write into the same tensor


class Regrown(Decoder):
    """A decoder without a cache, for hooks the caller put on the model: each token is the grown prompts run again.

    Such a hook may count positions from the first.
    """

    def __init__(self, model: HookedModel, inputs: VLMInputs, runs: StackedRuns, raw_logits: bool) -> None:
        super().__init__(model, inputs.tensors, None, runs, raw_logits)
        self._inputs = inputs

    def step(self, tokens: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
        before = self._inputs
        self._inputs = before.grown(tokens[:, None], before.tokens.extend(1), [""] * len(tokens))
        self._at(0, self._inputs.shape[1])
        return self._forward({**self._inputs.tensors, "logits_to_keep": 1})[:, -1]


def decode(decoder: Decoder, choose: Chooser, max_new_tokens: int) -> Int[Tensor, "batch new"]:
    """The tokens that are chosen one after the other, each read again before the next."""
    new = [choose(decoder.prompt())]
    while len(new) < max_new_tokens and not choose.finished:
        new.append(choose(decoder.step(new[-1])))
    return torch.stack(new, dim=1)


class Greedy:
    """Chooses the likeliest token, on the CPU; an example that has ended repeats its end-of-sequence token.

    Attributes:
        ended: which examples have ended; of one entry for all before the first choice.
    """

    def __init__(self, ends: Sequence[int]) -> None:
        self._ends = torch.tensor(ends, dtype=torch.long)
        self._last: Int[Tensor, " batch"] = torch.zeros(1, dtype=torch.long)
        self.ended: Bool[Tensor, " batch"] = torch.zeros(1, dtype=torch.bool)

    @property
    def finished(self) -> bool:
        """Whether all examples have ended."""
        return bool(self.ended.all())

    def __call__(self, logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
        self._last = torch.where(self.ended, self._last, self._pick(logits.detach().cpu()))
        self.ended = self.ended | torch.isin(self._last, self._ends)
        return self._last

    def _pick(self, logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
        return logits.argmax(dim=-1)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, as transformers words it.

    Attributes:
        temperature: logits are divided by it; above 0.
        top_k: the number of most likely tokens that compete.
        top_p: only the likeliest tokens whose probabilities reach this sum compete.
        seed: of the random numbers. An example's draw does not depend on the others of its batch.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
        >>> gl.engine.Sampling().probabilities(logits)
        tensor([[0.5000, 0.2500, 0.2500]])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(
                f"temperature={self.temperature}: give a number above 0, or none for greedy decoding"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k={self.top_k}: give at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}: give a share above 0, up to 1")

    def probabilities(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        """What is drawn from."""
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None:
            likeliest, order = probabilities.sort(dim=-1, descending=True)
            before = likeliest.cumsum(dim=-1) - likeliest
            left_out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            probabilities = probabilities.masked_fill(left_out, 0)
        return probabilities / probabilities.sum(dim=-1, keepdim=True)


class Sampler(Greedy):
    """Draws the next token of each example; see :class:`Sampling`."""

    def __init__(self, ends: Sequence[int], sampling: Sampling, example_ids: Sequence[int]) -> None:
        super().__init__(ends)
        self._sampling = sampling
        seeds = [sampling.seed * 1_000_003 + number for number in example_ids]
        self._random = [torch.Generator().manual_seed(seed) for seed in seeds]

    def _pick(self, logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
        drawn = zip(self._sampling.probabilities(logits), self._random, strict=True)
        return torch.stack([row.multinomial(1, generator=random)[0] for row, random in drawn])
