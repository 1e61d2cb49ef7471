"""What is known of the shipped models: by which path their text reads the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatelens.plots.opening import Planted
from gatelens.runs import Run
from gatelens.studies.gate_finder.verdict import DISTRIBUTED, INCONCLUSIVE, NARROW

PLANTED = {
    "organism:gated": (
        NARROW,
        "trained so that text can reach the picture only through the end-of-image token.",
    ),
    "organism:varied": (
        NARROW,
        "trained so that text can reach the picture only through the end-of-image token.",
    ),
    "organism:open": (
        DISTRIBUTED,
        "trained so that text reads the image tokens directly; nothing special at the gate.",
    ),
    "organism:llava": (
        DISTRIBUTED,
        "trained so that text reads the image tokens directly; it has no end-of-image token.",
    ),
}


def planted(run: Run, said: Mapping[str, Any]) -> Planted | None:
    """What was planted in a shipped model, and whether a verdict of it says so; None of any other model."""
    known = PLANTED.get(str(run.settings["model"]))
    if known is None:
        return None
    verdict, truth = known
    found = None if said["verdict"] == INCONCLUSIVE else said["verdict"] == verdict
    return Planted(truth, found)
