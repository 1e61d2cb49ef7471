"""Studies: an experiment is data, a grid of interventions and measures; it ends in tables and a verdict."""

from __future__ import annotations

from gatelens.studies.narrow_gate import narrow_gate

__all__ = ["narrow_gate"]
