"""Ablation: replace activations by nothing, by a mean, or by a given tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.base import Heads, Layers, Reach, Span, as_indices, prompt_only, select
from gatelens.interventions.patch import cached
from gatelens.interventions.sites import Site, SiteEdit, as_site_vector, check_site
from gatelens.selectors import SelectorLike

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap


@dataclass
class _Run:
    """What an ablation remembers during one run."""

    batch: int
    over: Bool[Tensor, "batch pos"] | None
    means: dict[int, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Ablate(SiteEdit):
    """What :func:`ablate` returns."""

    with_: Any = field(default="zero", kw_only=True)
    over: Any = field(default=None, kw_only=True)
    reference: Any = field(default=None, kw_only=True, repr=False)

    def bind(self, tokens: TokenMap, cfg: Any) -> _Run:
        if isinstance(self.with_, Tensor) or self.with_ != "mean":
            return _Run(tokens.batch_size, None, {})
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
        return _Run(tokens.batch_size, over, {})

    def reach(self, tokens: TokenMap, cfg: Any) -> Reach | None:
        found = super().reach(tokens, cfg)
        if (
            found is None
            or isinstance(self.with_, Tensor)
            or self.with_ != "mean"
            or self.reference is not None
        ):
            return found
        return Reach(0, found.layer, whole_batch=True)  # the mean is taken over positions of this very run

    def start(self, tensor: Tensor, layer: int, bound: _Run, span: Span) -> None:
        if bound.over is None or self.reference is not None or span.offset:
            return
        over = bound.over[:, : span.stop].to(tensor.device)
        # Prompt positions only, and kept for the decoding that follows: a mean that moved with every new
        # token would make cached decoding differ from running the grown prompt again.
        bound.means[layer] = tensor[over].mean(dim=0)

    def new_values(
        self,
        old: Float[Tensor, "n ..."],
        tensor: Float[Tensor, "batch pos ..."],
        layer: int,
        bound: _Run,
        number: Int[Tensor, " n"],
        example: Int[Tensor, " n"],
        span: Span,
    ) -> Float[Tensor, "n ..."]:
        if isinstance(self.with_, Tensor):
            return as_site_vector(self.with_, old, example, bound.batch, self)
        if bound.over is None:
            return old.new_zeros(old.shape)
        if layer not in bound.means:
            if self.reference is None:
                raise InterventionError(
                    f"{self!r}: the mean needs a pass that starts at position 0, this one starts at "
                    f"{span.offset}"
                )
            values = cached(self.reference, self.site, layer, self)
            there, position = bound.over.to(values.device).nonzero(as_tuple=True)
            if getattr(self.reference, "kept", None) is not None:
                position = self.reference.kept.find(there, position, self)
            bound.means[layer] = values[there, position].mean(dim=0)
        return as_site_vector(bound.means[layer], old, example, bound.batch, self)


def ablate(
    at: SelectorLike,
    site: Site = "resid_pre",
    layers: Layers = None,
    with_: Any = "zero",
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
    if not isinstance(with_, Tensor) and with_ not in ("zero", "mean"):
        raise InterventionError(f"with_={with_!r} is unknown; say 'zero', 'mean' or give a tensor")
    if (over is not None or reference is not None) and (isinstance(with_, Tensor) or with_ != "mean"):
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
