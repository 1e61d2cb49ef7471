"""Hook functions of one run, and the positions they act on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from gatelens.errors import InterventionError

HookFunction: TypeAlias = Callable[..., Tensor | None]
HookPair: TypeAlias = tuple[str, HookFunction]


@dataclass
class Span:
    """The absolute positions ``offset … stop - 1`` a forward pass is computing right now.

    A pass over the whole prompt is ``(0, n_pos)``; a decoding step on top of a KV cache is ``(K - 1, K)``.
    Hooks of one compiled object share one span, which the code that runs the passes moves.

    Example:
        >>> prompt, step = gl.interventions.Span(0, 70), gl.interventions.Span(70, 71)
        >>> prompt.stop - prompt.offset, step.stop - step.offset  # positions of each pass
        (70, 1)
    """

    offset: int
    stop: int


@dataclass(frozen=True, eq=False)
class Edit:
    """One hook function, and whether it acts before all others at its hook point, whatever the order of the list.

    Some hook points serve two sites, one of which the model computes before the other.

    Example:
        >>> edit = gl.interventions.Edit("blocks.0.hook_resid_post", lambda tensor, hook: tensor * 2)
        >>> edit.function(torch.ones(2), None)
        tensor([2., 2.])
    """

    name: str
    function: HookFunction
    first: bool = False


class EditHook:
    """The function of an edit, as TransformerLens calls it.

    Raises:
        InterventionError: it should act first at its hook point, and hooks compiled apart from it stand before it.
    """

    def __init__(self, edit: Edit, fired: set[str]) -> None:
        self.edit, self.fired = edit, fired

    def __call__(self, tensor: Tensor, hook: Any = None) -> Tensor | None:
        self.fired.add(self.edit.name)
        if self.edit.first:
            self._check_first(hook)
        return self.edit.function(tensor, hook=hook)

    def _check_first(self, hook: Any) -> None:
        point = getattr(
            hook, "_target", hook
        )  # under another of its names TransformerLens hands on a stand-in
        for handle in getattr(point, "fwd_hooks", ()):
            other = getattr(handle, "user_hook", None)
            if other is self:
                return
            if isinstance(other, EditHook) and not other.edit.first:
                raise InterventionError(
                    f"the hooks of several interventions meet at {self.edit.name!r} in an order that the model "
                    "does not compute in; make them together: gl.hooks([one, other], tokens, model.cfg)"
                )


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
        self.pairs: list[tuple[str, EditHook]] = [(e.name, EditHook(e, self.fired)) for e in ordered]

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


def check_pass(name: str, axes: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse a pass other than the one the hooks were made for; positions must never be guessed.

    ``axes`` says what the numbers of ``shape`` (from the hook point) and ``expected`` (from the token map) count.

    Raises:
        InterventionError: the two differ.
    """
    if shape != expected:
        raise InterventionError(
            f"{name} gave ({axes}) = {shape} where the token map says {expected}; make the hooks from the "
            "TokenMap of these inputs, and decode with model.generate(inputs, interventions)"
        )
