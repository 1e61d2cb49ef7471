"""Several runs in one pass, from the clean run on: only the cells they can change are computed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gatelens.bridge.blocks import joined_blocks
from gatelens.bridge.last_rows import last_row_alone
from gatelens.engine.clean_run import CleanRun
from gatelens.engine.decoding import Decoder
from gatelens.engine.plan import Part, Specs
from gatelens.engine.stacked_runs import StackedRuns
from gatelens.tokens import TokenMap


class Replay(Decoder):
    """The runs of one part of a plan, stacked run after run in the batch.

    Args:
        clean: the clean run of the prompts.
        part: where they start; ``part.runs`` number ``runs``.
        runs: the interventions of every run of the plan.
        tokens: who is where, with generated positions when the runs decode.
        raw_logits: see :class:`Decoder`.

    Raises:
        InterventionError: an intervention cannot act as written.
    """

    def __init__(
        self,
        clean: CleanRun,
        part: Part,
        runs: Sequence[Specs],
        tokens: TokenMap,
        raw_logits: bool = False,
    ) -> None:
        self.clean, self.part = clean, part
        tensors, past = clean.stacked(len(part.runs)), clean.branch(part.position)
        shared = clean.keys_before(part.position)
        self.stack = StackedRuns(clean.model, [runs[i] for i in part.runs], tokens, shared)
        super().__init__(clean.model, tensors, past, self.stack, raw_logits)

    def logits(self, last_only: bool = False) -> Float[Tensor, "run batch suffix d_vocab"]:
        """Logits of the positions from ``part.position`` on (or of the last alone), run by run."""
        position, layers = self.part.position, self.part.layers
        joining = {
            layer: self.clean.resid_pre(layer, position).repeat(layers.count(layer), 1, 1)
            for layer in sorted(set(layers))
        }
        tensors: dict[str, Any] = {"attention_mask": self.mask}
        for name in ("input_ids", "position_ids"):
            tensors[name] = self.tensors[name][..., position:]
        if last_only:
            tensors["logits_to_keep"] = 1
        self.stack.at(position, self.n_prompt)
        with ExitStack() as stack:
            stack.enter_context(self.model.lock)
            stack.enter_context(joined_blocks(self.model.bridge, joining, self.clean.in_tuples))
            if last_only and self.stack.may_end_early():
                last = partial(self.stack.at, self.n_prompt - 1, self.n_prompt)
                stack.enter_context(last_row_alone(self.model.bridge.blocks[-1], last))
            logits = self._forward(tensors)
        self.stack.check_fired()
        return logits.view(len(layers), -1, *logits.shape[1:])

    def prompt(self) -> Float[Tensor, "run_batch d_vocab"]:
        """Logits after the prompts of every run; the cache is then whole."""
        logits = self.logits(last_only=True)[:, :, -1].flatten(0, 1)
        self.clean.fill_skipped(self.past, self.part)
        return logits
