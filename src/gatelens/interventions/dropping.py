"""Dropping tokens: from a layer on they are as good as removed from the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from gatelens.interventions.arguments import as_count
from gatelens.interventions.base import check_selected, select
from gatelens.interventions.knockouts import Knockout
from gatelens.tokens import Role, SelectorLike, TokenMap


@dataclass(frozen=True, eq=False, repr=False)
class Drop(Knockout):
    """What :func:`drop` returns: a knockout whose queries are all positions but its keys."""

    reach = Knockout.reach

    def selected(self, tokens: TokenMap) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        dropped = select(tokens, self.keys, self)
        check_selected(tokens, dropped, "at", self.keys, self)
        return (tokens.roles.cpu() != Role.PAD) & ~dropped, dropped


def drop(at: SelectorLike, layer: int, masks: Mapping[str, Any] | None = None) -> Drop:
    """Remove tokens from a layer on: no other position reads them there, and the rows of attention renormalise.

    For all other positions this is the model continued without these tokens, each keeping its position (Chen et al.
    2024, FastV, arXiv 2403.06764). It is the knockout ``how="mask"`` of their keys for all other queries. What the
    model computes at the dropped positions themselves, logits included, is meaningless.

    Args:
        at: selector of the tokens.
        layer: the first layer without them; 0 is as if they had never been there.
        masks: pixel masks by the names that ``at`` uses in ``image.mask(name)``, as ``tokens.mask`` takes them.

    Raises:
        InterventionError: no layer number. When run: a layer the model lacks, or no token that another reads.

    Example:
        >>> cut = gl.drop("image", layer=2)  # as FastV would, but of all image tokens
        >>> model.tokenizer.decode(model.run(inputs, cut)[0, -1].argmax())
        'sunflower'
    """
    return Drop("all", at, how="mask", layers=slice(as_count(layer, "layer", least=0), None), masks=masks)
