"""Many runs on one batch of prompts, each computed in the cheapest exact way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.engine.clean import Clean
from gatelens.engine.memory import halving
from gatelens.engine.plan import Part, Plan, Run, make_plan
from gatelens.engine.replay import Replay
from gatelens.engine.run import run, strict_edits
from gatelens.interventions.compile import as_interventions

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM


class Many:
    """Runs on one batch of prompts.

    Args:
        model: the model.
        inputs: the prompts.
        runs: the interventions of each run, perhaps none.
        logits: whether logits of every position are wanted, or those of the last.
        max_new_tokens: how many tokens the runs will decode at most; 0 for logits alone.

    Raises:
        InterventionError: an intervention cannot act as written.
    """

    def __init__(
        self,
        model: HookedVLM,
        inputs: VLMInputs,
        runs: Sequence[Run],
        logits: bool = True,
        max_new_tokens: int = 0,
    ) -> None:
        self.model, self.inputs, self.runs, self.whole = model, inputs, list(runs), logits
        self.tokens = inputs.tokens.extend(max_new_tokens) if max_new_tokens else inputs.tokens
        self.plan: Plan = make_plan(model, inputs, self.runs, self.tokens)
        self._clean: Clean | None = None

    @property
    def clean(self) -> Clean:
        """The clean run, made when it is first asked for."""
        if self._clean is None:
            starts = [(part.layer, part.position) for part in self.plan.parts]
            self._clean = Clean(self.model, self.inputs, starts, self.whole)
        return self._clean

    def each(self) -> Iterator[tuple[int, Float[Tensor, "batch pos d_vocab"]]]:
        """(number of the run, its logits), in the order they are ready.

        With ``logits`` the tensor is one buffer, written anew for each run: use it before the next one comes.
        Without, it holds the last position alone, Float[batch, 1, d_vocab].
        """
        with torch.no_grad(), strict_edits():
            for i in self.plan.clean:
                yield i, self.clean.logits.clone()
            for i in self.plan.full:
                logits = run(self.model, self.inputs, self.runs[i])
                # a copy of the last row: a view would keep the logits of every position alive
                yield i, logits if self.whole else logits[:, -1:].clone()
            buffer = self._buffer() if self.plan.parts and self.whole else None
            for part in self.plan.parts:
                for some, logits in halving(part.runs, partial(self._logits, part)):
                    for i, mine in zip(some, logits, strict=True):
                        if buffer is None:
                            yield i, mine
                            continue
                        buffer[:, part.position :] = mine
                        written = buffer._version
                        yield i, buffer
                        if buffer._version != written:  # whoever read it also wrote into it
                            buffer.copy_(self.clean.logits)
                if buffer is not None:
                    buffer[:, part.position :] = self.clean.logits[:, part.position :]

    def _buffer(self) -> Tensor:
        with torch.inference_mode(False):  # tensors made in that mode do not count what is written to them
            return self.clean.logits.clone()

    def _logits(self, part: Part, runs: tuple[int, ...]) -> Tensor:
        replay = Replay(self.clean, Part(part.position, part.layer, runs), self.runs, self.tokens)
        return replay.prompt(last_only=not self.whole)

    def generate(
        self, max_new_tokens: int, ends: list[int], plainly: Callable[[Run], Int[Tensor, "batch new"]]
    ) -> list[Int[Tensor, "batch new"]]:
        """Greedy tokens of every prompt under every run. ``plainly`` decodes a run that cannot share anything."""
        return self.write(lambda replay: replay.decode(max_new_tokens, ends), plainly)

    def write(
        self, replayed: Callable[[Replay], Tensor], plainly: Callable[[Run], Int[Tensor, "batch new"]]
    ) -> list[Int[Tensor, "batch new"]]:
        """New tokens of every prompt under every run.

        Args:
            replayed: writes those of the runs of a part, Int[run, batch, new].
            plainly: writes those of a run that cannot share anything.
        """
        out: dict[int, Tensor] = {}
        with torch.no_grad(), strict_edits():
            for i in (*self.plan.clean, *self.plan.full):
                out[i] = plainly(self.runs[i])
            for part in self.plan.parts:

                def decode(runs: tuple[int, ...], part: Part = part) -> Tensor:
                    mine = Part(part.position, part.layer, runs)
                    return replayed(Replay(self.clean, mine, self.runs, self.tokens))

                for some, ids in halving(part.runs, decode):
                    out.update(zip(some, ids, strict=True))
        return [out[i] for i in range(len(self.runs))]


@torch.no_grad()
def last_logits(
    model: HookedVLM, inputs: VLMInputs, runs: Sequence[Any]
) -> list[Float[Tensor, "batch d_vocab"]]:
    """Logits at the last position under each of several runs; what they have in common is computed once.

    Args:
        model: the model.
        inputs: the prompts.
        runs: each an intervention, a (nested) list of them, or None.

    Raises:
        InterventionError: an intervention cannot act as written.
    """
    found = {i: logits[:, -1] for i, logits in Many(model, inputs, runs_of(runs), logits=False).each()}
    return [found[i] for i in range(len(runs))]


def runs_of(choices: Sequence[Any]) -> list[Run]:
    """Each choice (an intervention, a nested list, None) as a flat list."""
    return [as_interventions(choice) for choice in choices]
