"""The finder as a section: the same search as find_gate, held against the study's own gate, or a reason why not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import pytest

from gate_search_helpers import Measurements, made_up
from gatelens.data import load
from gatelens.examples import prepare
from gatelens.model import HookedVLM
from gatelens.plots.card import Chart, Table
from gatelens.runs import Run
from gatelens.studies.gate_finder.result import SearchResult
from gatelens.studies.gate_finder.study import STUDY, find_gate
from gatelens.studies.gate_finder.verdict import gate_verdict
from gatelens.studies.narrow_gate.finder import (
    CALLED,
    SECTION,
    candidate,
    evidence,
    finder_evidence,
    page,
    search_of,
)
from gatelens.studies.section import Absent
from section_helpers import run_section, setup_of
from study_helpers import TinyData

ALONE = dataclasses.replace(STUDY, name="narrow-gate", sections=(SECTION,), settings=lambda *_: {})
OPTIONS: dict[str, Any] = {"n": 24, "n_pairs": 6}
CLASSES = TinyData(n=24, tasks=("class",))


def search(model: Any, data: TinyData = CLASSES) -> Run:
    """The section alone, measured on a model the test holds."""
    return run_section(ALONE, "finder", setup_of(ALONE, model, data, {"finder": OPTIONS}, 8, how="zero"))


@pytest.fixture(scope="module")
def finished(tiny_llava: Any) -> Run:
    return search(tiny_llava)


def test_it_is_the_search_of_find_gate(finished: Run, tiny_llava: Any) -> None:
    alone = find_gate(
        tiny_llava, CLASSES, n=24, how="zero", n_pairs=6, n_boot=50, batch_size=8, progress=False
    )
    stored = search_of(finished)
    assert stored is not None
    for name in ("measures", "blocks", "curves", "layers"):
        pd.testing.assert_frame_equal(getattr(stored, name), getattr(alone, name))
    assert stored.places == alone.places
    assert repr(stored.verdict) == repr(alone.verdict)  # repr: a share of nothing is nan
    assert stored.settings.items() <= alone.settings.items()
    assert {f"finder_{n}" for n in ("places", "measures", "blocks", "curves", "layers")} <= set(
        finished.tables()
    )


def test_values_by_example_average_to_what_two_runs_are_compared_in(finished: Run) -> None:
    cells = SECTION.cells(finished).set_index(["how", "metric", "row"])["mean"]
    means = SECTION.values(finished).groupby(["how", "metric", "row"]).value.mean()
    lost = cells[cells.index.get_level_values("metric") == "accuracy lost"]
    assert len(lost) and set(lost.index) <= set(means.index)
    assert means.to_dict() == pytest.approx(cells[means.index].to_dict(), abs=1e-5)
    other = finished.table("finder_by_example")
    assert set(other.id) <= {e.id for e in CLASSES.examples("class")}


def test_an_untrained_model_is_no_evidence(finished: Run) -> None:
    (said,) = evidence(finished)
    assert said["says"] == "inconclusive" and "no gate to look for" in said["text"]
    assert not said["text"].endswith(".")


@pytest.mark.parametrize(("family", "token"), [("chameleon", "<eoss>"), ("llava", "this")])
def test_the_studys_gate_among_the_candidates(
    family: str, token: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"tiny_{family}")
    examples = CLASSES.examples("class")
    layout = Measurements(model, examples).layout
    (gate,) = [layout.places[p] for p in layout.gate]
    assert gate.token == token
    assert gate.position == prepare(model, examples[:1]).tokens.positions("gate")[0]
    short = [type(e)(**{**vars(e), "prompt": "<image>this animal"}) for e in examples]
    if family == "llava":  # a prompt of one word less still has its gate
        assert len(Measurements(model, short).layout.gate) == 1


def test_agreement_with_the_studys_gate() -> None:
    """The made-up gate is place 64; what the study calls its gate decides."""
    same = made_up(gate=0)
    same.settings["gate"] = [64]
    said = finder_evidence(same)
    assert said["says"] == "narrow"
    assert (
        "1 [1, 1] is enough: <eoss> (position 66), kept alone and taken away, carries" in said["text"]
        and "99\u00a0%" in said["text"]
    )
    other = made_up(gate=1)
    other.settings["gate"] = [64]
    said = finder_evidence(other)
    assert said["says"] == "another gate"
    assert "this (position 67)" in said["text"] and "another token" in said["text"]
    assert said["text"].endswith("which is <eoss> (position 66)")
    other.settings["gate"] = []
    assert finder_evidence(other)["text"].endswith("the answering position itself")


def resized(found: Any, **changes: Any) -> SearchResult:
    sets = {how: {**one, **changes} for how, one in found.verdict["sets"].items()}
    found.verdict = gate_verdict(found.places, found.measures, sets, found.settings)
    found.settings["gate"] = [64]
    return found


def test_sets_of_several_and_many_and_of_unsure_size() -> None:
    several = finder_evidence(resized(made_up(), size=2, high=3, places=[65, 64]))
    assert several["says"] == "narrow" and "at most 2 [1, 3] are enough: this" in several["text"]
    many = finder_evidence(resized(made_up(), size=40, low=30, high=50, places=list(range(40))))
    assert many["says"] == "distributed" and "holds at most 40 [30, 50]" in many["text"]
    for one in (several, many):  # what the interval leaves open is said beside it
        assert "upper bound" in one["text"] and "along the one order" in one["text"]
    assert "do not agree: patching, attention, overlap" in many["text"]
    unsure = finder_evidence(resized(made_up(), size=3, low=1, high=30, places=[1, 2, 3]))
    assert unsure["says"] == "inconclusive" and "give more examples" in unsure["text"]


class Asks(TinyData):
    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        found = super().examples(task, limit, seed)
        found[0].prompt = "<image>it shows"
        return found


class Same(TinyData):
    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        found = super().examples(task, limit, seed)
        for one in found:
            one.image = found[0].image
        return found


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (Asks(n=24, tasks=("class",)), "asks 2 prompts"),
        (TinyData(n=12, tasks=("class",)), "gives 12 examples of the task class, 20 are needed"),
        (TinyData(n=24, tasks=("class",), classes=("red",)), "examples of one class alone"),
        (TinyData(n=24, tasks=("vqa",)), "has no task class"),
        (Same(n=24, tasks=("class",)), "input is the same for every example"),
    ],
)
def test_what_cannot_be_searched_is_absent_and_says_why(tiny_llava: Any, data: TinyData, reason: str) -> None:
    with pytest.raises(Absent, match=reason):
        search(tiny_llava, data)


def stored(result: Any) -> Run:
    """A run of the study that holds this search."""
    run = Run.open(None, study="narrow-gate", settings={})
    for name, value in result.stored().items():
        run.save(CALLED[name], value)
    return run


def test_a_run_without_the_section_says_nothing() -> None:
    run = Run.open(None, study="narrow-gate", settings={})
    assert evidence(run) == [] and page(run) == []


def test_the_card_shows_the_stored_search() -> None:
    result = made_up(gate=1)
    (one,) = page(stored(result))
    figure, layers, table = one.blocks
    assert isinstance(figure, Chart) and isinstance(layers, Chart) and isinstance(table, Table)
    assert (figure.name, layers.name) == ("finder", "finder_layers")
    assert one.finding == "1 [1, 1] of 67 positions carries 99\u00a0% of the picture: this (position 67)"
    assert len(figure.draw(False).axes) == 6 and len(layers.draw(True).axes) == 1
    assert len(table.rows) == 12 and {len(row) for row in table.rows} == {len(table.header)}
    assert table.rows[0][0] == ("◆ this", "position 67, query")
    nats = list(table.header).index("zero:\nnats lost")
    assert table.rows[0][nats] == ("0.80", "0.78 – 0.82")
    assert "smallest set" in one.words


@pytest.mark.organism
def test_the_planted_gate_is_the_studys_gate() -> None:
    model = HookedVLM.from_pretrained("organism:gated")
    sections = {"finder": {"n": 32, "n_pairs": 8, "refine": 1}}
    data = load("emoji-scenes")
    setup = setup_of(ALONE, model, data, sections, 32, how="zero", n_boot=200)
    drawn = {"class": data.examples("class", 32, 0)}
    run = run_section(ALONE, "finder", dataclasses.replace(setup, drawn=drawn))
    (said,) = evidence(run)
    assert said["says"] == "narrow", said
    assert "<eoss> (position 66)" in said["text"]
    result = search_of(run)
    assert result is not None and [result.places[p].position for p in result.settings["gate"]] == [66]


def test_a_set_elsewhere_is_a_candidate_and_the_gate_itself_is_none() -> None:
    same, other = made_up(gate=0), made_up(gate=1)
    for one in (same, other):
        one.settings["gate"] = [64]
    assert candidate(None) is None and candidate(same) is None
    found = candidate(other)
    assert found is not None and found.name == "this (position 67)" and not found.holds_gate
    several = candidate(resized(made_up(), size=2, high=3, places=[65, 64]))
    assert several is not None and several.holds_gate
    # cut it does harm, but what another picture has there changes no answer: damage, not communication
    harmful = made_up(gate=1, joint_mean=0.02, joint_low=0.0, joint_high=0.06)
    harmful.settings["gate"] = [64]
    assert harmful.verdict["verdict"] == "narrow" and candidate(harmful) is None
