"""Where batches are measured: here, or in another process that loads the model by its name."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from gatelens.errors import InterventionError
from gatelens.model import HookedVLM
from gatelens.studies import STUDIES, narrow_gate
from gatelens.studies.executors import Here, Measure
from gatelens.studies.runner import run_study
from gatelens.studies.section import Batch, Tables
from study_helpers import TinyData
from toy_study import elsewhere, failing_measure, loaded_model, run_toy, tables_of

MODEL = "organism:gated"


@dataclass
class InProcesses:
    """Batches measured in processes of their own; each loads the model once."""

    context: Any
    load: Any
    argument: Any
    n: int = 2

    def run(self, measure: Measure, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Tables, float]]:
        """``(batch, its tables, seconds it took)`` as they are ready."""
        with ProcessPoolExecutor(self.n, self.context, self.load, (self.argument,)) as pool:
            for done in as_completed([pool.submit(elsewhere, measure, batch) for batch in batches]):
                yield done.result()


def test_another_process_gives_equal_tables(processes: Any) -> None:
    """Sections of the narrow-gate study: their functions and batches can be sent away."""
    asked: dict[str, Any] = {"sections": "knockouts,attention", "limit": 6, "n_boot": 50, "progress": False}
    model = HookedVLM.from_pretrained(MODEL)
    here = narrow_gate(model, **asked)
    there = narrow_gate(model, **asked, executor=InProcesses(processes, loaded_model, MODEL, 1))
    assert here.tables() == there.tables() and here.has("attention_positions")
    for name in here.tables():
        pd.testing.assert_frame_equal(here.table(name), there.table(name))
    assert here.json("verdict") == there.json("verdict")
    assert here.settings == there.settings


def test_several_processes_and_rounds(processes: Any) -> None:
    """Batches are ready in any order, later rounds wait for earlier ones, and what is absent is absent there too."""
    assert dict(tables_of(run_toy(executor=InProcesses(processes, loaded_model, None)))) == dict(
        tables_of(run_toy())
    )


def test_errors_of_another_process_are_the_same(processes: Any) -> None:
    executor = InProcesses(processes, loaded_model, None)
    with pytest.raises(InterventionError, match="a row left with nothing"):
        list(executor.run(failing_measure, [Batch("a")]))


def test_here_measures_lazily() -> None:
    """Each batch is saved before the next one begins."""
    seen: list[str] = []

    def measure(model: Any, batch: Batch) -> Tables:
        seen.append(batch.name)
        return {"t": pd.DataFrame({"name": [batch.name]})}

    results = Here(None).run(measure, [Batch("a"), Batch("b")])  # type: ignore[arg-type]
    assert seen == []
    batch, tables, seconds = next(results)
    assert seen == ["a"] and batch.name == "a" and seconds >= 0
    assert list(tables["t"].name) == ["a"]
    assert [b.name for b, _, _ in results] == ["b"]


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_what_measures_can_be_sent_away(study: Any) -> None:
    for section in study.sections:
        assert pickle.loads(pickle.dumps(section.measure)) is section.measure


class Sent(Here):
    """Here, with batches and tables that were sent somewhere and back."""

    def run(self, measure: Measure, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Tables, float]]:
        sent = pickle.loads(pickle.dumps(batches))
        yield from (pickle.loads(pickle.dumps(result)) for result in super().run(measure, sent))


SMALL: dict[str, Any] = {"n_boot": 20, "progress": False, "limit": 4, "batch_size": 2}


@pytest.mark.parametrize("study", ["narrow-gate", "whats-in-the-image"])
def test_batches_of_every_section_can_be_sent_away(tiny_chameleon: HookedVLM, study: str) -> None:
    further = {
        "narrow-gate": {"caption_tokens": 2, "vqa_tokens": 2},
        "whats-in-the-image": {"max_new_tokens": 3},
    }
    asked = {**SMALL, **further[study]}
    here = run_study(STUDIES[study], tiny_chameleon, TinyData(), **asked)
    there = run_study(STUDIES[study], tiny_chameleon, TinyData(), executor=Sent(tiny_chameleon), **asked)
    assert here.tables() == there.tables() and here.json("absent") == there.json("absent")
    for name in here.tables():
        sides = [run.table(name).drop(columns="seconds", errors="ignore") for run in (here, there)]
        pd.testing.assert_frame_equal(*sides)
