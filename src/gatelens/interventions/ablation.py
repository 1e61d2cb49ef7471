"""Ablation: replace activations by nothing, by a mean, or by a given tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.arguments import Heads, Layers, as_indices, check_vector, shown
from gatelens.interventions.base import Reach, prompt_only, select
from gatelens.interventions.cached import cached_values, check_same_model
from gatelens.interventions.hooks import Edit, Span
from gatelens.interventions.sites import EditedPositions, Site, SiteEdit, check_site, spread
from gatelens.tokens import SelectorLike, TokenMap

Replacement: TypeAlias = Literal["zero", "mean"] | Tensor


@dataclass
class _Means:
    """What a mean is taken over (a mask in its own prompts), and the means of one run by layer."""

    over: Bool[Tensor, "batch pos"]
    by_layer: dict[int, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(SiteEdit):
    """What :func:`ablate` returns."""

    with_: Replacement = field(default="zero", kw_only=True)
    over: SelectorLike | None = field(default=None, kw_only=True)
    reference: Any = field(default=None, kw_only=True, repr=False)

    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
        check_same_model(self.reference, cfg, self, "take the mean of it yourself and give it as with_=")
        return super().edits(tokens, cfg, span)

    def prepare(self, tokens: TokenMap) -> _Means | None:
        """Where the mean is taken; None without one."""
        if not _is_mean(self.with_):
            return None
        home = tokens if self.reference is None else self.reference.tokens
        selector = self.at if self.over is None else self.over
        over = prompt_only(home, select(home, selector, self))
        if not over.any():
            raise InterventionError(
                f"{self!r}: over={selector!r} selects no prompt position to take the mean of"
            )
        if self.reference is None and int(over.sum()) == 1 and bool((over & self.places(tokens)).any()):
            raise InterventionError(
                f"{self!r}: the mean over a single position is that position, so nothing would change; give "
                "a batch, over= more positions, or reference= the cache of other inputs"
            )
        return _Means(over, {})

    def reach(self, tokens: TokenMap, cfg: Any) -> Reach | None:
        reach = super().reach(tokens, cfg)
        if reach is None or not _is_mean(self.with_) or self.reference is not None:
            return reach
        return Reach(0, reach.layer)  # the mean is taken over positions of this very run

    def start(
        self, activation: Float[Tensor, "batch pos ..."], layer: int, prepared: _Means | None, span: Span
    ) -> None:
        """Takes the mean of this run.

        Of prompt positions only, and kept for the decoding that follows: a mean that moved with every new
        token would make cached decoding differ from running the grown prompt again.
        """
        if prepared is None or self.reference is not None or span.offset:
            return
        over = prepared.over[:, : span.stop].to(activation.device)
        prepared.by_layer[layer] = activation[over].mean(dim=0)

    def new_values(
        self, old: Float[Tensor, "n ..."], layer: int, prepared: _Means | None, edited: EditedPositions
    ) -> Float[Tensor, "n ..."]:
        if isinstance(self.with_, Tensor):
            return spread(self.with_, old, edited, self)
        if prepared is None:
            return old.new_zeros(old.shape)
        if layer not in prepared.by_layer:
            if self.reference is None:
                raise InterventionError(
                    f"{self!r}: the mean needs a pass that starts at position 0, this one starts at "
                    f"{edited.span.offset}"
                )
            example, position = prepared.over.nonzero(as_tuple=True)
            values = cached_values(self.reference, self.site, layer, example, position, self)
            prepared.by_layer[layer] = values.mean(dim=0)
        return spread(prepared.by_layer[layer], old, edited, self)


def _is_mean(with_: Replacement) -> bool:
    return not isinstance(with_, Tensor) and with_ == "mean"


def ablate(
    at: SelectorLike,
    site: Site = "resid_pre",
    layers: Layers = None,
    with_: Replacement = "zero",
    heads: Heads = None,
    over: SelectorLike | None = None,
    reference: Any = None,
) -> Ablate:
    """Replace the activations at ``at``.

    ``with_="mean"`` is one vector a layer (one a head at ``q k v z``): the unweighted mean of this site's
    activation over all (example, position) pairs that ``over`` selects among the prompt positions of the
    whole batch, each pair counting once. It is taken in this very run, after the edits of earlier layers and
    of interventions standing earlier in the list; while decoding, the mean of the prompt pass is kept. With
    ``reference`` it is taken from that cache instead, ``over`` being read in the cache's own prompts.

    Args:
        at: selector of the positions to overwrite.
        site: see :mod:`gatelens.interventions.sites`.
        layers: which blocks; None is all of them.
        with_: ``"zero"``, ``"mean"``, or a tensor: ``[d_model]`` or ``[batch, d_model]``; at ``q k v z``
            ``[d_head]``, ``[n_heads, d_head]`` or ``[batch, n_heads, d_head]``.
        heads: at ``q``, ``z`` (query heads), ``k``, ``v`` (key-value heads): only those.
        over: for ``"mean"``: selector of what is averaged; None is the same as ``at``.
        reference: for ``"mean"``: a cache from ``model.run_with_cache``.

    Raises:
        InterventionError: unknown site or ``with_``; ``over`` or ``reference`` without ``"mean"``. When run:
            a mean over nothing, or over the one position it would replace.
    """
    check_site(site)
    if isinstance(with_, Tensor):
        check_vector(with_, "with_")
    elif not isinstance(with_, str) or with_ not in ("zero", "mean"):
        raise InterventionError(f"with_={shown(with_)} is unknown; say 'zero', 'mean' or give a tensor")
    if (over is not None or reference is not None) and not _is_mean(with_):
        raise InterventionError("over= and reference= go with with_='mean'")
    if reference is not None and getattr(reference, "tokens", None) is None:
        raise InterventionError(
            "reference= needs a cache that knows its tokens; take it from model.run_with_cache(inputs)"
        )
    return Ablate(
        at,
        site,
        with_=with_,
        over=over,
        reference=reference,
        layers=as_indices(layers, "layers"),
        heads=as_indices(heads, "heads"),
    )
