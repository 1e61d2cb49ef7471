"""All settings of a paper by name: what it measured on (:mod:`gatelens.data.presets`), and how.

>>> preset("paper").arguments(limit=50)["how"]
'zero'
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from gatelens.data import presets as data_presets
from gatelens.data.presets import Preset, find_preset

NARROW_GATE = dataclasses.replace(
    data_presets.NARROW_GATE,
    settings=MappingProxyType(
        {
            **data_presets.NARROW_GATE.settings,
            "how": "zero",
            "random_tokens": 10,
            "random_repeats": {"vqa": 5, "caption": 3, "class": 3},
            "sections": {
                "all": {},
                "modality_gap": {"n": 10_000},
                "meaning": {"n": 2000},
                "progressive": {"n": 2000, "n_vqa": 2000},
            },
        }
    ),
    note=f"{data_presets.NARROW_GATE.note}; 3 random draws for them, of which the paper says nothing",
)
WHATS_IN_THE_IMAGE = dataclasses.replace(
    data_presets.WHATS_IN_THE_IMAGE,
    settings=MappingProxyType({**data_presets.WHATS_IN_THE_IMAGE.settings, "preset": "paper", "how": "mask"}),
    note=f"{data_presets.WHATS_IN_THE_IMAGE.note}; its prompt and 300 tokens are what the study's own preset sets",
)
NO_PRESET = Preset(name="none", study="", paper="", settings=MappingProxyType({}))


def preset(name: str, study: str = "narrow-gate") -> Preset:
    """A study's preset: ``narrow_gate(model, out="run", **preset("paper").arguments(limit=100))``.

    Raises:
        DataError: the study has none of that name.
    """
    return find_preset((NARROW_GATE, WHATS_IN_THE_IMAGE), name, study)
