"""From a list of interventions to the hook functions of one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.base import Edit, HookFunction, HookPair, Intervention, Span
from gatelens.interventions.knockout import knockout_edits, plain_knockout

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap


class CompiledHooks:
    """The hooks of one run of several interventions.

    Attributes:
        pairs: ``(hook name, function)``, to be handed to TransformerLens together.
        fired: names of the hooks that have fired so far.
    """

    def __init__(self, edits: Sequence[Edit], span: Span) -> None:
        self.span = span
        self.fired: set[str] = set()
        ordered = [e for e in edits if e.first] + [e for e in edits if not e.first]
        self.pairs: list[HookPair] = [(e.name, self._noting(e)) for e in ordered]

    def _noting(self, edit: Edit) -> HookFunction:
        def function(tensor: Tensor, hook: Any = None) -> Tensor | None:
            self.fired.add(edit.name)
            return edit.function(tensor, hook=hook)

        return function

    @property
    def names(self) -> set[str]:
        """All hook points in use."""
        return {name for name, _ in self.pairs}

    @property
    def offset(self) -> int:
        """Absolute position of the first token the next pass computes."""
        return self.span.offset

    def at(self, offset: int, stop: int) -> None:
        """Say that the next pass computes positions ``offset … stop - 1`` (keys ``0 … stop - 1``)."""
        self.span.offset, self.span.stop = offset, stop

    def check_names(self, available: Iterable[str], model: str = "this model") -> None:
        """Raise :class:`InterventionError` for a hook point the model does not have."""
        missing = sorted(self.names - set(available))
        if missing:
            raise InterventionError(
                f"{model} has no hook point {missing[0]!r}, so that site cannot be edited in it"
            )

    def check_fired(self, model: str = "this model") -> None:
        """Raise :class:`InterventionError` if a hook has not fired in the run so far."""
        silent = sorted(self.names - self.fired)
        if silent:
            raise InterventionError(
                f"hook {silent[0]!r} never fired in {model} ({len(silent)} of {len(self.names)} hooks did "
                "not), so the intervention did nothing; choose another site for this family"
            )


def as_interventions(specs: Any) -> list[Intervention]:
    """A flat list of interventions from one, several, nested lists; None stands for none.

    Raises:
        InterventionError: something in it is no intervention.
    """
    if specs is None:
        return []
    if isinstance(specs, Intervention):
        return [specs]
    if isinstance(specs, Iterable) and not isinstance(specs, str | dict | Tensor):
        return [one for group in specs for one in as_interventions(group)]
    raise InterventionError(
        f"{specs!r} is no intervention; make one with gl.knockout, gl.patch, gl.steer or gl.ablate"
    )


def compile_hooks(specs: Any, tokens: TokenMap, cfg: Any = None) -> CompiledHooks:
    """Make the hooks of all interventions for these tokens.

    Knockouts of one layer become one hook, so that a row left with nothing is seen over their union and
    their order cannot matter. Other edits at the same hook point act in the order of the list.

    Args:
        specs: an intervention, a list of them (nested lists are flattened), or None.
        tokens: who is where; with generated positions when the run decodes.
        cfg: the TransformerLens config of the model (``n_layers``, ``n_heads``, ``n_key_value_heads``).

    Raises:
        InterventionError: an intervention selects nothing or cannot act as written.
    """
    interventions = as_interventions(specs)
    span = Span(0, tokens.n_pos)
    knockouts = [spec for spec in interventions if plain_knockout(spec)]
    edits = list(knockout_edits(knockouts, tokens, cfg, span)) if knockouts else []
    for spec in interventions:
        if not plain_knockout(spec):
            edits.extend(spec.edits(tokens, cfg, span))
    return CompiledHooks(edits, span)
