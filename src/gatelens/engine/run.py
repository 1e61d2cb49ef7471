"""One forward pass under interventions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from gatelens.engine.cuts import Cuts, Look, can_conduct, conducting
from gatelens.errors import InterventionError
from gatelens.interventions.compile import as_interventions, compile_hooks
from gatelens.interventions.hooks import CompiledHooks, Span
from gatelens.interventions.knockouts import plain_knockout

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap


def compile_for(model: HookedVLM, interventions: Any, tokens: TokenMap) -> CompiledHooks:
    """The hooks of the interventions for this model, its layers, heads and hook points checked.

    Raises:
        InterventionError: an intervention cannot act as written in this model.
    """
    compiled = compile_hooks(interventions, tokens, model.cfg)
    compiled.check_names(model.bridge.hook_dict)
    return compiled


class Whole:
    """A run that computes every cell: knockouts inside attention, other interventions as hooks.

    ``see(layer, pattern, position)``: shown the last row of every pass, Float[batch, head, 1, key].

    Attributes:
        compiled: the hooks; ``compiled.pairs`` go into the passes.

    Raises:
        InterventionError: an intervention cannot act as written in this model.
    """

    def __init__(
        self, model: HookedVLM, interventions: Any, tokens: TokenMap, see: Look | None = None
    ) -> None:
        self.model = model
        specs = as_interventions(interventions)
        self.cuts: Cuts | None = None
        if can_conduct(model):
            self.span = Span(0, tokens.n_pos)
            knockouts = [s for s in specs if plain_knockout(s)]
            last = None if see is None else self._last_row
            show = None if see is None else self._absolute(see)
            self.cuts = Cuts([knockouts], tokens, model.cfg, self.span, rows=last, look=show)
            specs = [s for s in specs if not plain_knockout(s)]
        self.compiled = compile_for(model, specs, tokens)

    def _last_row(self, layer: int) -> range:
        n = self.span.stop - self.span.offset
        return range(n - 1, n)

    def _absolute(self, see: Look) -> Look:
        return lambda layer, pattern, low: see(layer, pattern, self.span.offset + low)

    def at(self, offset: int, stop: int) -> None:
        """Say which positions the next pass computes."""
        self.compiled.at(offset, stop)
        if self.cuts is not None:
            self.span.offset, self.span.stop = offset, stop

    @contextmanager
    def acting(self) -> Iterator[list[Any]]:
        """The hooks to pass on, while the knockouts hold."""
        with strict_edits():
            if self.cuts is None:
                yield self.compiled.pairs
            else:
                with conducting(self.model, self.cuts):
                    yield self.compiled.pairs


@contextmanager
def strict_edits() -> Iterator[None]:
    """Make TransformerLens' warning that an edit was discarded an error.

    Some bridges let the wrapped module compute the attention and fire the hooks afterwards, for reading only.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message=r"A hook on [\s\S]*returned a modified tensor", category=UserWarning
        )
        try:
            yield
        except UserWarning as warning:
            if "returned a modified tensor" not in str(warning):
                raise
            raise InterventionError(
                f"this model discards the edit ({str(warning).split(' returned')[0]}): its bridge lets the "
                "wrapped module compute attention; patch, steer or ablate v or z there instead"
            ) from None


def run(model: HookedVLM, inputs: VLMInputs, interventions: Any = ()) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits under interventions.

    Args:
        model: the model.
        inputs: from ``model.prepare`` or ``model.inputs``.
        interventions: an intervention, a (nested) list of them, or None.

    Raises:
        InterventionError: an intervention cannot act as written, or has no effect in this model.
    """
    whole = Whole(model, interventions, inputs.tokens)
    with whole.acting() as pairs:
        logits = model.run_with_hooks(inputs, fwd_hooks=pairs)
    whole.compiled.check_fired()
    return logits
