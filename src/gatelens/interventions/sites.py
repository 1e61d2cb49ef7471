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

:func:`gatelens.patch`, ``steer``, ``ablate`` and ``edit`` all take these. There are four more inside attention and
MLP, for :func:`gatelens.edit`, and ``pattern`` and ``neuron`` for some of the others:

===============  ========================  ==============================================================
``rot_q rot_k``  ``attn.hook_rot_q`` …     queries and keys as they are multiplied, after norms and rotation
``pattern``      ``attn.hook_pattern``     for each position the weights of its row, [head, key], keys 0 to the
                                           last position of the pass; knockouts act before an edit of it
``neuron``       ``mlp.hook_post``         [batch, pos, d_mlp], the hidden units of the MLP, as its last layer reads
                                           them; ``heads=`` chooses some; for patches and edits
===============  ========================  ==============================================================

``resid_mid`` is special: TransformerLens' bridge places that hook at the input of the second norm, past the
skip connection, so a plain edit there changes what the MLP reads and not the stream. Here the difference is
also added to the block's output, which makes it an edit of the stream itself. In blocks that norm after the MLP
that hook is the MLP's input too; an edit of ``resid_mid`` acts before one of ``mlp_in`` in every order of a list.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import InterventionError, shown
from gatelens.interventions.arguments import Indices, as_count
from gatelens.interventions.base import (
    Intervention,
    Reach,
    check_selected,
    config_number,
    first_position,
    resolve_indices,
    select,
)
from gatelens.interventions.hooks import Edit, HookFunction, Span, check_pass
from gatelens.tokens import SelectorLike, TokenMap

Site: TypeAlias = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "q", "k", "v", "z"
]
"""The type of ``site=``: one of :data:`SITES`. An activation is [batch, pos, d_model], or as the table says."""
EditSite: TypeAlias = Site | Literal["rot_q", "rot_k", "pattern", "neuron"]
SITES: tuple[str, ...] = get_args(Site)
"""The sites that ``patch``, ``steer``, ``ablate`` and ``edit`` all take as ``site=``: those of the first table above.

Those of the second table (``rot_q``, ``rot_k``, ``pattern``, ``neuron``) are for some of these verbs only."""
INNER_SITES = ("rot_q", "rot_k", "pattern", "neuron")
_INSIDE = {"attn_in": "attn.hook_in", "mlp_in": "mlp.hook_in", "neuron": "mlp.hook_post"}
# the edited (example, position) pairs of a pass, and what was added to each
Change: TypeAlias = tuple[tuple[Tensor, Tensor], Tensor]
_HEADS = {"q": "n_heads", "z": "n_heads", "k": "n_key_value_heads", "v": "n_key_value_heads"}
_HEADS |= {"rot_q": "n_heads", "rot_k": "n_key_value_heads", "pattern": "n_heads", "neuron": "d_mlp"}


def check_site(site: str, known: Sequence[str] = SITES) -> None:
    """Raise :class:`InterventionError` for a site that is none of those ``known`` to the verb."""
    if isinstance(site, str) and site in known:
        return
    if isinstance(site, str) and site == "neuron":
        raise InterventionError("site='neuron' is edited with patch or edit; write one of these")
    if isinstance(site, str) and site in (*INNER_SITES, "scores"):
        raise InterventionError(
            f"site={site!r} is edited with knockout(..., how='mask' or 'zero'), with ablate(site='pattern', "
            "with_='uniform', 'random' or 'zero'), or with edit(function, site=...)"
        )
    raise InterventionError(f"site={shown(site)} is unknown; the sites are {', '.join(known)}")


def hook_name(site: str, layer: int) -> str:
    """The TransformerLens hook point of a site, e.g. ``blocks.3.hook_resid_pre``.

    Args:
        site: one of :data:`SITES`, or ``rot_q``, ``rot_k``, ``pattern``, ``neuron``.
        layer: the block, from 0.

    Example:
        >>> gl.interventions.hook_name("resid_pre", 3), gl.interventions.hook_name("q", 0)
        ('blocks.3.hook_resid_pre', 'blocks.0.attn.hook_q')
    """
    check_site(site, (*SITES, *INNER_SITES))
    layer = as_count(layer, "layer", least=0)
    if site in _HEADS and site not in _INSIDE:
        return f"blocks.{layer}.attn.hook_{site}"
    return f"blocks.{layer}.{_INSIDE.get(site, 'hook_' + site)}"


def has_heads(site: str) -> bool:
    """Whether the site holds an activation for each head."""
    return site in _HEADS


def head_count(site: str, cfg: Any) -> int | None:
    """How many heads the site has in this model: key-value heads for k, v and rot_k, else query heads."""
    return config_number(cfg, _HEADS[site]) or config_number(cfg, "n_heads")


class EditedPositions(NamedTuple):
    """The selected (example, position) pairs that a pass computes.

    ``number`` counts them among all that are selected, row by row; ``position`` is within the pass.
    """

    number: Int[Tensor, " n"]
    example: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    batch_size: int
    span: Span

    @property
    def absolute(self) -> Int[Tensor, " n"]:
        """The positions counted from the first of the prompt, padding included."""
        return self.position + self.span.offset


class SelectedPositions:
    """The positions a selector names in a batch, computed once and narrowed to each pass."""

    def __init__(self, mask: Bool[Tensor, "batch pos"], span: Span) -> None:
        self.batch_size, self.span = mask.shape[0], span
        self.example, self.position = (index.contiguous() for index in mask.nonzero(as_tuple=True))
        self._in_pass: tuple[tuple[int, int, torch.device], EditedPositions | None] | None = None

    def in_pass(self, device: torch.device) -> EditedPositions | None:
        """Those the current pass computes, None without any; every layer of a pass shares one answer."""
        span = self.span
        key = (span.offset, span.stop, device)
        if self._in_pass is None or self._in_pass[0] != key:
            number = ((self.position >= span.offset) & (self.position < span.stop)).nonzero()[:, 0]
            edited = None
            if len(number):
                edited = EditedPositions(
                    number.to(device),
                    self.example[number].to(device),
                    (self.position[number] - span.offset).to(device),
                    self.batch_size,
                    span,
                )
            self._in_pass = (key, edited)
        return self._in_pass[1]


@dataclass(frozen=True, eq=False, repr=False)
class SiteEdit(Intervention):
    """An edit of the activations at selected positions of one site."""

    at: SelectorLike
    site: str = "resid_pre"
    heads: Indices = field(default=None, kw_only=True)

    def places(self, tokens: TokenMap) -> Bool[Tensor, "batch pos"]:
        """Which positions are edited."""
        return select(tokens, self.at, self)

    def prepare(self, tokens: TokenMap, cfg: Any) -> Any:
        """What the edit has to know about a run, computed once before it and given to :meth:`new_values`."""
        return None

    @abstractmethod
    def new_values(
        self, old: Float[Tensor, "n ..."], layer: int, prepared: Any, edited: EditedPositions
    ) -> Float[Tensor, "n ..."]:
        """The activations that take the place of ``old``, one a selected position."""

    def start(
        self, activation: Float[Tensor, "batch pos ..."], layer: int, prepared: Any, span: Span
    ) -> None:
        """Called in each pass before the edit, also when no selected position is in the pass."""

    def reach(self, tokens: TokenMap, cfg: Any) -> Reach | None:
        return Reach(first_position(self.places(tokens)), min(self.layer_numbers(cfg)))

    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
        mask = self.places(tokens)
        check_selected(tokens, mask, "at", self.at, self)
        layers = self.layer_numbers(cfg)
        heads: tuple[int, ...] | None = None
        if self.heads is not None:
            if not has_heads(self.site):
                names = ", ".join(site for site in (*SITES, *INNER_SITES) if has_heads(site))
                raise InterventionError(f"{self!r}: {self.site} has no heads; heads= goes with {names}")
            heads = resolve_indices(self.heads, head_count(self.site, cfg), "heads", self)
        selected, prepared = SelectedPositions(mask, span), self.prepare(tokens, cfg)
        edits = []
        for layer in layers:
            changes: list[Change] | None = [] if self.site == "resid_mid" else None
            function = self._function(layer, heads, selected, prepared, changes)
            # where norms come after the MLP, mlp_in has the hook point of resid_mid, which comes before it
            edits.append(Edit(hook_name(self.site, layer), function, first=changes is not None))
            if changes is not None:
                edits.append(Edit(hook_name("resid_post", layer), _add_to_output(changes), first=True))
        return edits

    def _function(
        self,
        layer: int,
        heads: tuple[int, ...] | None,
        selected: SelectedPositions,
        prepared: Any,
        changes: list[Change] | None,
    ) -> HookFunction:
        name, span = hook_name(self.site, layer), selected.span
        chosen = None if heads is None else torch.tensor(heads)
        heads_first = self.site == "pattern"

        def edit(tensor: Tensor, hook: Any = None) -> Tensor | None:
            tensor = tensor.transpose(1, 2) if heads_first else tensor
            _check_pass(name, self.site, tuple(tensor.shape), selected.batch_size, span)
            self.start(tensor, layer, prepared, span)
            edited = selected.in_pass(tensor.device)
            if edited is None:
                return None
            where = (edited.example, edited.position)
            old = tensor[where]
            new = self.new_values(old, layer, prepared, edited).to(device=old.device, dtype=old.dtype)
            if chosen is not None:
                index = chosen.to(old.device)
                new = old.index_copy(1, index, new[:, index])
            if changes is not None:
                changes[:] = [(where, new - old)]
            # A copy: the same memory may be another hook point's activation, or lie in a cache.
            out = tensor.index_put(where, new)
            return out.transpose(1, 2) if heads_first else out

        return edit


def _check_pass(name: str, site: str, shape: tuple[int, ...], batch_size: int, span: Span) -> None:
    """Refuse a pass other than the one of ``span``; ``shape`` has batch and positions first."""
    n_rows = span.stop - span.offset
    if site == "pattern":
        check_pass(name, "batch, query, key", (*shape[:2], shape[3]), (batch_size, n_rows, span.stop))
    else:
        check_pass(name, "batch, pos", shape[:2], (batch_size, n_rows))


def _add_to_output(changes: list[Change]) -> HookFunction:
    """Adds to the block's output what an edit of ``resid_mid`` changed, which the skip connection passes by."""

    def add(tensor: Tensor, hook: Any = None) -> Tensor | None:
        if not changes:
            return None
        where, change = changes.pop()
        return tensor.index_put(where, change, accumulate=True)

    return add


def spread(
    value: Float[Tensor, " ..."], old: Float[Tensor, "n ..."], edited: EditedPositions, owner: object
) -> Float[Tensor, "n ..."]:
    """A vector in the place of each edited activation ``old``.

    ``value`` is one activation (``[d_model]``; ``[n_heads, d_head]`` or ``[d_head]`` at a site with heads), or
    one for each example of the batch with the batch in front.

    Raises:
        InterventionError: its shape does not fit the site.
    """
    value = value.to(device=old.device, dtype=old.dtype)
    shape, per_position, batch = tuple(value.shape), tuple(old.shape[1:]), edited.batch_size
    if shape in (per_position, per_position[-1:]):
        return value.expand(old.shape)
    if shape in ((batch, *per_position), (1, *per_position)):
        return value.expand(batch, *per_position)[edited.example]
    raise InterventionError(
        f"{owner!r}: a tensor of shape {shape} does not fit this site, which holds {per_position} a "
        f"position; give {per_position} or {(batch, *per_position)}"
    )
