"""Circuits: small sets of nodes or edges that carry a share of a metric, by exact runs."""

from __future__ import annotations

from gatelens.readouts.circuits.circuit import circuit
from gatelens.readouts.circuits.result import Circuit

__all__ = ["Circuit", "circuit"]
