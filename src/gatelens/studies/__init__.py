"""Studies: an experiment is data, a grid of interventions and measures; it ends in tables and a verdict."""

from __future__ import annotations

from gatelens.studies.presets import Preset, preset

__all__ = ["Preset", "find_gate", "finetune_gate", "narrow_gate", "preset", "whats_in_the_image"]
