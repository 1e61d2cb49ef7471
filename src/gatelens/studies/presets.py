"""The papers' settings by name: data (their prompts belong to the data sets), sizes, seeds, decoding, and method.

>>> preset("paper").arguments(limit=50)["how"]
'zero'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gatelens.errors import DataError


@dataclass(frozen=True)
class Preset:
    """What a paper set.

    Attributes:
        name: its name among the presets of a study.
        study: the study whose parameters ``settings`` are.
        paper: which paper, with version.
        settings: the study's parameters.
        note: where it departs from the paper, for people.

    Example:
        >>> preset = gl.studies.preset("paper", study="whats-in-the-image")
        >>> preset.arguments(limit=100)
        {'data': 'coco-objects,mme', 'preset': 'paper', 'how': 'mask', 'seed': 42, 'n': 80, 'limit': 100}
    """

    name: str
    study: str
    paper: str
    settings: Mapping[str, Any]
    note: str = ""

    def arguments(self, **instead: Any) -> dict[str, Any]:
        """The study's parameters; those given here count instead, ``None`` means not given."""
        return {**self.settings, **{k: v for k, v in instead.items() if v is not None}}


PRESETS = (
    Preset(
        name="paper",
        study="narrow-gate",
        paper="Serra et al., arXiv 2412.06646",
        settings=MappingProxyType(
            {
                "data": "vqav2,flickr30k,coco,imagenet",
                "how": "zero",
                "seed": 42,
                "n_vqa": 2000,
                "n_caption": 2000,
                "n_class": 2000,
                "random_tokens": 10,
                "random_repeats": {"vqa": 5, "caption": 3, "class": 3},
                "vqa_tokens": 20,
                "caption_tokens": 60,
                "sections": {
                    "all": {},
                    "modality_gap": {"n": 10_000},
                    "meaning": {"n": 2000},
                    "progressive": {"n": 2000, "n_vqa": 2000},
                },
            }
        ),
        note="20 pictures of each of 100 animal classes; 3 random draws for them, which the paper does not specify",
    ),
    Preset(
        name="paper",
        study="whats-in-the-image",
        paper="Kaduri et al., arXiv 2411.17491",
        settings=MappingProxyType(
            {"data": "coco-objects,mme", "preset": "paper", "how": "mask", "seed": 42, "n": 80}
        ),
        note="80 pictures as in the paper, drawn with seed 42 as it does not list its own; its prompt and 300 tokens "
        "are what the study's own preset sets",
    ),
)
NO_PRESET = Preset(name="none", study="", paper="", settings=MappingProxyType({}))


def preset(name: str, study: str = "narrow-gate") -> Preset:
    """A study's preset: ``narrow_gate(model, out="run", **preset("paper").arguments(limit=100))``.

    Args:
        name: of the preset.
        study: of the study it is for.

    Raises:
        DataError: the study has none of that name.

    Example:
        >>> gl.studies.preset("paper").paper
        'Serra et al., arXiv 2412.06646'
    """
    named = {p.name: p for p in PRESETS if p.study == study}
    if name not in named:
        raise DataError(f"no preset {name!r} for {study}; use {', '.join(named) or 'none, there are none'}")
    return named[name]
