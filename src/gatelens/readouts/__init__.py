"""What one looks at in a run: where a prediction comes from, and what each layer would say."""

from __future__ import annotations

from gatelens.readouts.attribution import Attribution, attribute
from gatelens.readouts.gradients import AttributionMap, attribution_map
from gatelens.readouts.labelled import LabelledTensor
from gatelens.readouts.lens import LogitLens, logit_lens
from gatelens.readouts.path_patching import PathEffects, path_patch

__all__ = [
    "Attribution",
    "AttributionMap",
    "LabelledTensor",
    "LogitLens",
    "PathEffects",
    "attribute",
    "attribution_map",
    "logit_lens",
    "path_patch",
]
