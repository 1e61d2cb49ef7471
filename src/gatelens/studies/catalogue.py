"""All studies by name; each is listed here once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gatelens.errors import OutputError
from gatelens.runs import Run
from gatelens.studies.gate_finder.study import STUDY as GATE_FINDER
from gatelens.studies.gate_finetuning.study import STUDY as GATE_FINETUNING
from gatelens.studies.gate_finetuning.study import finetune_gate
from gatelens.studies.narrow_gate.study import STUDY as NARROW_GATE
from gatelens.studies.runner import run_study
from gatelens.studies.study import Study
from gatelens.studies.whats_in_the_image.study import STUDY as WHATS_IN_THE_IMAGE
from gatelens.studies.whats_in_the_image.study import whats_in_the_image

STUDIES = {s.name: s for s in (NARROW_GATE, WHATS_IN_THE_IMAGE, GATE_FINDER, GATE_FINETUNING)}
"""The studies by name, as ``gatelens study NAME`` runs them."""

# what a study's own function does beyond running it, such as choosing what to train on
_FUNCTIONS = {GATE_FINETUNING.name: finetune_gate, WHATS_IN_THE_IMAGE.name: whats_in_the_image}


def starter(name: str) -> Callable[..., Run]:
    """What runs the study of that name: called with model, data and ``out``, and options by name."""
    return _FUNCTIONS.get(name, partial(run_study, STUDIES[name]))


def study_of(run: Run) -> Study:
    """The study a run is of.

    Raises:
        OutputError: one that is not known here.
    """
    if run.study not in STUDIES:
        known = ", ".join(repr(name) for name in STUDIES)
        raise OutputError(
            f"run {run.label} is of study {run.study!r}, whose report is not known; known: {known}"
        )
    return STUDIES[run.study]
