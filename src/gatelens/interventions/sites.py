"""Where an activation can be edited, by one name over all families, and the common body of such edits.

==============  ========================  ==============================================================
site            hook point of block l     what it is
==============  ========================  ==============================================================
``resid_pre``   ``hook_resid_pre``        residual stream entering the block
``resid_mid``   ``hook_resid_mid``        residual stream between attention and MLP
``resid_post``  ``hook_resid_post``       residual stream leaving the block
``attn_in``     ``attn.hook_in``          what the attention reads, after its norm if that comes before it
``attn_out``    ``hook_attn_out``         what the attention adds to the stream
``mlp_in``      ``mlp.hook_in``           what the MLP reads, after its norm if that comes before it
``mlp_out``     ``hook_mlp_out``          what the MLP adds to the stream
``q k v``       ``attn.hook_q`` …         [batch, pos, head, d_head], before any q/k norm and before RoPE;
                                          ``k`` and ``v`` have key-value heads (fewer under GQA)
``z``           ``attn.hook_z``           [batch, pos, head, d_head], each head's weighted values
==============  ========================  ==============================================================

``resid_mid`` is special: TransformerLens' bridge places that hook at the input of the second norm, past the
skip connection, so a plain edit there changes what the MLP reads and not the stream. Here the difference is
also added to the block's output, which makes it an edit of the stream itself.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.base import (
    Edit,
    HookFunction,
    Indices,
    Intervention,
    Reach,
    Span,
    config_number,
    first_position,
    resolve_indices,
    select,
)
from gatelens.selectors import SelectorLike

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap

Site: TypeAlias = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "q", "k", "v", "z"
]
SITES: tuple[str, ...] = get_args(Site)
_INSIDE = {"attn_in": "attn.hook_in", "mlp_in": "mlp.hook_in"}
_HEADS = {"q": "n_heads", "z": "n_heads", "k": "n_key_value_heads", "v": "n_key_value_heads"}


def check_site(site: str) -> None:
    """Raise :class:`InterventionError` for a site that is none of :data:`SITES`."""
    if site in ("scores", "pattern"):
        raise InterventionError(f"site={site!r} is edited with knockout(..., how='mask' or 'zero')")
    if site not in SITES:
        raise InterventionError(f"site={site!r} is unknown; the sites are {', '.join(SITES)}")


def hook_name(site: str, layer: int) -> str:
    """The TransformerLens hook point of a site, e.g. ``blocks.3.hook_resid_pre``."""
    check_site(site)
    if site in _HEADS:
        return f"blocks.{layer}.attn.hook_{site}"
    return f"blocks.{layer}.{_INSIDE.get(site, 'hook_' + site)}"


def has_heads(site: str) -> bool:
    """Whether the site's activations are [batch, pos, head, d_head]."""
    return site in _HEADS


def head_count(site: str, cfg: Any) -> int | None:
    """How many heads the site has in this model: query heads for q and z, key-value heads for k and v."""
    return config_number(cfg, _HEADS[site]) or config_number(cfg, "n_heads")


class Places:
    """The selected (example, position) pairs of a batch, row by row, and those of them a pass computes."""

    def __init__(self, mask: Bool[Tensor, "batch pos"], span: Span) -> None:
        self.mask, self.span = mask, span
        self.batch, self.pos = (index.contiguous() for index in mask.nonzero(as_tuple=True))
        self._held: tuple[tuple[int, int, torch.device], tuple[Tensor, Tensor, Tensor] | None] | None = None

    def here(
        self, device: torch.device
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]] | None:
        """(number in the whole selection, example, position within the pass) of each; None when there is
        none.

        Remembered for the current span, so that every layer of a pass shares one answer.
        """
        key = (self.span.offset, self.span.stop, device)
        if self._held is None or self._held[0] != key:
            inside = (self.pos >= self.span.offset) & (self.pos < self.span.stop)
            which = inside.nonzero()[:, 0]
            found = None
            if len(which):
                local = self.pos[which] - self.span.offset
                found = (which.to(device), self.batch[which].to(device), local.to(device))
            self._held = (key, found)
        return self._held[1]


def check_shape(tensor: Tensor, batch: int, span: Span, name: str) -> None:
    """The pass must be the one the hooks were made for; positions must never be guessed."""
    expected = (batch, span.stop - span.offset)
    if tuple(tensor.shape[:2]) != expected:
        raise InterventionError(
            f"{name} gave (batch, pos) = {tuple(tensor.shape[:2])} where the token map says {expected}; "
            "make the "
            "hooks from the TokenMap of these inputs, and decode with model.generate(inputs, interventions)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SiteEdit(Intervention):
    """An edit of the activations at selected positions of one site."""

    at: SelectorLike
    site: str = "resid_pre"
    heads: Indices = field(default=None, kw_only=True)

    def places(self, tokens: TokenMap) -> Bool[Tensor, "batch pos"]:
        """Which positions are edited."""
        return select(tokens, self.at, self)

    def bind(self, tokens: TokenMap, cfg: Any) -> Any:
        """Whatever the edit needs to know about this run, found once before it."""
        return None

    @abstractmethod
    def new_values(
        self,
        old: Float[Tensor, "n ..."],
        tensor: Float[Tensor, "batch pos ..."],
        layer: int,
        bound: Any,
        number: Int[Tensor, " n"],
        example: Int[Tensor, " n"],
        span: Span,
    ) -> Float[Tensor, "n ..."]:
        """The activations that take the place of ``old``, one a selected position."""

    def start(self, tensor: Tensor, layer: int, bound: Any, span: Span) -> None:
        """Called in each pass before the edit, also when no selected position is in the pass."""

    def reach(self, tokens: TokenMap, cfg: Any) -> Reach | None:
        layers = resolve_indices(self.layers, config_number(cfg, "n_layers"), "layers", self)
        return Reach(first_position(self.places(tokens)), min(layers))

    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
        mask = self.places(tokens)
        if not mask.any():
            raise InterventionError(f"{self!r}: at={self.at!r} selects no position in any example")
        layers = resolve_indices(self.layers, config_number(cfg, "n_layers"), "layers", self)
        heads: tuple[int, ...] | None = None
        if self.heads is not None:
            if not has_heads(self.site):
                raise InterventionError(f"{self!r}: {self.site} has no heads; heads= goes with q, k, v and z")
            heads = resolve_indices(self.heads, head_count(self.site, cfg), "heads", self)
        places, bound = Places(mask, span), self.bind(tokens, cfg)
        edits = []
        for layer in layers:
            name = hook_name(self.site, layer)
            if self.site == "resid_mid":
                differences: list[tuple[Tensor, Tensor, Tensor]] = []
                edits.append(Edit(name, self._function(name, layer, heads, places, bound, differences)))
                edits.append(Edit(hook_name("resid_post", layer), _carry(differences), first=True))
            else:
                edits.append(Edit(name, self._function(name, layer, heads, places, bound, None)))
        return edits

    def _function(
        self,
        name: str,
        layer: int,
        heads: tuple[int, ...] | None,
        places: Places,
        bound: Any,
        differences: list[tuple[Tensor, Tensor, Tensor]] | None,
    ) -> HookFunction:
        chosen = None if heads is None else torch.tensor(heads)

        def edit(tensor: Tensor, hook: Any = None) -> Tensor | None:
            check_shape(tensor, places.mask.shape[0], places.span, name)
            self.start(tensor, layer, bound, places.span)
            found = places.here(tensor.device)
            if found is None:
                return None
            number, example, local = found
            old = tensor[example, local]
            new = self.new_values(old, tensor, layer, bound, number, example, places.span)
            new = new.to(device=old.device, dtype=old.dtype)
            if chosen is not None:
                index = chosen.to(old.device)
                new = old.index_copy(1, index, new[:, index])
            if differences is not None:
                differences[:] = [(example, local, new - old)]
            # A copy: the same memory may be another hook point's activation, or lie in somebody's cache.
            return tensor.index_put((example, local), new)

        return edit


def _carry(differences: list[tuple[Tensor, Tensor, Tensor]]) -> HookFunction:
    """Adds to the block's output what an edit of ``resid_mid`` changed behind the skip connection."""

    def carry(tensor: Tensor, hook: Any = None) -> Tensor | None:
        if not differences:
            return None
        example, local, difference = differences.pop()
        return tensor.index_put((example, local), difference, accumulate=True)

    return carry


def as_site_vector(
    value: Float[Tensor, " ..."],
    old: Float[Tensor, "n ..."],
    example: Int[Tensor, " n"],
    batch: int,
    owner: object,
) -> Float[Tensor, "n ..."]:
    """Spread a vector over the edited positions.

    ``value`` is one activation (``[d_model]``; ``[n_heads, d_head]`` or ``[d_head]`` at a site with heads),
    or one for each example of the batch with the batch in front.
    """
    value = (
        value.detach().to(device=old.device, dtype=old.dtype) if not value.requires_grad else value.to(old)
    )
    per_position = tuple(old.shape[1:])
    if tuple(value.shape) in (per_position, per_position[-1:]):
        return value.expand(old.shape)
    if tuple(value.shape) in ((batch, *per_position), (1, *per_position)):
        return value.expand(batch, *per_position)[example]
    raise InterventionError(
        f"{owner!r}: a tensor of shape {tuple(value.shape)} does not fit this site, which holds "
        f"{per_position} a "
        f"position; give {per_position} or {(batch, *per_position)}"
    )
