"""Any function as an intervention: on the rows of a site, or on a hook point as TransformerLens calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.arguments import Heads, Layers, as_indices, shown
from gatelens.interventions.base import Intervention
from gatelens.interventions.hooks import Edit, HookFunction, Span
from gatelens.interventions.rows import Rows
from gatelens.interventions.sites import INNER_SITES, SITES, EditedPositions, EditSite, SiteEdit, check_site
from gatelens.tokens import SelectorLike, TokenMap

RowFunction: TypeAlias = Callable[[Float[Tensor, "n ..."], Rows], Float[Tensor, "n ..."]]


@dataclass(frozen=True, eq=False, repr=False)
class FunctionEdit(SiteEdit):
    """What :func:`edit` returns."""

    verb = "edit"

    function: RowFunction = field(kw_only=True)

    reach = SiteEdit.reach  # the function is given no row but those it edits

    def prepare(self, tokens: TokenMap, cfg: Any) -> tuple[TokenMap, Any]:
        return tokens, cfg

    def new_values(
        self, old: Float[Tensor, "n ..."], layer: int, prepared: tuple[TokenMap, Any], edited: EditedPositions
    ) -> Float[Tensor, "n ..."]:
        new = self.function(old.clone(), Rows.of(edited, layer, *prepared))
        if isinstance(new, Tensor) and new.is_complex():
            raise InterventionError(f"{self!r}: the function gave complex numbers; return real ones")
        if not isinstance(new, Tensor) or new.shape != old.shape:
            given = tuple(new.shape) if isinstance(new, Tensor) else f"a {type(new).__name__}"
            raise InterventionError(
                f"{self!r}: the function gave {given} for rows of shape {tuple(old.shape)}; return a tensor of that "
                "shape"
            )
        if not new.isfinite().all():
            raise InterventionError(
                f"{self!r}: the function gave numbers that are not finite in layer {layer}"
            )
        return new


def edit(
    function: RowFunction,
    at: SelectorLike,
    site: EditSite = "resid_pre",
    layers: Layers = None,
    heads: Heads = None,
    masks: Mapping[str, Any] | None = None,
) -> FunctionEdit:
    """Replace the activations at ``at`` by a function of them.

    The function is called in each layer with ``(rows, where)`` and returns rows of the same shape. ``rows``,
    Float[n, ...], are the selected activations of all examples, example by example: [n, d_model]; at sites with
    heads [n, head, d_head]; at ``pattern`` [n, head, key], the weights with which each row reads positions 0, 1, ….
    ``where`` (:class:`Rows`) says which they are, and which keys each can read. In a decoding step only the new row
    is there, and no key after it: a function that mixes rows, or counts keys, means something else there. Scaling
    keys, for instance (at ``k`` a family that norms its keys would undo it)::

        gl.edit(lambda keys, where: 2 * keys, at="image", site="rot_k", layers=[3])

    Args:
        function: ``(rows, where)`` to rows. It must not depend on earlier calls.
        at: selector of the positions; at ``pattern`` of the rows (queries).
        site: one of :data:`gatelens.interventions.SITES`, or ``rot_q``, ``rot_k``, ``pattern``, ``neuron``.
        layers: which blocks; None is all of them.
        heads: at sites with heads: only those, of all that the function returns.
        masks: pixel masks by the names that the selectors use in ``image.mask(name)``, as ``tokens.mask`` takes them.

    Raises:
        InterventionError: not a function of two arguments, or an unknown site. When run: it returns rows of another
            shape, or numbers that are not finite.

    Example:
        >>> turned = gl.edit(lambda rows, where: -rows, at="gate")
        >>> logits = model.run(inputs, turned)
        >>> model.tokenizer.decode(logits[0, -1].argmax())
        'penguin'
    """
    check_function(function, "function", "(rows, where)", None, None)
    check_site(site, (*SITES, *INNER_SITES))
    return FunctionEdit(
        at,
        site,
        function=function,
        layers=as_indices(layers, "layers"),
        heads=as_indices(heads, "heads"),
        masks=masks,
    )


def check_function(function: Any, word: str, takes: str, *args: Any, **kwargs: Any) -> None:
    """Raise :class:`InterventionError` for what cannot be called with these arguments, ``takes`` in words."""
    if not callable(function) or isinstance(function, type):
        raise InterventionError(f"{word}={shown(function)} is not a function of {takes}")
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:  # some functions written in C do not say what they take
        raise InterventionError(
            f"{word}={shown(function)} is not a function of {takes}: {error}; wrap it in one, lambda {takes[1:-1]}: …"
        ) from None


@dataclass(frozen=True, eq=False, repr=False)
class HookPairEdit(Intervention):
    """A plain TransformerLens pair, ``(hook name, function)``, as an intervention.

    The function gets the activation of the pass, ``(tensor, hook)``: the whole prompt, then each new row while
    decoding. Where it begins is unknown, so its run shares nothing with others.
    """

    verb = "hook"

    name: str
    function: HookFunction

    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
        return [Edit(self.name, self.function)]
