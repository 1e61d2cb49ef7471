"""Steering: add a direction to the activations at chosen positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gatelens.interventions.arguments import Heads, Layers, as_flag, as_indices, as_number
from gatelens.interventions.directions import Direction, as_direction, of_layer
from gatelens.interventions.sites import EditedPositions, Site, SiteEdit, check_site, spread
from gatelens.tokens import SelectorLike


@dataclass(frozen=True, eq=False, repr=False)
class Steer(SiteEdit):
    """What :func:`steer` returns."""

    direction: Direction = field(kw_only=True)
    scale: float = field(default=1.0, kw_only=True)

    reach = SiteEdit.reach  # each position is edited by itself

    def new_values(
        self, old: Float[Tensor, "n ..."], layer: int, prepared: None, edited: EditedPositions
    ) -> Float[Tensor, "n ..."]:
        direction = of_layer(self.direction, layer, self)
        return old + self.scale * spread(direction, old, edited, self)


def steer(
    direction: Direction,
    at: SelectorLike,
    site: Site = "resid_pre",
    layers: Layers = None,
    scale: float = 1.0,
    normalize: bool = False,
    heads: Heads = None,
    masks: Mapping[str, Any] | None = None,
) -> Steer:
    """Add ``scale * direction`` to the activations at ``at``.

    Args:
        direction: ``[d_model]``, ``[batch, d_model]``, or one of these for each layer in a dict; at ``q k v
            z`` ``[d_head]`` or ``[n_heads, d_head]`` (with the batch in front, if one per example).
        at: selector of the positions.
        site: one of :data:`gatelens.interventions.SITES`.
        layers: which blocks; None is all of them, or the keys of a dict of directions.
        scale: factor; with ``normalize`` it is the length of what is added, in units of the activation.
        normalize: divide the direction by its Euclidean norm (over the last dimension) first.
        heads: at ``q k v z``: only those heads.
        masks: pixel masks by the names that the selectors use in ``image.mask(name)``, as ``tokens.mask`` takes them.

    Raises:
        InterventionError: unknown site, or a direction that is not a tensor of finite real numbers, has length 0
            with ``normalize``, or does not fit the site (found when it is run).

    Example:
        >>> scenes = gl.data.load("emoji-scenes", "train").examples("class", limit=200)
        >>> vector = gl.direction(model, scenes, positive="penguin", negative="sunflower", at="gate", layers=[1])
        >>> logits = model.run(inputs, gl.steer(vector, at="gate", layers=[1]))
        >>> model.tokenizer.decode(logits[0, -1].argmax())
        'penguin'
    """
    check_site(site)
    vectors, layers = as_direction(direction, layers, as_flag(normalize, "normalize"))
    return Steer(
        at,
        site,
        direction=vectors,
        scale=as_number(scale, "scale"),
        layers=as_indices(layers, "layers"),
        heads=as_indices(heads, "heads"),
        masks=masks,
    )
