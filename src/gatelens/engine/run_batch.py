"""Several runs on one batch of prompts, each computed in the cheapest exact way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.engine.clean_run import CleanRun
from gatelens.engine.decoding import Chooser, Decoder, decode
from gatelens.engine.footprint import fitted, inexact, zeroed_runs
from gatelens.engine.full_run import full_decoder, full_logits
from gatelens.engine.memory import halving
from gatelens.engine.plan import Part, Plan, Specs, make_plan
from gatelens.engine.replay import Replay
from gatelens.errors import InterventionError, shown
from gatelens.hooked_model import HookedModel, check_room, usable
from gatelens.inputs import VLMInputs
from gatelens.interventions.compile import as_interventions


class RunBatch:
    """Runs on one batch of prompts.

    Args:
        model: the model.
        inputs: the prompts.
        runs: the interventions of each run, perhaps none.
        every_position: whether logits of every position are wanted, or those of the last.
        max_new_tokens: how many tokens the runs will decode at most; 0 for logits alone.

    Raises:
        InterventionError: an intervention cannot act as written.
        InputError: prompt and new tokens take more positions than the model has.
    """

    def __init__(
        self,
        model: HookedModel,
        inputs: VLMInputs,
        runs: Sequence[Specs],
        every_position: bool = True,
        max_new_tokens: int = 0,
    ) -> None:
        self.model, self.inputs, self.runs = model, inputs, list(runs)
        self.every_position, self.max_new_tokens = every_position, max_new_tokens
        if max_new_tokens:
            check_room(model, inputs.tensors["position_ids"], max_new_tokens)
        self.tokens = inputs.tokens.extend(max_new_tokens) if max_new_tokens else inputs.tokens
        plan = make_plan(model, inputs, self.runs, self.tokens, not every_position)
        self.plan: Plan = fitted(model, plan, every_position, max_new_tokens, zeroed=zeroed_runs(self.runs))
        if self.plan.parts:
            warn_if_inexact(model)
        self._clean: CleanRun | None = None

    @property
    def clean(self) -> CleanRun:
        """The clean run, made when it is first asked for."""
        if self._clean is None:
            starts = [(layer, part.position) for part in self.plan.parts for layer in set(part.layers)]
            with torch.no_grad():
                self._clean = CleanRun(self.model, self.inputs, starts, self.every_position)
        return self._clean

    def each(self) -> Iterator[tuple[int, Float[Tensor, "batch pos d_vocab"]]]:
        """(number of the run, its logits), in the order they are ready.

        With ``every_position`` the tensor is one buffer, overwritten by each run: use it before the next one
        comes. Without, it holds the last position alone, Float[batch, 1, d_vocab].

        Between two runs nothing is held, neither the model nor a grad mode: they may never be asked for.
        """
        for i in self.plan.clean:
            yield i, self.clean.logits.clone()
        for i in self.plan.full:
            yield i, self._full_logits(i)
        buffer = self._buffer() if self.plan.parts and self.every_position else None
        for part in self._parts():
            for numbers, suffixes in halving(part.runs, partial(self._logits, part)):
                for i, suffix in zip(numbers, suffixes, strict=True):
                    if buffer is None:
                        yield i, suffix
                        continue
                    buffer[:, part.position :] = suffix
                    version = buffer._version
                    yield i, buffer
                    if buffer._version != version:  # the reader also wrote into it
                        buffer.copy_(self.clean.logits)
            if buffer is not None:
                buffer[:, part.position :] = self.clean.logits[:, part.position :]

    def decode(
        self, new_chooser: Callable[[], Chooser], raw_logits: bool = False
    ) -> list[Int[Tensor, "batch new"]]:
        """New tokens of every prompt under every run.

        Args:
            new_chooser: makes what picks the tokens, of one run or of several stacked in the batch.
            raw_logits: whether it sees logits of the unembedding, with no token masked out of them.
        """
        groups: list[tuple[tuple[int, ...], Part | None]] = [(part.runs, part) for part in self._parts()]
        groups += [((i,), None) for i in (*self.plan.clean, *self.plan.full)]
        token_ids: dict[int, Tensor] = {}
        with torch.no_grad():
            for runs, part in groups:

                def decode_some(numbers: tuple[int, ...], part: Part | None = part) -> Tensor:
                    decoder = self._decoder(part, numbers, raw_logits)
                    ids = decode(decoder, new_chooser(), self.max_new_tokens)
                    return ids.view(len(numbers), -1, ids.shape[1])

                for numbers, ids in halving(runs, decode_some):
                    token_ids.update(zip(numbers, ids, strict=True))
        return [token_ids[i] for i in range(len(self.runs))]

    def _parts(self) -> list[Part]:
        """The plan's, cut by layer where a pass of this family cannot be joined in later layers."""
        parts = self.plan.parts
        if not parts or self.clean.can_join:
            return list(parts)
        return [part.some(runs) for part in parts for _, runs in part.by_layer()]

    def _buffer(self) -> Tensor:
        with torch.inference_mode(False):  # tensors made in that mode do not count what is written to them
            return self.clean.logits.clone()

    @torch.no_grad()
    def _full_logits(self, number: int) -> Float[Tensor, "batch pos d_vocab"]:
        logits = full_logits(self.model, self.inputs, self.runs[number])
        # a copy of the last row: a view would keep the logits of every position alive
        return logits if self.every_position else logits[:, -1:].clone()

    @torch.no_grad()
    def _logits(self, part: Part, numbers: tuple[int, ...]) -> Float[Tensor, "run batch suffix d_vocab"]:
        return self._replay(part, numbers).logits(last_only=not self.every_position)

    def _decoder(self, part: Part | None, numbers: tuple[int, ...], raw_logits: bool) -> Decoder:
        """Of runs of a part, or of a single run that shares nothing."""
        if part is not None:
            return self._replay(part, numbers, raw_logits)
        specs = self.runs[numbers[0]]
        return full_decoder(self.model, self.inputs, specs, self.max_new_tokens, raw_logits=raw_logits)

    def _replay(self, part: Part, numbers: tuple[int, ...], raw_logits: bool = False) -> Replay:
        return Replay(self.clean, part.some(numbers), self.runs, self.tokens, raw_logits)


def warn_if_inexact(model: HookedModel) -> None:
    """Say once of a model that runs which share a batch cannot equal the same runs alone."""
    reason = inexact(model)
    if reason and not model.bridge.__dict__.setdefault("_said_inexact", False):
        model.bridge.__dict__["_said_inexact"] = True
        warnings.warn(reason, stacklevel=4)


@torch.no_grad()
def last_logits(
    model: HookedModel, inputs: VLMInputs, runs: Sequence[Any]
) -> list[Float[Tensor, "batch d_vocab"]]:
    """Logits at the last position under each of several runs; what they have in common is computed once.

    Args:
        model: the model.
        inputs: the prompts.
        runs: each an intervention, a (nested) list of them, or None.

    Raises:
        InterventionError: an intervention cannot act as written.

    Example:
        >>> clean, cut = gl.engine.last_logits(model, inputs, [None, gl.knockout("last", "gate")])
        >>> [model.tokenizer.decode(logits.argmax()) for logits in (clean, cut)]
        ['sunflower', 'fox']
    """
    inputs = usable(model, inputs)
    with model.lock:
        each = RunBatch(model, inputs, specs_of(runs), every_position=False).each()
        last = {i: logits[:, -1] for i, logits in each}
    return [last[i] for i in range(len(last))]


def specs_of(runs: Sequence[Any]) -> list[Specs]:
    """Each run (an intervention, a nested list, None) as a flat list. Raises InterventionError where there are none."""
    if isinstance(runs, str | Mapping | Tensor) or not isinstance(runs, Iterable):
        raise InterventionError(
            f"runs is {shown(runs)}: give a list, each run an intervention, a list of them, or None"
        )
    return [as_interventions(one) for one in runs]
