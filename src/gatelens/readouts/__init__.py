"""What can be read from runs: where a prediction comes from, what each layer would say, what each place carries."""

from __future__ import annotations

from gatelens.readouts.attribution import Attribution, attribute
from gatelens.readouts.circuits import Circuit, circuit
from gatelens.readouts.effect_map import EffectMap
from gatelens.readouts.gradients import AttributionMap, attribution_map
from gatelens.readouts.heads import HeadsTable, heads_table
from gatelens.readouts.labelled import LabelledTensor
from gatelens.readouts.lens import LogitLens, logit_lens
from gatelens.readouts.patch_maps import patch_map
from gatelens.readouts.path_patching import PathEffects, path_patch
from gatelens.readouts.written import WordsTable, words_table

__all__ = [
    "Attribution",
    "AttributionMap",
    "Circuit",
    "EffectMap",
    "HeadsTable",
    "LabelledTensor",
    "LogitLens",
    "PathEffects",
    "WordsTable",
    "attribute",
    "attribution_map",
    "circuit",
    "heads_table",
    "logit_lens",
    "patch_map",
    "path_patch",
    "words_table",
]
