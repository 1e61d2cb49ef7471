"""Activation patching: put activations of another run in the place of this run's.

Positions are paired by what they are, not by where they stand: the k-th position a selector names in this
prompt takes the activation of the k-th position it names in the other, so prompts of different length can be
patched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.base import Heads, Layers, Span, as_indices, prompt_only, select
from gatelens.interventions.sites import Site, SiteEdit, check_site, hook_name
from gatelens.selectors import SelectorLike

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap


class Pair(NamedTuple):
    """One position and the position it is patched from."""

    example: int
    position: int
    string: str
    source_example: int
    source_position: int
    source_string: str


class Pairs(list[Pair]):
    """A list of :class:`Pair` that prints as a table."""

    def __str__(self) -> str:
        rows = [Pair._fields, *[tuple(x if isinstance(x, int) else repr(x) for x in pair) for pair in self]]
        text = [[str(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in text) for i in range(len(Pair._fields))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in text
        )


@dataclass(frozen=True, eq=False, repr=False)
class Patch(SiteEdit):
    """What :func:`patch` returns."""

    cache: Any = field(default=None, kw_only=True, repr=False)
    source: Any = field(default=None, kw_only=True)
    broadcast: bool = field(default=False, kw_only=True, repr=False)

    def places(self, tokens: TokenMap) -> Bool[Tensor, "batch pos"]:
        return prompt_only(tokens, select(tokens, self.at, self))

    def pairs(self, tokens: TokenMap) -> Pairs:
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
                f"{tokens.batch_size}; use equal "
                "batches, or a cache of one example for all"
            )
        pairs = Pairs()
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
                    f"source={source!r} selects {len(sources)} in the cached prompt; {hint}"
                )
            pairs.extend(
                Pair(example, p, tokens.strings[example][p], other, s, origin.strings[other][s])
                for p, s in zip(targets, sources, strict=True)
            )
        return pairs

    def bind(self, tokens: TokenMap, cfg: Any) -> tuple[Tensor, Tensor]:
        pairs = self.pairs(tokens)
        return (
            torch.tensor([pair.source_example for pair in pairs]),
            torch.tensor([pair.source_position for pair in pairs]),
        )

    def new_values(
        self,
        old: Float[Tensor, "n ..."],
        tensor: Float[Tensor, "batch pos ..."],
        layer: int,
        bound: tuple[Tensor, Tensor],
        number: Int[Tensor, " n"],
        example: Int[Tensor, " n"],
        span: Span,
    ) -> Float[Tensor, "n ..."]:
        values = cached(self.cache, self.site, layer, self)
        example_there, position_there = (index.to(number.device)[number].to(values.device) for index in bound)
        if getattr(self.cache, "kept", None) is not None:
            position_there = self.cache.kept.find(example_there, position_there, self)
        values = values[example_there, position_there]
        if values.shape != old.shape:
            raise InterventionError(
                f"{self!r}: the cached activation holds {tuple(values.shape[1:])} a position, this model's "
                f"{tuple(old.shape[1:])}; patch between runs of one model"
            )
        return values


def patch(
    cache: Any,
    at: SelectorLike,
    site: Site = "resid_pre",
    layers: Layers = None,
    heads: Heads = None,
    source: SelectorLike | None = None,
    broadcast: bool = False,
) -> Patch:
    """Replace activations at ``at`` by those of another run, position for position by their place in the
    selection.

    Only prompt positions are paired; generated ones are never patched.

    Args:
        cache: from ``model.run_with_cache(other_inputs)``; of one example (used for every example of the
            batch) or of as many as the batch (row by row). It needs the site's hook points in its
            ``names_filter``.
        at: selector of the positions to overwrite.
        site: see :mod:`gatelens.interventions.sites`.
        layers: which blocks; None is all of them.
        heads: at ``q``, ``z`` (query heads), ``k``, ``v`` (key-value heads): only those.
        source: selector in the cached prompt; None is the same as ``at``.
        broadcast: let a single source position serve every position of ``at``.

    Raises:
        InterventionError: unknown site; a cache without ``.tokens``. When run: selections of different size,
            or an activation the cache does not hold.
    """
    check_site(site)
    if getattr(cache, "tokens", None) is None:
        raise InterventionError(
            f"patch needs a cache that knows its tokens, this {type(cache).__name__} has no .tokens; take "
            "it from "
            "model.run_with_cache(inputs)"
        )
    return Patch(
        at,
        site,
        cache=cache,
        source=source,
        broadcast=broadcast,
        layers=as_indices(layers, "layers"),
        heads=as_indices(heads, "heads"),
    )


_ALIASES = {
    "resid_pre": "hook_in",
    "resid_mid": "ln2.hook_in",
    "resid_post": "hook_out",
    "attn_out": "attn.hook_out",
    "mlp_out": "mlp.hook_out",
    "q": "attn.q.hook_out",
    "k": "attn.k.hook_out",
    "v": "attn.v.hook_out",
    "z": "attn.o.hook_in",
}


def cached(
    cache: Mapping[Any, Tensor], site: str, layer: int, owner: object
) -> Float[Tensor, "batch pos ..."]:
    """The activation of a site in a cache.

    Raises:
        InterventionError: not in it; the message says the ``names_filter`` to run with.
    """
    name = hook_name(site, layer)
    # A filter by the bridge's own spelling of a hook point stores it under that spelling only.
    for key in (name, f"blocks.{layer}.{_ALIASES[site]}" if site in _ALIASES else name):
        if key in cache:
            return cache[key]
    raise InterventionError(
        f"{owner!r}: the cache has no {name!r}; run with run_with_cache(inputs, names_filter=lambda name: "
        f"name == {name!r}), or without a names_filter"
    )
