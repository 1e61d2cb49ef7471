"""A direction of the activations: one for all layers, or one each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.arguments import Layers, as_indices, check_vector

Direction: TypeAlias = Float[Tensor, " ..."] | Mapping[int, Tensor]


def as_direction(direction: Any, layers: Layers, normalize: bool) -> tuple[Direction, Layers]:
    """The direction, checked, and the layers it is for where ``layers`` is None.

    Args:
        normalize: divide each by its Euclidean norm over the last dimension.

    Raises:
        InterventionError: no tensor of finite real numbers, or length 0 with ``normalize``.
    """
    if not isinstance(direction, Mapping):
        return _checked(direction, normalize, "direction"), layers
    as_indices(direction.keys(), "layers of direction")
    vectors = {
        int(layer): _checked(vector, normalize, f"direction of layer {layer}")
        for layer, vector in direction.items()
    }
    return vectors, tuple(vectors) if layers is None else layers


def of_layer(direction: Direction, layer: int, owner: object) -> Tensor:
    """The direction in a layer. Raises InterventionError where a dict has none."""
    if isinstance(direction, Tensor):
        return direction
    if layer not in direction:
        raise InterventionError(
            f"{owner!r}: direction has no vector for layer {layer}, it has {list(direction)}"
        )
    return direction[layer]


def _checked(vector: Any, normalize: bool, word: str) -> Tensor:
    check_vector(vector, word)
    if not normalize:
        return vector
    length = vector.norm(dim=-1, keepdim=True)
    if not (length > 0).all():
        raise InterventionError(
            f"{word} has length 0 and cannot be normalised; give another, or normalize=False"
        )
    return vector / length
