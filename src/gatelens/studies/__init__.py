"""Studies: an experiment is data, a grid of interventions and measures; it ends in tables and a verdict.

>>> list(gl.studies.STUDIES)
['narrow-gate', 'whats-in-the-image', 'find-gate', 'gate-finetuning']
"""

from __future__ import annotations

from gatelens.studies.catalogue import STUDIES
from gatelens.studies.gate_finder.study import find_gate
from gatelens.studies.gate_finetuning.study import finetune_gate
from gatelens.studies.narrow_gate.study import narrow_gate
from gatelens.studies.presets import Preset, preset
from gatelens.studies.whats_in_the_image.study import whats_in_the_image

__all__ = ["STUDIES", "Preset", "find_gate", "finetune_gate", "narrow_gate", "preset", "whats_in_the_image"]
