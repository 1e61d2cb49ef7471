"""What holds during the passes of runs that share a batch: knockouts inside attention, the rest as hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor

from gatelens.engine.cuts import Cuts, PatternCallback, apply_cuts, can_apply_cuts
from gatelens.hooked_model import HookedModel
from gatelens.interventions.base import Intervention
from gatelens.interventions.compile import compile_hooks
from gatelens.interventions.hooks import CompiledHooks, HookPair, Span
from gatelens.interventions.knockouts import split_knockouts
from gatelens.tokens import TokenMap


class StackedRuns:
    """Runs stacked one after the other in the batch, each under its own interventions.

    Args:
        model: the model.
        runs: the interventions of each run.
        tokens: who is where in the prompts, with generated positions when the runs decode.
        shared: keys and values, by layer, that all runs read before their own.
        shown_rows: rows (of a pass) whose attention ``see`` is shown, by layer.
        see: shown these rows, where the decoder's attention can be watched.

    Raises:
        InterventionError: an intervention cannot act as written in this model.
    """

    def __init__(
        self,
        model: HookedModel,
        runs: Sequence[Sequence[Intervention]],
        tokens: TokenMap,
        shared: Sequence[tuple[Tensor, Tensor]] | None = None,
        shown_rows: Callable[[int], range | None] | None = None,
        see: PatternCallback | None = None,
    ) -> None:
        self.model = model
        self.span = Span(0, tokens.n_pos)
        self.cuts: Cuts | None = None
        if can_apply_cuts(model):
            split = [split_knockouts(run) for run in runs]
            runs = [others for _, others in split]
            knockouts = [mine for mine, _ in split]
            self.cuts = Cuts(knockouts, tokens, model.cfg, self.span, shared, shown_rows, see)
        self.compiled = [compile_for(model, run, tokens) for run in runs]
        self.pairs = stack_hooks(self.compiled, tokens.batch_size)

    def at(self, offset: int, stop: int) -> None:
        """Say which positions the next pass computes."""
        self.span.offset, self.span.stop = offset, stop
        for compiled in self.compiled:
            compiled.at(offset, stop)

    @contextmanager
    def acting(self) -> Iterator[list[HookPair]]:
        """The hooks to pass on, while the knockouts hold."""
        with nullcontext() if self.cuts is None else apply_cuts(self.model, self.cuts):
            yield self.pairs

    def may_end_early(self) -> bool:
        """Whether nothing reads or edits the last layer but knockouts, and the stream that enters it."""
        n_layers = int(self.model.cfg.n_layers)
        free = (*(f"blocks.{i}." for i in range(n_layers - 1)), f"blocks.{n_layers - 1}.hook_resid_pre")
        return self.cuts is not None and all(name.startswith(free) for name, _ in self.pairs)

    def check_fired(self) -> None:
        """Raise InterventionError if a hook has not fired so far."""
        for compiled in self.compiled:
            compiled.check_fired()


def compile_for(model: HookedModel, interventions: Any, tokens: TokenMap) -> CompiledHooks:
    """The hooks of the interventions for this model, its layers, heads and hook points checked.

    Raises:
        InterventionError: an intervention cannot act as written in this model.
    """
    compiled = compile_hooks(interventions, tokens, model.cfg)
    compiled.check_names(model.bridge.hook_dict)
    return compiled


def stack_hooks(compiled: Sequence[CompiledHooks], n_prompts: int) -> list[HookPair]:
    """One hook a point, which lets each run edit its own share of the batch."""
    if len(compiled) == 1:
        return list(compiled[0].pairs)
    # two names may be one point: what acts first there in one run stands before what other runs do there
    shares: dict[tuple[bool, str], list[tuple[int, Any]]] = {}
    for run, one in enumerate(compiled):
        for name, function in one.pairs:
            shares.setdefault((not function.edit.first, name), []).append((run, function))
    ordered = sorted(shares.items(), key=lambda item: item[0][0])
    return [(name, _edit_shares(members, n_prompts)) for (_, name), members in ordered]


def _edit_shares(members: list[tuple[int, Any]], n_prompts: int) -> Callable[..., Tensor | None]:
    def edit(tensor: Tensor, hook: Any = None) -> Tensor | None:
        edited: Tensor | None = None
        for run, function in members:
            share = slice(run * n_prompts, (run + 1) * n_prompts)
            old = (tensor if edited is None else edited)[share]
            new = function(old, hook=hook)
            if new is not None and new is not old:
                edited = tensor.clone() if edited is None else edited
                edited[share] = new
        return edited

    return edit
