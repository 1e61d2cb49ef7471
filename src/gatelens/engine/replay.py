"""Several runs in one pass, from the clean run on: only the cells they can change are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.engine.clean import Clean
from gatelens.engine.cuts import Cuts, conducting
from gatelens.engine.plan import Part, Run
from gatelens.inputs import next_position_ids
from gatelens.interventions.compile import compile_hooks
from gatelens.interventions.hooks import CompiledHooks, HookPair, Span
from gatelens.interventions.knockouts import plain_knockout

if TYPE_CHECKING:
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap

# step(n, tokens): logits [batch, d_vocab] after the n-th new tokens [batch] were added
Step = Callable[[int, Tensor], Tensor]
# writer(logits, step): the new tokens [batch, new], chosen one by one
Writer = Callable[[Tensor, Step], Tensor]


class Replay:
    """The runs of one part of a plan.

    Args:
        clean: the clean run of the prompts.
        part: where they start; ``part.runs`` number ``runs``.
        runs: the interventions of every run of the plan.
        tokens: who is where, with generated positions when the runs decode.

    Raises:
        InterventionError: an intervention cannot act as written.
    """

    def __init__(self, clean: Clean, part: Part, runs: Sequence[Run], tokens: TokenMap) -> None:
        self.clean, self.part, self.model = clean, part, clean.model
        self.n_prompts, self.n_pos = clean.inputs.tokens.batch_size, clean.inputs.tokens.n_pos
        mine = [runs[i] for i in part.runs]
        self.span = Span(part.position, self.n_pos)
        self.cuts = Cuts(
            [[spec for spec in run if plain_knockout(spec)] for run in mine],
            tokens,
            self.model.cfg,
            self.span,
            clean.before(part.position),
        )
        self.compiled = [
            compile_hooks([spec for spec in run if not plain_knockout(spec)], tokens, self.model.cfg)
            for run in mine
        ]
        for compiled in self.compiled:
            compiled.check_names(self.model.bridge.hook_dict)
        self.pairs = stacked(self.compiled, self.n_prompts)
        self.past: Any = None

    def prompt(self, last_only: bool = False) -> Float[Tensor, "run batch suffix d_vocab"]:
        """Logits of the positions from ``part.position`` on (or of the last alone), run by run."""
        n_runs, layer = len(self.part.runs), self.part.layer
        start = self.clean.resid_pre(layer, self.part.position).repeat(n_runs, 1, 1)
        self.past = self.clean.branch(self.part.position)
        self._at(self.part.position, self.n_pos)
        begin: HookPair = (f"blocks.{layer}.hook_resid_pre", lambda tensor, hook: start)
        tensors: dict[str, Any] = self.clean.suffix(self.part.position, n_runs)
        if last_only:
            tensors["logits_to_keep"] = 1
        with conducting(self.model, self.cuts), skipping(self.model, layer, self.clean.in_tuples):
            logits, _ = self.model.forward_step(tensors, [begin, *self.pairs], past=self.past)
        for compiled in self.compiled:
            compiled.check_fired()
        return logits.view(n_runs, self.n_prompts, *logits.shape[1:])

    def decode(self, max_new_tokens: int, ends: list[int]) -> Int[Tensor, "run batch new"]:
        """Greedy continuations of every prompt under every run; after an end, that token again."""
        return self.write(partial(greedy, max_new_tokens=max_new_tokens, ends=ends))

    def write(self, writer: Writer, reading: Sequence[HookPair] = ()) -> Int[Tensor, "run batch new"]:
        """What ``writer`` chooses, token by token, for every prompt under every run.

        ``reading``: hooks that look on at every pass, at the runs stacked one after the other in the batch.
        """
        self.pairs = [*self.pairs, *reading]
        n_runs = len(self.part.runs)
        logits = self.prompt(last_only=True)[:, :, -1].flatten(0, 1)
        self.clean.fill_skipped(self.past, self.part.position, n_runs, self.part.layer)
        mask = self.clean.tensors["attention_mask"].repeat(n_runs, 1)
        positions = self.clean.tensors["position_ids"]
        positions = positions.repeat(1, n_runs, 1) if positions.ndim == 3 else positions.repeat(n_runs, 1)

        def step(n: int, chosen: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_vocab"]:
            nonlocal mask
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            self._at(self.n_pos + n, self.n_pos + n + 1)
            tensors = {
                "input_ids": chosen[:, None].to(mask.device),
                "attention_mask": mask,
                "position_ids": next_position_ids(positions, n),
            }
            with conducting(self.model, self.cuts):
                return self.model.forward_step(tensors, self.pairs, past=self.past)[0][:, -1]

        return writer(logits, step).view(n_runs, self.n_prompts, -1)

    def _at(self, offset: int, stop: int) -> None:
        self.span.offset, self.span.stop = offset, stop
        for compiled in self.compiled:
            compiled.at(offset, stop)


def greedy(
    logits: Float[Tensor, "batch d_vocab"],
    step: Step,
    max_new_tokens: int,
    ends: list[int],
) -> Int[Tensor, "batch new"]:
    """The likeliest token again and again. ``step(n, tokens)``: logits after the n-th new tokens were added.

    An example that has ended repeats its end-of-sequence token; all ended stops the run. On the CPU.
    """
    stops = torch.tensor(ends, dtype=torch.long)
    done = torch.zeros(len(logits), dtype=torch.bool)
    ended = torch.full((len(logits),), ends[0] if ends else 0)
    new: list[Tensor] = []
    for n in range(max_new_tokens):
        chosen = logits.argmax(dim=-1).cpu()
        chosen = torch.where(done, ended, chosen)
        new.append(chosen)
        is_end = torch.isin(chosen, stops) & ~done
        ended = torch.where(is_end, chosen, ended)
        done |= is_end
        if bool(done.all()) or n + 1 == max_new_tokens:
            break
        logits = step(n, chosen)
    return torch.stack(new, dim=1)


def stacked(compiled: Sequence[CompiledHooks], n_prompts: int) -> list[HookPair]:
    """One hook a point, which lets each run edit its own share of the batch."""
    if len(compiled) == 1:
        return compiled[0].pairs
    by_name: dict[str, list[tuple[int, Any]]] = {}
    for run, one in enumerate(compiled):
        for name, function in one.pairs:
            by_name.setdefault(name, []).append((run, function))

    def pair(name: str, members: list[tuple[int, Any]]) -> HookPair:
        def edit(tensor: Tensor, hook: Any = None) -> Tensor | None:
            whole: Tensor | None = None
            for run, function in members:
                share = slice(run * n_prompts, (run + 1) * n_prompts)
                old = (tensor if whole is None else whole)[share]
                new = function(old, hook=hook)
                if new is not None and new is not old:
                    whole = tensor.clone() if whole is None else whole
                    whole[share] = new
            return whole

        return name, edit

    return [pair(name, members) for name, members in by_name.items()]


@contextmanager
def skipping(model: HookedVLM, start: int, in_tuples: bool) -> Iterator[None]:
    """Let the blocks before ``start`` hand on what they are given, as their family does, for a while."""
    with ExitStack() as stack:
        for block in list(model.bridge.blocks)[:start]:
            # found before the class's forward; nothing of the block, its hooks or its cache is touched
            block.__dict__["forward"] = _hand_on_tuple if in_tuples else _hand_on
            stack.callback(block.__dict__.pop, "forward")
        yield


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _hand_on_tuple(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    return (hidden_states,)
