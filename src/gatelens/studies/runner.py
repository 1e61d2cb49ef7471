"""Runs a study: its sections in order, each batch a unit that an executor measures, saved one by one.

Options and sections are checked first, then the data is drawn, then the model is loaded and the run opened. What is
there already is not measured again. Tables, evidence, verdict and report are rebuilt from what was measured.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from tqdm.auto import tqdm

from gatelens import identity
from gatelens.data import Dataset, Example
from gatelens.errors import GatelensError
from gatelens.examples import auto_batch_size
from gatelens.executors import Done, Executor, InProcess, Unit, executing
from gatelens.model import HookedVLM
from gatelens.model.loading import without_progress_bar
from gatelens.runs import Run
from gatelens.studies.options import Options, checked
from gatelens.studies.report import write_report
from gatelens.studies.section import Absent, Batch, Measured, Section, Setup, Tables
from gatelens.studies.study import Chosen, Drawn, Study, evidence_of
from gatelens.units import measure_missing


def run_study(
    study: Study,
    model: HookedVLM | str,
    data: Dataset | str,
    out: str | os.PathLike[str] | None = None,
    *,
    sections: Chosen = None,
    name: str | None = None,
    skip_bad: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
    workers: int | None = None,
    ray: str | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> Run:
    """Run a study, or finish one that was cut short in the same folder.

    Args:
        study: what to run.
        model: a model or its name.
        data: a data set, its name or a folder (see :func:`gatelens.data.load`).
        out: folder of the run; None keeps everything in memory and draws no report.
        sections: None for all, names, or names with options, ``{"all": {}, "patching": {"n_pairs": 20}}``.
        name: what the run calls the model; None is its own name.
        skip_bad: leave bad rows of data given by name out, and list them in the manifest, instead of stopping.
        device, dtype: where to load a model given by name.
        progress: show a progress bar.
        workers, ray: processes that measure the batches, or a Ray cluster's address; None is this process.
        executor: one that is open already, instead of these.
        options: of the study.

    Raises:
        DataError: an unknown option or section, a value it cannot have, or data without what the study needs.
        OutputError: ``out`` can't be written or holds other settings (before any compute).
    """
    asked = checked(study.options, options)
    asked = asked.capped(asked.limit)
    chosen = study.chosen(sections, asked.limit)
    if out is not None:
        Run.check_folder(out, study.name)
    source = identity.resolve_data(data, skip_bad)  # bad data is found before a model takes its time to load
    drawn = study.draw(source, asked)
    called, vlm = name or identity.model_name(model), _loaded(model, progress, device=device, dtype=dtype)
    drawn = study.ask(vlm, drawn, asked)
    size = asked.batch_size or auto_batch_size(vlm, _longest(drawn))
    settings = {"model": called, **_settings(study, vlm, source, drawn, asked, chosen), "batch_size": size}
    info = _info(vlm, source) | identity.given(model, data)
    run = Run.open(out, study=study.name, settings=settings, info=info)
    try:
        with nullcontext(executor) if executor else executing(workers, ray) as measures:
            measure_sections(study, Setup(vlm, source, drawn, asked, chosen, size, run, progress, measures))
    except GatelensError:
        run.withdraw()
        raise
    if out is not None:
        write_report(study, run)
    return run


def _loaded(model: HookedVLM | str, progress: bool, **place: str | None) -> HookedVLM:
    """The model, loaded at its place if it is a name."""
    with without_progress_bar(hide=not progress):
        return identity.resolve_model(model, **{k: v for k, v in place.items() if v is not None})


def _longest(drawn: Drawn) -> Example:
    """The example of the longest prompt."""
    return max((e for examples in drawn.values() for e in examples), key=lambda e: len(e.prompt))


def _settings(
    study: Study, vlm: HookedVLM, source: Dataset, drawn: Drawn, asked: Options, chosen: Mapping[str, Options]
) -> dict[str, Any]:
    """What the manifest says was asked for: a run in the same folder must ask for the same."""
    settings = {
        "weights": identity.model_fingerprint(vlm),
        "data": source.name,
        "examples": identity.data_fingerprint([e for examples in drawn.values() for e in examples]),
        "n": {task: len(examples) for task, examples in drawn.items()},
        **asked.settings(),
        **identity.precision(vlm),
        "sections": {section: given.settings() for section, given in chosen.items()},
        **study.settings(vlm, source, drawn, asked),
    }
    settings.pop("limit")  # it is in the numbers of examples already
    return settings


def _info(vlm: HookedVLM, source: Dataset) -> dict[str, Any]:
    """What the manifest says besides the settings; it may differ when a run is continued."""
    return {
        "device": str(vlm.device),
        "model_class": type(vlm.hf).__name__,
        "n_layers": int(vlm.cfg.n_layers),
        **identity.provenance(source),
    }


def measure_sections(study: Study, setup: Setup) -> None:
    """Measure the chosen sections of a study in order, and store their tables and the verdict."""
    run = setup.run
    sections = [s for s in study.sections if s.name in setup.section_options]
    absent: dict[str, str] = {}
    with Progress(setup.progress) as bar:
        for section in sections:  # what can be planned now makes the time left meaningful
            if not section.reads:
                bar.expect(section.name, _unmeasured(section, setup, Measured()))
        for section in sections:
            try:
                measured = measure_section(section, setup, bar)
            except Absent as reason:
                absent[section.name] = str(reason)
                continue
            for table, value in section.conclude(setup, measured).items():
                run.save(table, value)
    run.note(**identity.provenance(setup.data))  # sections may have drawn further examples
    run.save("absent", [f"{s.name} ({absent[s.name]})" for s in sections if s.name in absent])
    evidence = evidence_of([s for s in sections if s.name not in absent], run)
    run.save("verdict", dict(study.verdict(run, evidence)))


def _unmeasured(section: Section, setup: Setup, measured: Measured) -> list[Batch]:
    try:
        batches = section.batches(setup, measured)
    except Absent:
        return []
    return _lacking(section, setup, batches)


def _lacking(section: Section, setup: Setup, batches: Sequence[Batch]) -> list[Batch]:
    missing = setup.run.missing(section.name, (b.name for b in batches))
    return [b for b in batches if b.name in missing]


def measure_section(section: Section, setup: Setup, bar: Progress | None = None) -> Measured:
    """All batches of a section, those of later rounds planned from what the earlier ones gave.

    Raises:
        Absent: the section cannot be measured on this model or data.
    """
    run, measured, bar = setup.run, Measured(), bar or Progress(False)
    executor = InProcess() if section.here else setup.executor
    if section.here and not isinstance(setup.executor, InProcess):
        bar.tell(
            f"{section.name}: one after the other in this process; the workers measure the studies within them"
        )
    while True:
        batches = section.batches(setup, measured)
        new = [b for b in batches if b.name not in measured]
        if not new:
            return Measured({b.name: measured[b.name] for b in batches})
        twice = next((name for name, n in Counter(b.name for b in new).items() if n > 1), None)
        if twice is not None:
            raise ValueError(f"section {section.name!r} has two batches {twice!r}; their tables would be one")
        missing = _lacking(section, setup, new)
        bar.expect(section.name, missing)
        bar.say(section.name)
        units = [
            Unit(b.name, b.units, partial(measure_batch, section.measure, setup.model, b)) for b in missing
        ]
        measure_missing(run, section.name, units, executor, partial(bar.step, section.name))
        for batch in new:
            measured[batch.name] = run.batch(section.name, batch.name)


def measure_batch(
    measure: Callable[[HookedVLM, Any], Tables], model: HookedVLM, batch: Batch, done: Done
) -> Tables:
    """The tables of a batch: what a worker does with it, wherever it is."""
    with torch.inference_mode():
        tables = measure(model, batch)
    done(batch.units)
    return tables


class Progress:
    """A bar with the time left over all sections of a study; it grows when a section plans further batches."""

    def __init__(self, enabled: bool) -> None:
        self._expected: set[tuple[str, str]] = set()
        form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed} elapsed, {remaining} left]"
        self._bar = tqdm(total=0, disable=not enabled, bar_format=form, dynamic_ncols=True)

    def expect(self, section: str, batches: Sequence[Batch]) -> None:
        """These batches will be measured."""
        for batch in batches:
            if (section, batch.name) not in self._expected:
                self._expected.add((section, batch.name))
                self._bar.total += batch.units
        self._bar.refresh()

    def step(self, section: str, units: int) -> None:
        """A number of batches, in units, have been measured."""
        self.say(section)
        self._bar.update(units)

    def say(self, what: str) -> None:
        """What is being measured now."""
        self._bar.set_description_str(what.replace("_", " "), refresh=False)

    def tell(self, line: str) -> None:
        """A line above the bar."""
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
