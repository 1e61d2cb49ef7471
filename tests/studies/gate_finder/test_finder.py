"""The gate finder: right on models whose gate is known, wherever names stand, and exact in what it cuts."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from gatelens.studies.gate_finder.attention import add_attention
from gatelens.studies.gate_finder.knockouts import clean_run, knockouts
from gatelens.studies.gate_finder.overlap import add_overlap
from gatelens.studies.gate_finder.patching import draw_pairs, patched
from gatelens.studies.gate_finder.rows import Rows
from gatelens.studies.gate_finder.setup import Setup

import gatelens as gl
from gatelens.cli import main
from gatelens.errors import DataError
from gatelens.roles import Role
from gatelens.studies import find_gate
from gatelens.studies.gate_finder.places import find_places
from gatelens.studies.gate_finder.result import GateSearch
from study_helpers import TinyData

SMALL: dict[str, Any] = {"n": 48, "n_pairs": 24, "n_boot": 300, "progress": False}
EXPECTED = {"gated": "narrow", "open": "distributed", "llava": "distributed"}


@pytest.fixture(scope="module")
def gated() -> Any:
    return gl.HookedVLM.from_pretrained("organism:gated")


@pytest.fixture(scope="module")
def searches(gated: Any) -> dict[str, GateSearch]:
    return {name: find_gate(gated if name == "gated" else f"organism:{name}", **SMALL) for name in EXPECTED}


def examples(n: int = 24) -> list[Any]:
    return TinyData(n=n).examples("class")


def tiny_setup(model: Any, n: int = 24, size: int = 8) -> Setup:
    return Setup(model, examples(n), 0, 100, size)


@pytest.mark.organism
@pytest.mark.parametrize("name", EXPECTED)
def test_the_verdict_is_the_one_planted(searches: dict[str, GateSearch], name: str) -> None:
    found = searches[name]
    assert found.verdict["verdict"] == EXPECTED[name], str(found)
    assert {one: s["size"] == 1 for one, s in found.verdict["sets"].items()} == {
        "zero": name == "gated",
        "mask": name == "gated",
    }
    if name != "gated":
        assert found.gate == ()
        assert found.verdict["sets"]["zero"]["low"] > 8
    # In the open models the word behind the picture draws attention and says nothing: named, not believed.
    assert set(found.verdict["disagree"]) <= ({"overlap"} if name == "gated" else {"attention", "overlap"})
    assert all(one in found.verdict["sentence"] for one in found.verdict["disagree"])


@pytest.mark.organism
@pytest.mark.parametrize(
    "measure",
    ["attention", "overlap", "zero accuracy", "zero log_prob", "mask log_prob", "flipped", "target overlap"],
)
def test_every_measure_ranks_the_gate_first(searches: dict[str, GateSearch], measure: str) -> None:
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
    whole = found.blocks[found.blocks.measure == "zero log_prob"]
    apart = [row for row in whole.itertuples() if set(range(row.place, row.last + 1)) <= measured]
    left = [row for row in whole.itertuples() if not set(range(row.place, row.last + 1)) & measured]
    assert len(apart) + len(left) == 8 and apart and left
    assert max(r.mean for r in left) < max(r.mean for r in apart)
    order = found.curves[found.curves.how == "zero"].added.tolist()
    assert sorted(order) == list(range(64))  # nothing behind the picture carries it here
    rest = [p for row in left for p in range(row.place, row.last + 1)]
    assert sorted(order[-len(rest) :]) == sorted(rest)
    assert found.curves.query("how == 'zero'").share.iloc[-1] > 1 - 1e-6


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_a_cut_is_what_it_says(tiny_chameleon: Any, how: Any) -> None:
    """Against hooks written out: rows behind the picture lose the columns, each place keeps itself."""
    setup = tiny_setup(tiny_chameleon)
    batch, places = setup.places.batches[0], setup.places
    chosen = [places.picture[3], places.picture[9], *places.behind[:2]]
    assert len(places.picture) == 16 and places.all[places.behind[0]].token == "<eoss>"
    columns = [int(batch.columns[0, p]) for p in chosen]
    first_behind = int(batch.columns[0, places.picture[-1]]) + 1

    def cut(tensor: Any, hook: Any) -> Any:
        tensor = tensor.clone()
        for row in range(first_behind, tensor.shape[2]):
            for column in columns:
                if column != row:
                    tensor[:, :, row, column] = float("-inf") if how == "mask" else 0.0
        return tensor

    name = {"mask": "attn.hook_attn_scores", "zero": "attn.hook_pattern"}[how]
    hooks = [(f"blocks.{layer}.{name}", cut) for layer in range(3)]
    expected = tiny_chameleon.run_with_hooks(batch.inputs, fwd_hooks=hooks)[:, -1]
    got = tiny_chameleon.run(batch.inputs, knockouts(batch, places, chosen, how))[:, -1]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    spared = tiny_chameleon.run(
        batch.inputs, knockouts(batch, places, places.picture, how, places.behind[:1])
    )
    rows = "text - gate"
    plain = tiny_chameleon.run(batch.inputs, gl.knockout(rows, "image", how=how))
    torch.testing.assert_close(spared[:, -1], plain[:, -1], atol=1e-5, rtol=1e-5)


def test_patching_every_candidate_gives_the_other_answer(tiny: Any) -> None:
    """The candidates leave out nothing through which the picture could come, and pairs are not mixed up."""
    setup = tiny_setup(tiny)
    answers, places = clean_run(setup).answers, setup.places
    every = [p.number for p in places.all]
    moved = patched(setup, answers, [every, places.picture, places.behind], 10)
    assert moved.flipped[0].tolist() == [1.0] * 10
    pairs = draw_pairs(setup, 10)
    base, target = zip(*pairs.items(), strict=True)
    own = torch.stack([answers[i] for i in base])
    other = torch.stack([answers[i] for i in target])
    expected = 1 - torch.minimum(own, other).sum(-1)
    torch.testing.assert_close(torch.tensor(moved.gain[0]), expected.double(), atol=1e-4, rtol=1e-4)
    assert not (moved.gain[2] == moved.gain[0]).all()
    assert all(setup.labels[a] != setup.labels[b] for a, b in pairs.items())


def test_attention_and_overlap_by_hand(tiny_chameleon: Any) -> None:
    setup = tiny_setup(tiny_chameleon)
    rows = Rows(100, 0)
    add_attention(setup, rows)
    got = {r["place"]: r["mean"] for r in rows.found}
    total = torch.zeros(len(setup.places.all), dtype=torch.float64)
    count = 0
    for batch in setup.places.batches:
        _, cache = tiny_chameleon.run_with_cache(
            batch.inputs, names_filter=lambda n: n.endswith("hook_pattern")
        )
        for row in range(len(batch.examples)):
            first = int(batch.columns[row, setup.places.picture[-1]]) + 1
            for layer in range(3):
                pattern = cache[f"blocks.{layer}.attn.hook_pattern"][row].double().mean(0)
                mass = []
                for column in batch.columns[row].tolist():
                    readers = [i for i in range(first, pattern.shape[0]) if i > column]
                    mass.append(sum(float(pattern[i, column]) for i in readers) / len(readers))
                total += torch.tensor(mass, dtype=torch.float64) / sum(mass) / 3
            count += 1
    for place, mean in got.items():
        assert mean == pytest.approx(float(total[place]) / count, abs=1e-5)
    assert sum(got.values()) == pytest.approx(1.0, abs=1e-5)


def test_the_picture_is_found_without_its_names(tiny: Any) -> None:
    places = find_places(tiny, examples(), [list(range(12)), list(range(12, 24))], 5)
    batch = places.batches[0]
    tokens = batch.inputs.tokens
    assert batch.mask(places.picture).equal(tokens.mask("image"))
    assert batch.mask(places.behind).equal(tokens.mask("(eoi | query) - last"))
    assert [len(b.examples) for b in places.batches] == [5, 5, 2, 5, 5, 2]
    assert [len(b) for b in places.blocks()] == [4, 4, 4, 4]
    assert [len(b) for b in places.blocks(7)] == [7, 7, 2]


def test_pictures_of_other_sizes_are_aligned_by_number_in_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of several sizes: a place is missing where the grid is smaller, and the words still line up."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "families"))
    pixtral = importlib.import_module("cases.pixtral")
    model = gl.HookedVLM.from_module(pixtral.pixtral(), pixtral.processor())
    drawn = TinyData(n=24).examples("class")
    for i, one in enumerate(drawn):
        one.image = one.image.resize([(16, 16), (24, 16), (16, 32)][i % 3])
    setup = Setup(model, drawn, 0, 50, 7)
    places = setup.places
    assert [p.token for p in places.all if not p.in_picture] == ["[IMG_END]", "this", "animal", "is"]
    for batch in places.batches:
        tokens = batch.inputs.tokens
        assert batch.mask(places.picture).equal(tokens.mask("image | row_break"))
        assert batch.mask(places.behind[:1]).equal(tokens.mask("eoi"))
        assert batch.behind.equal(tokens.mask("eoi | query"))
    assert not setup.has().all()
    moved = patched(setup, clean_run(setup).answers, [places.behind, places.behind[:1]], 9)
    assert moved.flipped.shape == (2, 9) and not torch.tensor(moved.gain).isnan().any()
    rows = Rows(50, 0)
    add_attention(setup, rows)
    add_overlap(setup, rows, 1)
    last = places.picture[-1]
    assert {r["n"] for r in rows.found if r["place"] == last} < {8, 16}


def test_what_cannot_be_searched_is_said(tiny_chameleon: Any) -> None:
    class Asks(TinyData):
        def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
            found = super().examples(task, limit, seed)
            found[0].prompt = "<image>it shows"
            return found

    with pytest.raises(DataError, match=r"2 prompts .* prompt="):
        find_gate(tiny_chameleon, Asks(n=24), progress=False)
    with pytest.raises(DataError, match=r"12 examples .* 20 are needed"):
        find_gate(tiny_chameleon, TinyData(), progress=False)
    with pytest.raises(DataError, match="of one class"):
        find_gate(tiny_chameleon, TinyData(n=24, classes=("red",)), progress=False)
    same = examples()
    for one in same:
        one.image = same[0].image
    with pytest.raises(DataError, match="same for every example"):
        find_places(tiny_chameleon, same, [list(range(24))], 8)
    with pytest.raises(gl.errors.InterventionError, match="no kind of knockout"):
        find_gate(tiny_chameleon, TinyData(n=24), how="soft", progress=False)


def test_command(
    tiny_chameleon: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", lambda name, **_: tiny_chameleon)
    monkeypatch.setattr("gatelens.data.load", lambda name, **_: TinyData(n=24), raising=False)
    out = tmp_path / "gate"
    command = ["find-gate", "--model", "tiny", "--n", "24", "--how", "zero", "--quiet", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "no communication found" in printed.out and "report.html" in printed.out
    assert printed.err == ""
    names = {"manifest.json", "verdict.json", "measures.parquet", "curves.parquet", "report.html"}
    assert names <= {p.name for p in out.iterdir()}
    assert main(["find-gate", "--model", "tiny", "--how", "soft"]) == 2
