"""Steering vectors: from positive and negative examples (``contrasts``) to a direction and its dose curve."""

from gatelens.directions.steering_vectors import (
    DoseCurve,
    SteeringVector,
    activations_at,
    direction,
    dose_curve,
    overlaps_with_first,
    random_like,
)

__all__ = [
    "DoseCurve",
    "SteeringVector",
    "activations_at",
    "direction",
    "dose_curve",
    "overlaps_with_first",
    "random_like",
]
