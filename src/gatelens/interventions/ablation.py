"""Ablation: replace activations by something that carries less: zero, a mean, all but a direction, an even pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.errors import InterventionError, shown
from gatelens.interventions.arguments import Heads, Layers, as_count, as_indices, check_vector
from gatelens.interventions.base import Reach, prompt_only, select
from gatelens.interventions.cached import cached_values, check_same_model
from gatelens.interventions.directions import Direction, as_direction, of_layer
from gatelens.interventions.hooks import Edit, Span
from gatelens.interventions.rows import Rows, random_pattern, uniform_pattern
from gatelens.interventions.sites import SITES, EditedPositions, EditSite, SiteEdit, check_site, spread
from gatelens.tokens import SelectorLike, TokenMap

Replacement: TypeAlias = Literal["zero", "mean", "projection", "uniform", "random"] | Tensor
_REPLACEMENTS = {
    "zero": "nothing",
    "mean": "a mean",
    "projection": "all but a direction",
    "uniform": "an even pattern",
    "random": "a random pattern",
}
_OF_PATTERN = ("zero", "uniform", "random")


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
    direction: Direction | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True, repr=False)

    @property
    def reads_others(self) -> bool:
        """A mean over the batch does."""
        return _is_mean(self.with_) and self.reference is None

    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
        check_same_model(self.reference, cfg, self, "compute the mean yourself and give it as with_=")
        return super().edits(tokens, cfg, span)

    def prepare(self, tokens: TokenMap, cfg: Any) -> _Means | tuple[TokenMap, Any] | None:
        """Where a mean is taken; for patterns, what says which keys a row reads."""
        if isinstance(self.with_, Tensor) or self.with_ in ("zero", "projection"):
            return None
        if self.with_ != "mean":
            return tokens, cfg
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
        if reach is None or not self.reads_others:
            return reach
        return Reach(0, reach.layer)  # the mean is taken over positions of this run

    def start(
        self, activation: Float[Tensor, "batch pos ..."], layer: int, prepared: Any, span: Span
    ) -> None:
        """Takes the mean of this run.

        Of prompt positions only, and kept for the decoding that follows: a mean that moved with every new
        token would make cached decoding differ from running the grown prompt again.
        """
        if not isinstance(prepared, _Means) or self.reference is not None or span.offset:
            return
        over = prepared.over[:, : span.stop].to(activation.device)
        prepared.by_layer[layer] = activation[over].mean(dim=0)

    def new_values(
        self, old: Float[Tensor, "n ..."], layer: int, prepared: Any, edited: EditedPositions
    ) -> Float[Tensor, "n ..."]:
        if isinstance(self.with_, Tensor):
            return spread(self.with_, old, edited, self)
        if self.with_ == "zero":
            return old.new_zeros(old.shape)
        if self.with_ == "projection":
            assert self.direction is not None
            unit = spread(of_layer(self.direction, layer, self).float(), old.float(), edited, self)
            return old - ((old.float() * unit).sum(dim=-1, keepdim=True) * unit).to(old.dtype)
        if self.with_ in ("uniform", "random"):
            rows, n_heads = Rows.of(edited, layer, *prepared), old.shape[1]
            return (
                uniform_pattern(rows, n_heads)
                if self.with_ == "uniform"
                else random_pattern(rows, n_heads, self.seed)
            )
        return self._mean(old, layer, prepared, edited)

    def _mean(
        self, old: Float[Tensor, "n ..."], layer: int, prepared: _Means, edited: EditedPositions
    ) -> Float[Tensor, "n ..."]:
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
    site: EditSite = "resid_pre",
    layers: Layers = None,
    with_: Replacement = "zero",
    heads: Heads = None,
    over: SelectorLike | None = None,
    reference: Any = None,
    direction: Direction | None = None,
    seed: int = 0,
    masks: Mapping[str, Any] | None = None,
) -> Ablate:
    """Replace the activations at ``at``.

    ``with_="mean"`` is one vector per layer (one per head at ``q k v z``): the unweighted mean of the activation over
    all (example, position) pairs that ``over`` selects among the prompt positions of the batch. It is taken in this
    run, after edits of earlier layers and of earlier interventions; while decoding, that of the prompt pass is kept.
    A sweep over data needs ``reference``. ``"projection"`` removes the component along ``direction``, of each head.

    At ``site="pattern"`` rows of attention are replaced, unaffected by knockouts: ``"zero"`` (the row reads nothing),
    ``"uniform"`` (the same weight for every key it can read) or ``"random"`` (drawn evenly from all weights that sum to
    one over those keys, by ``seed``, layer, example and row: the same in every batch and while decoding).

    Args:
        at: selector of the positions to overwrite; at ``pattern`` of the rows (queries).
        site: one of :data:`gatelens.interventions.SITES`, or ``pattern``.
        layers: block numbers; None is all blocks, or those of a dict of directions.
        with_: one of the words above, ``"zero"``, or a tensor: ``[d_model]`` or ``[batch, d_model]``; at ``q k v
            z`` ``[d_head]``, ``[n_heads, d_head]`` or ``[batch, n_heads, d_head]``.
        heads: only these heads of each layer, at sites with heads; for others in each layer give one ``ablate`` each.
        over: for ``"mean"``: selector of the positions that are averaged (of ``reference``); None is ``at``.
        reference: for ``"mean"``: the cache of other prompts that is averaged; None is this run.
        seed: for ``"random"``: what the pattern is drawn by.
        direction: for ``"projection"``: as in :func:`gatelens.steer`, of any length but 0.
        masks: pixel masks by the names that the selectors use in ``image.mask(name)``, as ``tokens.mask`` takes them.

    Raises:
        InterventionError: unknown site or ``with_``, or an argument that does not go with it. When run: a mean over
            nothing, or over the one position it would replace; a tensor that does not fit the site.

    Example:
        >>> logits = model.run(inputs, gl.ablate("gate", with_="zero"))
        >>> model.tokenizer.decode(logits[0, -1].argmax())
        'penguin'
    """
    _check_together(site, with_, over, reference, direction, seed)
    if direction is not None:
        direction, layers = as_direction(direction, layers, normalize=True)
    return Ablate(
        at,
        site,
        with_=with_,
        over=over,
        reference=reference,
        direction=direction,
        seed=seed,
        layers=as_indices(layers, "layers"),
        heads=as_indices(heads, "heads"),
        masks=masks,
    )


def _check_together(
    site: EditSite, with_: Replacement, over: object, reference: Any, direction: object, seed: int
) -> None:
    """The arguments of :func:`ablate` against each other."""
    if isinstance(with_, Tensor):
        check_vector(with_, "with_")
    elif not isinstance(with_, str) or with_ not in _REPLACEMENTS:
        known = ", ".join(f"{name!r} ({meaning})" for name, meaning in _REPLACEMENTS.items())
        raise InterventionError(f"with_={shown(with_)} is unknown; say {known} or give a tensor")
    word = None if isinstance(with_, Tensor) else with_
    check_site(site, (*SITES, "pattern") if word in _OF_PATTERN else SITES)
    if word in ("uniform", "random") and site != "pattern":
        raise InterventionError(f"with_={word!r} goes with site='pattern', not with {site!r}")
    if (over is not None or reference is not None) and word != "mean":
        raise InterventionError("over= and reference= go with with_='mean'")
    if (direction is not None) != (word == "projection"):
        raise InterventionError("direction= and with_='projection' go together: give both or neither")
    as_count(seed, "seed", least=0)
    if reference is not None and getattr(reference, "tokens", None) is None:
        raise InterventionError(
            "reference= needs a cache that knows its tokens; take it from model.run_with_cache(inputs)"
        )
