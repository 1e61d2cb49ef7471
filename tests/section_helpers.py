"""Sections of a study on a model the test holds, measured here, without the sections beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gatelens.runs import Run
from gatelens.studies.options import checked
from gatelens.studies.runner import measure_section
from gatelens.studies.section import Setup
from gatelens.studies.study import Study


def setup_of(
    study: Study,
    model: Any,
    data: Any,
    sections: Mapping[str, Mapping[str, Any]],
    size: int = 5,
    drawn: Mapping[str, Sequence[Any]] | None = None,
    **options: Any,
) -> Setup:
    """What sections plan from; their options are their defaults but for those given, as are the study's.

    ``drawn``: the examples of each task; without, all the data have.
    """
    asked = checked(study.options, {"seed": 0, "n_boot": 50, **options})
    chosen = {name: checked(study.section(name).options, given, name) for name, given in sections.items()}
    if drawn is None:
        drawn = {task: data.examples(task) for task in data.tasks}
    settings = {"model": "tiny", "data": data.name, **asked.settings()}
    settings["sections"] = {name: given.settings() for name, given in chosen.items()}
    run = Run.open(
        None, study=study.name, settings=settings | dict(study.settings(model, data, drawn, asked))
    )
    return Setup(model, data, drawn, asked, chosen, size, run)


def run_section(study: Study, name: str, setup: Setup) -> Run:
    """One section measured and concluded, without a verdict; raises Absent where it cannot be."""
    section = study.section(name)
    measured = measure_section(section, setup)
    for table, value in section.conclude(setup, measured).items():
        setup.run.save(table, value)
    return setup.run


def run_sections(study: Study, setup: Setup) -> Run:
    """All sections of the setup, in the study's order."""
    for section in study.sections:
        if section.name in setup.section_options:
            run_section(study, section.name, setup)
    return setup.run
