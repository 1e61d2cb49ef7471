"""Activation patching: replace activations by those of another run.

Positions are paired by their role, not by their number: the k-th position a selector names in this
prompt takes the activation of the k-th position it names in the other, so prompts of different length can be
patched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.errors import InterventionError, shown
from gatelens.interventions.arguments import Heads, Layers, as_count, as_flag, as_indices
from gatelens.interventions.base import prompt_only, select
from gatelens.interventions.cached import cached_values, check_same_model
from gatelens.interventions.hooks import Edit, Span
from gatelens.interventions.sites import SITES, EditedPositions, Site, SiteEdit, check_site
from gatelens.tokens import Role, SelectorLike, TokenMap

PATCH_SITES = (*SITES, "pattern", "neuron")


class PatchPair(NamedTuple):
    """One position and the position it is patched from."""

    example: int
    position: int
    string: str
    source_example: int
    source_position: int
    source_string: str


class PatchPairs(list[PatchPair]):
    """A list of :class:`PatchPair` that prints as a table."""

    def __str__(self) -> str:
        rows = [
            PatchPair._fields,
            *[tuple(x if isinstance(x, int) else repr(x) for x in pair) for pair in self],
        ]
        text = [[str(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in text) for i in range(len(PatchPair._fields))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in text
        )


@dataclass(frozen=True, eq=False, repr=False)
class Patch(SiteEdit):
    """What :func:`patch` returns.

    Example:
        >>> cache = model.run_with_cache(inputs)[1]
        >>> print(gl.patch(cache, at="last", site="resid_pre", layers=[2]).pairs(inputs.tokens))
        example  position  string  source_example  source_position  source_string
        0        69        'a'     0               69               'a'
    """

    cache: Any = field(default=None, kw_only=True, repr=False)
    source: SelectorLike | None = field(default=None, kw_only=True)
    broadcast: bool = field(default=False, kw_only=True, repr=False)
    other_model: bool = field(default=False, kw_only=True, repr=False)
    source_layer: int | None = field(default=None, kw_only=True)

    reach = SiteEdit.reach  # what it writes does not depend on this run

    def places(self, tokens: TokenMap) -> Bool[Tensor, "batch pos"]:
        return prompt_only(tokens, select(tokens, self.at, self))

    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
        if not self.other_model:
            fix = "take it from this one's run_with_cache, or say other_model=True if this is intended"
            check_same_model(self.cache, cfg, self, fix)
        return super().edits(tokens, cfg, span)

    def pairs(self, tokens: TokenMap) -> PatchPairs:
        """Who is patched from whom, in the order it is done; prints as a table.

        Raises:
            InterventionError: the two selections do not pair up.
        """
        origin: TokenMap = self.cache.tokens
        source = self.at if self.source is None else self.source
        there = prompt_only(origin, select(origin, source, self))
        here = self.places(tokens)
        if origin.batch_size not in (1, tokens.batch_size):
            raise InterventionError(
                f"{self!r}: the cache holds {origin.batch_size} examples and the inputs "
                f"{tokens.batch_size}; use equal batches, or a cache of one example for all"
            )
        pairs = PatchPairs()
        for example in range(tokens.batch_size):
            other = example if origin.batch_size > 1 else 0
            targets = here[example].nonzero()[:, 0].tolist()
            sources = there[other].nonzero()[:, 0].tolist()
            if self.broadcast and len(sources) == 1:
                sources = sources * len(targets)
            if len(targets) != len(sources):
                hint = (
                    "pass broadcast=True to use it for all"
                    if len(sources) == 1
                    else "give source= a selector that names as many"
                )
                raise InterventionError(
                    f"{self!r}: in example {example} at={self.at!r} selects {len(targets)} positions and "
                    f"source={shown(source)} selects {len(sources)} in the cached prompt; {hint}"
                )
            pairs.extend(
                PatchPair(example, p, tokens.strings[example][p], other, s, origin.strings[other][s])
                for p, s in zip(targets, sources, strict=True)
            )
        return pairs

    def prepare(self, tokens: TokenMap, cfg: Any) -> tuple[Tensor, Tensor]:
        """(example, position) in the cache's prompts, for each pair."""
        pairs = self.pairs(tokens)
        if self.site == "pattern":
            self._check_keys(tokens, pairs)
        return (
            torch.tensor([pair.source_example for pair in pairs]),
            torch.tensor([pair.source_position for pair in pairs]),
        )

    def _check_keys(self, tokens: TokenMap, pairs: PatchPairs) -> None:
        """A row of a pattern has a weight for each position: both prompts must have the same ones."""
        for here, there in {(pair.example, pair.source_example) for pair in pairs}:
            mine, theirs = tokens.roles[here], self.cache.tokens.roles[there]
            mine, theirs = (r[: t.prompt_length] for r, t in ((mine, tokens), (theirs, self.cache.tokens)))
            if mine.shape != theirs.shape or not torch.equal(mine == Role.PAD, theirs == Role.PAD):
                lengths = [int((roles != Role.PAD).sum()) for roles in (mine, theirs)]
                raise InterventionError(
                    f"{self!r}: a row of a pattern weighs every position, and the prompts have {lengths[0]} and "
                    f"{lengths[1]} of {len(mine)} and {len(theirs)}: take prompts of one length and padding"
                )

    def new_values(
        self,
        old: Float[Tensor, "n ..."],
        layer: int,
        prepared: tuple[Tensor, Tensor],
        edited: EditedPositions,
    ) -> Float[Tensor, "n ..."]:
        example, position = (index.to(edited.number.device)[edited.number] for index in prepared)
        there = layer if self.source_layer is None else self.source_layer
        values = cached_values(self.cache, self.site, there, example, position, self)
        if self.site == "pattern":  # rows of the prompt do not see what is generated after them
            values = torch.nn.functional.pad(values, (0, max(0, old.shape[-1] - values.shape[-1])))
        if values.shape != old.shape:
            raise InterventionError(
                f"{self!r}: the cached activation holds {tuple(values.shape[1:])} a position, this model's "
                f"{tuple(old.shape[1:])}; patch between models of one width"
            )
        return values


def patch(
    cache: Any,
    at: SelectorLike,
    site: Site | Literal["pattern", "neuron"] = "resid_pre",
    layers: Layers = None,
    heads: Heads = None,
    source: SelectorLike | None = None,
    broadcast: bool = False,
    other_model: bool = False,
    source_layer: int | None = None,
    masks: Mapping[str, Any] | None = None,
) -> Patch:
    """Replace activations at ``at`` by those of another run, position for position by their place in the
    selection.

    Only prompt positions are paired; generated ones are never patched.

    Args:
        cache: from ``model.run_with_cache(other_inputs)``; of one example (used for every example of the
            batch) or of as many as the batch (row by row). It needs the site's hook points in its
            ``names_filter``. Or rows of a store: ``store.prompts(model, "e3")``.
        at: selector of the positions to overwrite.
        site: one of :data:`gatelens.interventions.SITES`, ``pattern`` or ``neuron``; at ``pattern`` rows of attention
            are patched (queries), between prompts of one length.
        layers: which blocks; None is all of them.
        heads: at ``q``, ``z``, ``pattern`` (query heads), ``k``, ``v`` (key-value heads), ``neuron`` (hidden units):
            only those.
        source: selector in the cached prompt; None is the same as ``at``.
        broadcast: let a single source position serve every position of ``at``.
        other_model: let the cache be of another model, whose activations have the same shapes.
        source_layer: the layer of the cache that is read; None is the layer that is written.
        masks: pixel masks by the names that the selectors use in ``image.mask(name)``, as ``tokens.mask`` takes them.

    Raises:
        InterventionError: unknown site; a cache without ``.tokens``. When run: selections of different size,
            an activation the cache does not hold, or a cache of another model without ``other_model``.

    Example:
        >>> pair = pairs[0]
        >>> corrupt = model.prepare(pair.corrupt.image, pair.corrupt.prompt)
        >>> logits, cache = model.run_with_cache(corrupt)
        >>> patched = model.run(inputs, gl.patch(cache, at="gate", layers=[2]))
        >>> pair.clean.label, model.tokenizer.decode(patched[0, -1].argmax())
        ('sunflower', 'panda')
    """
    check_site(site, PATCH_SITES)
    if source_layer is not None:
        source_layer = as_count(source_layer, "source_layer", least=0)
    return Patch(
        at,
        site,
        cache=cache,
        source=_source(cache, source),
        broadcast=as_flag(broadcast, "broadcast"),
        other_model=as_flag(other_model, "other_model"),
        source_layer=source_layer,
        layers=as_indices(layers, "layers"),
        heads=as_indices(heads, "heads"),
        masks=masks,
    )


def _source(cache: Any, source: SelectorLike | None) -> SelectorLike | None:
    """Which positions of the cache are read; None is those that are written. Rows of a store are all meant."""
    if getattr(cache, "tokens", None) is None:
        raise InterventionError(
            f"patch needs a cache that knows its tokens, this {type(cache).__name__} has no .tokens; take "
            "it from model.run_with_cache(inputs), or from a store by store.prompts(model, example)"
        )
    kept = getattr(cache, "selected", None)
    if kept is not None and source is not None:
        raise InterventionError(
            f"source={shown(source)} goes with a cache of whole prompts; choose rows of a store by "
            "store.prompts(model, example, where=...)"
        )
    return source if kept is None else kept
