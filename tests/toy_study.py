"""A study of three sections that needs no model, for tests of the machine that runs studies; importable anywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import Field

from gatelens.data import Example
from gatelens.runs import Run
from gatelens.studies.options import Count, Examples, Options, checked
from gatelens.studies.runner import measure_section, run_study
from gatelens.studies.section import Absent, Batch, Evidence, Measured, Section, Setup, Tables
from gatelens.studies.study import Study, StudyOptions

MODEL = SimpleNamespace(
    name="toy", hf=torch.nn.Linear(2, 2), cfg=SimpleNamespace(n_layers=3), dtype="float32", device="cpu"
)
torch.nn.init.zeros_(MODEL.hf.weight)
torch.nn.init.ones_(MODEL.hf.bias)


class Numbers:
    """Examples that are numbers: their prompt is ``p0``, ``p1``…"""

    name = "numbers"
    tasks = ("class",)
    classes = ("even", "odd")

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Example]:
        n = 10 if limit is None else min(limit, 10)
        return [Example(None, f"p{i + seed}", (self.classes[i % 2],), task, f"n-{i}") for i in range(n)]


@dataclass(frozen=True)
class Counted(Batch):
    """Numbers to be squared, each after a little while."""

    numbers: Sequence[int]
    wait: float


class SquaresOptions(Options):
    """What the section *squares* can be asked."""

    n: Annotated[Examples, Field(description="Numbers.")] = 100
    n_times: Annotated[Count, Field(description="Beginning with n, and no number of examples.")] = 50
    each: Annotated[Examples | None, Field(description="Counts examples where it is given.")] = None


def squares_batches(setup: Setup, measured: Measured) -> list[Batch]:
    drawn = setup.drawn["class"][: setup.section_options["squares"].n]
    parts = setup.batched([int(e.prompt[1:]) for e in drawn])
    return [Counted(f"squares-{i:02d}", part, setup.options.wait) for i, _, part in parts]


def squares_measure(model: Any, batch: Counted) -> Tables:
    time.sleep(batch.wait)
    table = pd.DataFrame({"number": batch.numbers, "square": [n * n for n in batch.numbers]})
    return {"squares": table, "sums": pd.DataFrame({"sum": [int(table.square.sum())]})}


def squares_conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    return {"squares": measured.table("squares"), "sums": measured.table("sums")}


def rounds_batches(setup: Setup, measured: Measured) -> list[Batch]:
    """First what is least, then as many batches as that says, then one of the last of these."""
    work = [Counted("first", [2, 3], setup.options.wait)]
    if "first" in measured:
        n = int(measured["first"]["squares"].square.min())
        work += [Counted(f"second-{i}", [i], setup.options.wait) for i in range(n)]
        if f"second-{n - 1}" in measured:
            work.append(
                Counted("third", list(measured.table("squares", "second").square), setup.options.wait)
            )
    return work


def rounds_conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    return {"rounds": measured.table("squares")}


def absent_measure(model: Any, batch: Counted) -> Tables:
    if batch.numbers[0] > 1:
        raise Absent("numbers above 1 are too many")
    return squares_measure(model, batch)


def no_batches(setup: Setup, measured: Measured) -> list[Batch]:
    raise Absent("there is nothing to do")


def verdict(run: Run, evidence: list[Evidence]) -> Mapping[str, Any]:
    total = int(run.table("squares").square.sum())
    said = {"verdict": "done", "headline": "Squared", "sentence": f"They sum to {total}.", "disagree": []}
    return {**said, "evidence": evidence}


class ToyOptions(StudyOptions):
    """How long a batch takes."""

    n: Annotated[Examples, Field(description="Numbers drawn.")] = 8
    wait: Annotated[float, Field(ge=0, description="Seconds.")] = 0.0


SQUARES = Section("squares", "squares", squares_batches, squares_measure, squares_conclude, SquaresOptions)
ROUNDS = Section("rounds", "in three rounds", rounds_batches, squares_measure, rounds_conclude)
PICKY = Section("picky", "gives up on the way", squares_batches, absent_measure, squares_conclude)
IDLE = Section("idle", "has nothing to do", no_batches, squares_measure, squares_conclude)
STUDY = Study(
    name="toy",
    title="toy study",
    options=ToyOptions,
    sections=(SQUARES, ROUNDS, PICKY, IDLE),
    draw=lambda data, options: {"class": data.examples("class", options.n, options.seed)},
    verdict=verdict,
    comparable=lambda run: run.table("squares"),
    always=("squares",),
)


def run_toy(out: Any = None, wait: float = 0.0, **options: Any) -> Run:
    """The whole study, numbers in pairs."""
    options = {"batch_size": 2, "progress": False, **options}
    return run_study(STUDY, MODEL, Numbers(), out, wait=wait, **options)  # type: ignore[arg-type]


def setup_in(out: Path | None, **options: Any) -> Setup:
    """What the sections plan from, in a run that has no settings but those of its sections."""
    asked = checked(STUDY.options, options)
    chosen = STUDY.chosen(None)
    run = Run.open(out, study="toy", settings={"sections": {n: o.settings() for n, o in chosen.items()}})
    return Setup(MODEL, Numbers(), STUDY.draw(Numbers(), asked), asked, chosen, 2, run)  # type: ignore[arg-type]


def measure_apart(out: str, names: Sequence[str], wait: float) -> None:
    """Measure sections of the run in a folder, and conclude nothing."""
    setup = setup_in(Path(out), wait=wait)
    for name in names:
        measure_section(STUDY.section(name), setup)


def tables_of(run: Run) -> Iterator[tuple[str, Any]]:
    """All finished tables and the values beside them, for comparison."""
    for name in run.tables():
        yield name, run.table(name).to_dict("list")
    for name in ("verdict", "absent"):
        yield name, run.json(name)
