"""The gate finder: right on models whose gate is known, wherever names stand, and clear about what it cannot search."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import gatelens as gl
from gatelens.cli import main
from gatelens.errors import DataError, InterventionError
from gatelens.runs import Run
from gatelens.studies.gate_finder.study import STUDY, GateSearch, find_gate
from gatelens.studies.runner import measure_batch, run_study
from gatelens.studies.section import Measured
from gatelens.tokens import Role
from section_helpers import setup_of
from study_helpers import TinyData

SMALL: dict[str, Any] = {"n": 32, "n_pairs": 16, "n_boot": 200, "progress": False}
EXPECTED = {"gated": "narrow", "open": "distributed", "llava": "distributed"}


@pytest.fixture(scope="module")
def gated() -> Any:
    return gl.HookedVLM.from_pretrained("organism:gated")


@pytest.fixture(scope="module")
def searches(gated: Any) -> dict[str, GateSearch]:
    others = {name: find_gate(f"organism:{name}", **SMALL) for name in EXPECTED if name != "gated"}
    return {"gated": find_gate(gated, **SMALL), **others}


@pytest.mark.organism
@pytest.mark.parametrize("name", EXPECTED)
def test_the_verdict_is_the_one_planted(searches: dict[str, GateSearch], name: str) -> None:
    found = searches[name]
    assert found.verdict["verdict"] == EXPECTED[name], str(found)
    assert list(found.verdict["sets"]) == ["resample", "zero", "mask"]
    assert all((one["size"] == 1) == (name == "gated") for one in found.verdict["sets"].values())
    if name != "gated":
        assert found.gate == ()
        assert found.verdict["sets"]["resample"]["low"] > 8
    # The word after the picture draws attention and says nothing: named, not believed.
    assert set(found.verdict["disagree"]) <= {"attention", "overlap"}
    assert all(one in found.verdict["sentence"] for one in found.verdict["disagree"])


@pytest.mark.organism
@pytest.mark.parametrize(
    "measure", ["zero accuracy", "zero log_prob", "mask log_prob", "flipped", "target overlap", "kept"]
)
def test_every_effect_ranks_the_gate_first(searches: dict[str, GateSearch], measure: str) -> None:
    first, second = searches["gated"].ranking(measure).head(2).itertuples()
    assert (first.name, first.position) == ("<eoss>", 66)
    assert first.low > second.high
    assert [p.position for p in searches["gated"].gate] == [66]


@pytest.mark.organism
def test_damage_is_told_from_communication(searches: dict[str, GateSearch]) -> None:
    """Cutting the word after the gate costs nats, but no picture comes through it."""
    found = searches["gated"]
    word = next(p for p in found.places if p.token == "this")
    rows = found.measures[found.measures.place == word.number].set_index("measure")
    assert rows.low["zero log_prob"] > 0.3
    assert rows["mean"]["flipped"] == 0
    assert word.number in found.verdict["sets"]["zero"]["damage"]
    assert "damage" in str(found)


@pytest.mark.organism
def test_what_goes_around_the_gate_and_where_it_carries(searches: dict[str, GateSearch]) -> None:
    assert searches["gated"].settings["around_high"] < 0.1
    assert searches["open"].settings["around_low"] > 0.5
    flips = searches["gated"].layers.query("measure == 'flipped'").set_index("layer")["mean"]
    assert flips[0] == 0  # before any layer every gate is the same token
    assert flips.max() > 0.4


@pytest.mark.organism
@pytest.mark.parametrize("how", ["names", "columns"])
def test_roles_that_lie_change_nothing(gated: Any, searches: dict[str, GateSearch], how: str) -> None:
    """Every role is called something else, or every position has the role of another."""
    named = [Role.SYSTEM, Role.BOI, Role.IMAGE, Role.ROW_BREAK, Role.EOI, Role.QUERY]
    wrong = dict(zip(named, [*named[2:], *named[:2]], strict=True))
    shuffled = copy.copy(gated)

    def prepare(*args: Any, **kwargs: Any) -> Any:
        inputs = gated.prepare(*args, **kwargs)
        roles = inputs.tokens.roles.clone()
        if how == "names":
            for old, new in wrong.items():
                roles[inputs.tokens.roles == old] = new
        else:
            order = torch.randperm(roles.shape[1], generator=torch.Generator().manual_seed(1))
            roles = roles[:, order]
        assert int(roles[0, 66]) != Role.EOI
        return dataclasses.replace(inputs, tokens=dataclasses.replace(inputs.tokens, roles=roles))

    shuffled.prepare = prepare
    found = find_gate(shuffled, **{**SMALL, "how": "zero"})
    assert [p.position for p in found.gate] == [66], str(found)
    assert found.gate[0].role != "eoi"
    assert found.verdict["verdict"] == "narrow"
    before = searches["gated"].ranking("zero log_prob").set_index("position")["mean"]
    after = found.ranking("zero log_prob").set_index("position")["mean"]
    assert before.to_dict() == pytest.approx(after.to_dict(), abs=1e-4)


@pytest.mark.parametrize("family", ["chameleon", "llava"])
def test_random_weights_communicate_nothing(family: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(f"tiny_{family}")
    found = find_gate(model, TinyData(n=40), n=40, n_pairs=12, n_boot=200, batch_size=16, progress=False)
    assert found.verdict["verdict"] == "no communication found", str(found)
    assert found.gate == ()
    assert "does not read the class off the picture" in str(found)
    assert found.settings["naming_p"] > 0.05


@pytest.mark.organism
def test_untrained_organism_communicates_nothing() -> None:
    from gatelens.organisms.build import llava

    found = find_gate(gl.HookedVLM.from_module(*llava(0)), how="zero", **SMALL)
    assert found.verdict["headline"] == "no communication found", str(found)


@pytest.mark.organism
def test_coarse_to_fine(searches: dict[str, GateSearch]) -> None:
    """Blocks that do nothing are not taken apart, their positions come last in the sets, and nothing is missing."""
    found = searches["open"]
    measured = set(found.measures[found.measures.measure == "zero log_prob"].place)
    whole = found.blocks[found.blocks.measure == "shared"]
    apart = [row for row in whole.itertuples() if set(range(row.place, row.last + 1)) <= measured]
    left = [row for row in whole.itertuples() if not set(range(row.place, row.last + 1)) & measured]
    assert len(apart) + len(left) == 8 and apart
    assert max([0.0, *(r.mean for r in left)]) < max(r.mean for r in apart)
    order = found.curves[found.curves.how == "zero"].added.tolist()
    assert sorted(order) == list(range(64))  # nothing after the picture carries it here
    rest = [p for row in left for p in range(row.place, row.last + 1)]
    assert sorted(order[len(order) - len(rest) :]) == sorted(rest)
    assert found.curves.query("how == 'zero'").share.iloc[-1] > 1 - 1e-6


def test_what_cannot_be_searched_is_said(tiny_chameleon: Any) -> None:
    class Asks(TinyData):
        def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
            drawn = super().examples(task, limit, seed)
            drawn[0].prompt = "<image>it shows"
            return drawn

    with pytest.raises(DataError, match=r"2 prompts .* prompt="):
        find_gate(tiny_chameleon, Asks(n=24), progress=False)
    with pytest.raises(DataError, match=r"12 examples .* 20 are needed"):
        find_gate(tiny_chameleon, TinyData(), progress=False)
    with pytest.raises(DataError, match="of one class"):
        find_gate(tiny_chameleon, TinyData(n=24, classes=("red",)), progress=False)
    with pytest.raises(DataError, match="same for every example"):
        find_gate(tiny_chameleon, Same(n=24), progress=False)
    with pytest.raises(DataError, match="begin with the same token"):
        find_gate(tiny_chameleon, Alike(n=24), progress=False)
    with pytest.raises(InterventionError, match="not a kind of knockout"):
        find_gate(tiny_chameleon, TinyData(n=24), how="soft", progress=False)
    for option, value in (("n_pairs", -1), ("refine", -1), ("narrow", 0), ("k", 0), ("block", 0)):
        with pytest.raises(DataError, match=f"option finder.{option}={value}"):
            find_gate("no-such-model", TinyData(n=24), progress=False, **{option: value})


class Alike(TinyData):
    """Two classes whose names begin alike."""

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        drawn = super().examples(task, limit, seed)
        for i, one in enumerate(drawn):
            one.label = ("dog", "dog red")[i % 2]
            one.answers = (one.label,)
        return drawn


class Same(TinyData):
    """One picture for all examples."""

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        drawn = super().examples(task, limit, seed)
        for one in drawn:
            one.image = drawn[0].image
        return drawn


def test_batches_can_be_sent_away_and_taken_up_again(tiny_llava: Any) -> None:
    """Every batch of every round is measured from its pickle; what is measured is not planned anew."""
    section = STUDY.section("finder")
    setup = setup_of(STUDY, tiny_llava, TinyData(n=24, tasks=("class",)), {"finder": {"n_pairs": 6}}, size=8)
    measured, rounds = Measured(), 0
    while True:
        work = section.batches(setup, measured)
        assert len({batch.name for batch in work}) == len(work)
        new = [pickle.loads(pickle.dumps(batch)) for batch in work if batch.name not in measured]
        if not new:
            break
        rounds += 1
        for batch in new:
            measured[batch.name] = measure_batch(section.measure, tiny_llava, batch, lambda steps: None)
    assert rounds >= 6  # one more where blocks are taken apart
    stored = section.conclude(setup, measured)
    alone = find_gate(
        tiny_llava, TinyData(n=24, tasks=("class",)), n=24, n_pairs=6, n_boot=50, batch_size=8, progress=False
    )
    for name in ("measures", "blocks", "curves", "layers"):
        pd.testing.assert_frame_equal(stored[name], getattr(alone, name))


def test_a_run_in_a_folder_is_taken_up_and_read_back(tiny_llava: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"n": 24, "n_boot": 50, "how": "zero", "progress": False}
    run = run_study(STUDY, tiny_llava, TinyData(n=24), tmp_path / "gate", **asked)
    names = {"manifest.json", "verdict.json", "measures.parquet", "curves.parquet", "report.html"}
    assert names <= {p.name for p in (tmp_path / "gate").iterdir()}
    assert "no communication found" in "\n".join(STUDY.summary(run))
    stored = GateSearch.load(tmp_path / "gate")
    verdict = run.json("verdict")
    assert verdict.pop("answer").startswith(
        "The model does not read the class"
    )  # the report's first sentence
    assert stored.verdict == verdict and stored.measures.equals(run.table("measures"))
    before = run.seconds()
    again = run_study(STUDY, tiny_llava, TinyData(n=24), tmp_path / "gate", **asked)
    assert again.seconds() == before and again.json("verdict") == run.json("verdict")
    assert Run.load(tmp_path / "gate").study == "find-gate"


def test_command(
    tiny_chameleon: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", lambda name, **_: tiny_chameleon)
    monkeypatch.setattr("gatelens.identity.load", lambda name, **_: TinyData(n=24))
    out = tmp_path / "gate"
    command = ["find-gate", "--model", "tiny", "--n", "24", "--how", "zero", "--quiet", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "no communication found" in printed.out and "report.html" in printed.out
    assert printed.err == ""
    names = {"manifest.json", "verdict.json", "measures.parquet", "curves.parquet", "report.html"}
    assert names <= {p.name for p in out.iterdir()}
    assert main(["find-gate", "--model", "tiny", "--how", "soft"]) == 2
