"""One section of the narrow-gate study on a model the test holds, without the knockouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gatelens.runs import Run
from gatelens.studies.common import Labels, Progress
from gatelens.studies.narrow_gate.section import Context
from gatelens.studies.narrow_gate.sections import BY_NAME


def context_of(
    model: Any, data: Any, sections: Mapping[str, Mapping[str, Any]], size: int = 5, **more: Any
) -> Context:
    """What a section works with; its options are its defaults but for those given."""
    options = {name: {**BY_NAME[name].options, **asked} for name, asked in sections.items()}
    settings = {"model": "tiny", "data": data.name, "seed": 0, "n_boot": 50, "how": "zero", **more}
    settings |= {"sections": options, "random_tokens": 4, "max_new_tokens": {"vqa": 3, "caption": 4}}
    run = Run.open(None, study="narrow-gate", settings=settings)
    drawn = {task: data.examples(task) for task in data.tasks}
    return Context(model, data, drawn, ("zero",), size, run, Labels(model), Progress(0, False))


def run_sections(context: Context) -> Run:
    """The sections' pieces and tables, in order."""
    with torch.inference_mode():
        for name in context.settings["sections"]:
            section = BY_NAME[name]
            tables = [context.run.stage(p.stage, p.compute) for p in section.pieces(context)]
            section.conclude(context, tables)
    return context.run
