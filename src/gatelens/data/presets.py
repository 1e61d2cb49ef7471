"""The papers' measurements by name: data (their prompts belong to the data sets), sizes, seeds, decoding.

>>> preset("paper").arguments(seed=0)["data"]
'vqav2,flickr30k,coco,imagenet'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """

    name: str
    study: str
    paper: str
    settings: Mapping[str, Any]
    note: str = ""

    def arguments(self, **instead: Any) -> dict[str, Any]:
        """The study's parameters; those given here count instead, ``None`` stands for not given."""
        return {**self.settings, **{k: v for k, v in instead.items() if v is not None}}


NARROW_GATE = Preset(
    name="paper",
    study="narrow-gate",
    paper="Serra et al., arXiv 2412.06646",
    settings=MappingProxyType(
        {
            "data": "vqav2,flickr30k,coco,imagenet",
            "seed": 42,
            "n_vqa": 2000,
            "n_caption": 2000,
            "n_class": 2000,
            "vqa_tokens": 20,
            "caption_tokens": 60,
        }
    ),
    note="20 pictures of each of 100 animal classes",
)
WHATS_IN_THE_IMAGE = Preset(
    name="paper",
    study="whats-in-the-image",
    paper="Kaduri et al., arXiv 2411.17491",
    settings=MappingProxyType({"data": "coco-objects,mme", "seed": 42, "n": 80}),
    note="80 pictures as in the paper, drawn with seed 42 as it does not list its own",
)


def preset(name: str, study: str = "narrow-gate") -> Preset:
    """What a paper measured on; :func:`gatelens.studies.presets.preset` has its other settings too.

    Raises:
        DataError: none of that name.
    """
    return find_preset((NARROW_GATE, WHATS_IN_THE_IMAGE), name, study)


def find_preset(presets: Sequence[Preset], name: str, study: str) -> Preset:
    """The preset of a study by name.

    Raises:
        DataError: it has none of that name.
    """
    named = {p.name: p for p in presets if p.study == study}
    if name not in named:
        raise DataError(f"no preset {name!r} for {study}; use {', '.join(named) or 'none, there are none'}")
    return named[name]
