"""Gradients of a metric instead of patches: one backward pass for all cells of a map, and how far off it is."""

from __future__ import annotations

from gatelens.readouts.gradients.attribution_map import AttributionMap, attribution_map

__all__ = ["AttributionMap", "attribution_map"]
