"""What workers need of a study: functions, batches and tables that come back as they went."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import pytest

from gatelens.executors import Done, Fault, InProcess, Measured, Unit
from gatelens.model import HookedVLM
from gatelens.studies import STUDIES
from gatelens.studies.runner import run_study
from study_helpers import TinyData

SMALL: dict[str, Any] = {"n_boot": 20, "progress": False, "limit": 4, "max_new_tokens": 3}


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_every_measure_can_be_pickled(study: Any) -> None:
    for section in study.sections:
        assert pickle.loads(pickle.dumps(section.measure)) is section.measure


class Sent(InProcess):
    """This process, with measures, batches and tables that were pickled on their way."""

    sent = 0

    def run(self, units: Iterable[Unit], done: Done) -> Iterator[Measured | Fault]:
        for unit in units:
            work: Any = unit.measure
            measure, model, batch = work.args
            measure, batch = pickle.loads(pickle.dumps((measure, batch)))
            there = unit._replace(measure=partial(work.func, measure, model, batch))
            for result in super().run([there], done):
                self.sent += 1
                yield result._replace(tables=pickle.loads(pickle.dumps(dict(result.tables))))


def test_batches_of_whats_in_the_image_can_be_sent(tiny_chameleon: HookedVLM) -> None:
    study, executor = STUDIES["whats-in-the-image"], Sent()
    here = run_study(study, tiny_chameleon, TinyData(), **SMALL)
    there = run_study(study, tiny_chameleon, TinyData(), executor=executor, **SMALL)
    assert executor.sent > 0
    assert here.tables() == there.tables() and here.json("absent") == there.json("absent")
    for name in here.tables():
        sides = [run.table(name) for run in (here, there)]
        measured = [c for c in sides[0].columns if not c.startswith("seconds")]  # the clock differs
        pd.testing.assert_frame_equal(*(table[measured] for table in sides))
