"""The finder as a section: the same search as find_gate, held against the study's own gate, or a reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gatelens.studies.common import prepare
from gatelens.studies.gate_finder.setup import Setup

from gate_search_helpers import made_up
from gatelens.runs import Run
from gatelens.studies import find_gate, narrow_gate
from gatelens.studies.gate_finder.result import GateSearch
from gatelens.studies.gate_finder.search import Search
from gatelens.studies.gate_finder.verdict import gate_verdict
from gatelens.studies.narrow_gate.finder import evidence, finder_evidence, gate_places
from study_helpers import TinyData

OPTIONS: dict[str, Any] = {"n": 24, "n_pairs": 6}
SMALL: dict[str, Any] = {"sections": {"finder": OPTIONS}, "n_boot": 50, "batch_size": 8, "progress": False}
CLASSES = TinyData(n=24, tasks=("class",))


@pytest.fixture(scope="module")
def finished(tiny_llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return narrow_gate(tiny_llava, CLASSES, tmp_path_factory.mktemp("runs") / "llava", **SMALL)


def test_it_is_the_search_of_find_gate(finished: Run, tiny_llava: Any) -> None:
    alone = find_gate(
        tiny_llava, CLASSES, n=24, how="zero", n_pairs=6, n_boot=50, batch_size=8, progress=False
    )
    stored = GateSearch.from_run(finished, "finder")
    for name in ("measures", "blocks", "curves", "layers"):
        assert getattr(stored, name).equals(getattr(alone, name)), name
    assert stored.places == alone.places
    assert repr(stored.verdict) == repr(alone.verdict)  # repr: a share of nothing is nan
    assert {k: v for k, v in stored.settings.items() if k != "gate"}.items() <= alone.settings.items()
    assert {f"finder_{n}" for n in ("places", "measures", "blocks", "curves", "layers")} <= set(
        finished.tables()
    )


def test_an_untrained_model_is_no_evidence(finished: Run) -> None:
    (said,) = evidence(finished)
    assert said["says"] == "inconclusive" and "no gate to look for" in said["text"]
    assert said in finished.json("verdict")["evidence"]
    assert not said["text"].endswith(".")


def test_a_finished_search_is_not_done_again(
    finished: Run, tiny_llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "run", lambda *_: pytest.fail("searched again"))
    again = narrow_gate(tiny_llava, CLASSES, finished.path, **SMALL)
    assert evidence(again) == evidence(finished)


@pytest.mark.parametrize(("family", "token"), [("chameleon", "<eoss>"), ("llava", "this")])
def test_the_studys_gate_among_the_candidates(
    family: str, token: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"tiny_{family}")
    examples = CLASSES.examples("class")
    setup = Setup(model, examples, 0, 50, 8)
    (gate,) = [setup.places.all[p] for p in gate_places(setup)]
    assert gate.token == token
    assert gate.position == prepare(model, examples[:1]).tokens.positions("gate")[0]
    short = [type(e)(**{**vars(e), "prompt": "<image>this animal"}) for e in examples]
    if (
        family == "llava"
    ):  # a prompt of one word less still has its gate; of one word, the gate is what answers
        assert len(gate_places(Setup(model, short, 0, 50, 8))) == 1


def test_agreement_with_the_studys_gate() -> None:
    """The made-up gate is place 64; what the study calls its gate decides."""
    same = made_up(gate=0)
    same.settings["gate"] = [64]
    said = finder_evidence(same)
    assert said["says"] == "narrow"
    assert "1 [1, 1] is enough: <eoss> (position 66) cut" in said["text"] and "99\u00a0%" in said["text"]
    other = made_up(gate=1)
    other.settings["gate"] = [64]
    said = finder_evidence(other)
    assert said["says"] == "mixed"
    assert "this (position 67)" in said["text"] and "another token" in said["text"]
    assert said["text"].endswith("which is <eoss> (position 66)")
    other.settings["gate"] = []
    assert finder_evidence(other)["text"].endswith("the answering position itself")


def resized(found: GateSearch, **changes: Any) -> GateSearch:
    sets = {how: {**one, **changes} for how, one in found.verdict["sets"].items()}
    found.verdict = gate_verdict(found.places, found.measures, sets, found.settings)
    found.settings["gate"] = [64]
    return found


def test_sets_of_several_and_many_and_of_unsure_size() -> None:
    several = finder_evidence(resized(made_up(), size=2, high=3, places=[65, 64]))
    assert several["says"] == "narrow" and "2 [1, 3] are enough: this" in several["text"]
    many = finder_evidence(resized(made_up(), size=40, low=30, high=50, places=list(range(40))))
    assert many["says"] == "distributed" and "holds 40 [30, 50]" in many["text"]
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
def test_what_cannot_be_searched_is_absent_and_says_why(
    tiny_llava: Any, tmp_path: Path, data: TinyData, reason: str
) -> None:
    run = narrow_gate(tiny_llava, data, tmp_path / "r", vqa_tokens=1, **SMALL)
    assert reason in run.json("finder")["why_not"]
    assert evidence(run) == [] and not run.done("finder_measures")
    page = (tmp_path / "r" / "report.html").read_text()
    assert "Nothing was searched: " in page and reason in page


def test_a_run_without_the_section_says_nothing(tiny_llava: Any) -> None:
    run = narrow_gate(tiny_llava, CLASSES, None, **{**SMALL, "sections": "knockouts"})
    assert evidence(run) == [] and not run.done("finder")


@pytest.mark.organism
def test_the_planted_gate_is_the_studys_gate() -> None:
    sections = {"finder": {"n": 32, "n_pairs": 8, "refine": 1}}
    run = narrow_gate(
        "organism:gated", n_class=32, n_vqa=0, n_caption=0, sections=sections,
        n_boot=200, random_repeats=1, progress=False,
    )  # fmt: skip
    (said,) = evidence(run)
    assert said["says"] == "narrow", said
    assert "<eoss> (position 66)" in said["text"]
    assert run.json("tokens")["gate"]["position"] == 66
    assert run.json("verdict")["disagree"] == []
