"""Studies: an experiment is data, a grid of interventions and measures; it ends in tables and a verdict."""

from __future__ import annotations

__all__ = ["find_gate", "finetune_gate", "narrow_gate", "whats_in_the_image"]
