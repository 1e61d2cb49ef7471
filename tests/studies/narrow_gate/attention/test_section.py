"""The section *attention* against cached patterns, with row breaks, markers and neither."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from case import cases
from PIL import Image

from gatelens.examples import prepare
from gatelens.measures.attention import image_side_slots, slot_place
from gatelens.model import HookedVLM
from gatelens.studies.narrow_gate.attention import section as attention
from gatelens.studies.narrow_gate.attention.section import listed, note_places, place_name
from gatelens.studies.narrow_gate.study import STUDY
from gatelens.studies.section import Absent
from section_helpers import run_sections, setup_of
from study_helpers import TinyData


@dataclass
class Larger(TinyData):
    """The same in 24x24 pixels: three rows of patches of 8x8, two row breaks between them."""

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        examples = super().examples(task, limit, seed)
        for e in examples:
            e.image = e.image.resize((24, 24), Image.Resampling.NEAREST)
        return examples


@pytest.fixture(scope="module")
def pixtral() -> HookedVLM:
    case = cases()["pixtral"]
    return HookedVLM.from_module(case.model(), case.processor())


@pytest.fixture(scope="module")
def rows(pixtral: HookedVLM) -> Any:
    return run_sections(STUDY, setup_of(STUDY, pixtral, Larger(n=6), {"attention": {}}, size=4))


def by_hand(model: Any, examples: list[Any]) -> dict[tuple[int, str, int], float]:
    """f_j of every layer and position from whole patterns, example by example."""
    shares: dict[tuple[int, str, int], float] = {}
    for e in examples:
        inputs = prepare(model, [e])
        _, cache = model.run_with_cache(inputs, lambda name: name.endswith("attn.hook_pattern"))
        t = inputs.tokens
        side = t.mask("boi | image | row_break | gate")[0]
        text = t.mask("text - gate")[0]
        for layer in range(model.cfg.n_layers):
            f = cache["pattern", layer][0][:, text].sum((0, 1)) * side
            f = f / f.sum()
            count = {"image": -1, "row_break": -1}
            for j in side.nonzero().flatten().tolist():
                kind = next(k for k in ("gate", "boi", "row_break", "image") if t.mask(k)[0, j])
                if kind in count:
                    count[kind] += 1
                key = (layer, kind, count.get(kind, -1))
                shares[key] = shares.get(key, 0.0) + float(f[j]) / len(examples)
    return shares


def test_every_example_is_kept_by_its_id(pixtral: Any, rows: Any) -> None:
    table = rows.table("attention_by_example").set_index(["layer", "group", "id"]).share
    assert len(table) == 3 * 4 * 6  # layers, groups (there is no start of the image), examples
    for example in Larger(n=6).examples("vqa"):
        wanted = by_hand(pixtral, [example])
        for layer in range(3):
            assert table[layer, "gate", example.id] == pytest.approx(wanted[layer, "gate", -1], abs=1e-6)
            last = wanted[layer, "image", 8]
            assert table[layer, "last_image", example.id] == pytest.approx(last, abs=1e-6)
    section = STUDY.section("attention")
    means = section.values(rows).groupby(["metric", "row"]).value.mean()
    cells = section.cells(rows).set_index(["metric", "row"])["mean"]
    assert means.to_dict() == pytest.approx(cells.to_dict(), abs=1e-7)


def test_every_row_break_has_a_row_of_its_own(pixtral: Any, rows: Any) -> None:
    table = rows.table("attention")
    wanted = by_hand(pixtral, Larger(n=6).examples("vqa"))
    got = table.set_index(["layer", "kind", "index"]).share.to_dict()
    assert got.keys() == wanted.keys()
    assert [got[key] for key in wanted] == pytest.approx(list(wanted.values()), abs=1e-5)
    first = table[table.layer == 0]
    assert (first.kind == "row_break").sum() == 2 and (first.kind == "image").sum() == 9
    groups = rows.table("attention_groups").set_index(["layer", "group"]).share
    for layer in range(3):
        assert groups[layer, "row_break"] == pytest.approx(
            sum(wanted[layer, "row_break", i] for i in range(2)), abs=1e-5
        )
        assert groups[layer, "last_image"] == pytest.approx(wanted[layer, "image", 8], abs=1e-5)
        assert groups[layer, "internal_image"] == pytest.approx(
            sum(wanted[layer, "image", i] for i in range(8)), abs=1e-5
        )


@dataclass
class Mixed(Larger):
    """Every other picture in 16x16 pixels: two rows of two patches."""

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        examples = super().examples(task, limit, seed)
        for e in examples[::2]:
            e.image = e.image.resize((16, 16), Image.Resampling.NEAREST)
        return examples


def test_pictures_of_two_sizes_in_a_batch(pixtral: Any) -> None:
    data = Mixed(n=24)
    options = {"attention": {"n": 6}, "modality_gap": {"n": 20}, "meaning": {"folds": 2, "layers": 1}}
    run = run_sections(STUDY, setup_of(STUDY, pixtral, data, options, size=4))
    wanted = by_hand(pixtral, data.examples("vqa")[:6])
    table = run.table("attention")
    got = table.set_index(["layer", "kind", "index"]).share.to_dict()
    assert got.keys() == wanted.keys()
    assert [got[key] for key in wanted] == pytest.approx(list(wanted.values()), abs=1e-5)
    first = table[table.layer == 0].set_index(["kind", "index"])
    assert first.held["image", 3] == 6 and first.held["image", 8] == first.held["row_break", 1] == 3
    assert first.name["image", 3] == "image token 3"  # the start of a row here, the end of one there
    assert first.name["image", 1] == "image token 1 (row 0, column 1)"
    assert set(run.table("modality_gap").layer) == set(run.table("meaning").layer) == {0, 1, 2, 3}
    assert set(run.table("meaning").n) == {24}


def test_positions_are_named_by_their_place(rows: Any) -> None:
    table = rows.table("attention").drop_duplicates(["kind", "index"]).set_index(["kind", "index"])
    assert table.name["image", 4] == "image token 4 (row 1, column 1)"
    assert table.name["row_break", 1] == "row break 1"
    assert table.name["gate", -1] == "gate [IMG_END]"
    # three tokens and a break a row; the end of the last row is the gate
    assert table.order["row_break", 0] == 3 and table.order["image", 3] == 4 and table.order["gate", -1] == 11
    found = rows.table("attention_positions")
    peak = rows.table("attention").groupby(["kind", "index"]).share.max()
    assert len(found) == (peak > 0.01).sum() and found.highest.is_monotonic_decreasing
    assert set(found[found.stands_out].name) <= set(table.name)


def test_a_planted_row_break_is_found(rows: Any) -> None:
    """Whatever the index: half of what the others have goes to one row break."""
    table = rows.table("attention").copy()
    table["se"] = 0.0
    planted = (table.kind == "row_break") & (table["index"] == 1) & (table.layer == 2)
    others = (table.layer == 2) & ~planted
    table.loc[others, "share"] = 0.5 / others.sum()
    table.loc[planted, "share"] = 0.5
    table.loc[table.layer != 2, "share"] = 1 / 12
    found = listed(table, 0.01, 2.0)
    assert found[found.stands_out].name.tolist() == ["row break 1"]
    assert found.layer[0] == 2 and found.token[0] == "[IMG_BREAK]"


def test_a_gate_that_is_a_word_has_no_name_of_its_own(tiny_llava: Any) -> None:
    image = TinyData().examples("class")[0].image
    words = [SimpleNamespace(image=image, prompt=f"<image>{w} animal is a") for w in ("this", "what", "this")]
    places: dict[int, Any] = {}
    note_places(places, prepare(tiny_llava, words).tokens)
    gate = places[1]
    assert slot_place(1) == ("gate", -1) and gate[0] == "" and gate[4] == 16
    assert place_name("gate", -1, gate) == "gate"
    note_places(same := {}, prepare(tiny_llava, words[:1]).tokens)
    assert place_name("gate", -1, same[1]) == "gate this"
    assert {slot_place(s)[0] for s in same} == {"gate", "image"}  # no markers in this family


@pytest.mark.parametrize("family", ["llava", "chameleon"])
def test_families_without_row_breaks(family: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(f"tiny_{family}")
    run = run_sections(STUDY, setup_of(STUDY, model, TinyData(n=4), {"attention": {"n": 4}}))
    wanted = by_hand(model, TinyData(n=4).examples("vqa"))
    got = run.table("attention").set_index(["layer", "kind", "index"]).share.to_dict()
    assert got.keys() == wanted.keys()
    assert [got[key] for key in wanted] == pytest.approx(list(wanted.values()), abs=1e-5)
    groups = set(run.table("attention_groups").group)
    assert groups == {"gate", "last_image", "internal_image"} | ({"boi"} if family == "chameleon" else set())


def test_nothing_asked_is_nothing_made(tiny_llava: Any) -> None:
    setup = setup_of(STUDY, tiny_llava, TinyData(n=4), {"attention": {"n": 0}})
    with pytest.raises(Absent, match="no examples"):
        run_sections(STUDY, setup)
    assert not setup.run.has("attention") and not setup.run.has("attention_positions")


def test_slots_of_a_real_prompt(pixtral: Any) -> None:
    tokens = prepare(pixtral, Larger(n=1).examples("class")).tokens
    slots = image_side_slots(tokens)[0]
    side = [slot_place(s) for s in slots.tolist() if s >= 0]
    assert side == [
        *[("image", i) for i in range(3)],
        ("row_break", 0),
        *[("image", i) for i in range(3, 6)],
        ("row_break", 1),
        *[("image", i) for i in range(6, 9)],
        ("gate", -1),
    ]
    assert torch.equal(slots >= 0, tokens.mask("boi | image | row_break | gate")[0])


def test_no_batch_is_padded(tiny_llava: HookedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding brings a mask of position × position for every example, which fused attention does without."""
    seen = []

    def watched(*args: Any) -> Any:
        inputs = prepare(*args)
        seen.append(inputs.tensors["attention_mask"])
        return inputs

    monkeypatch.setattr(attention, "prepare", watched)
    run_sections(STUDY, setup_of(STUDY, tiny_llava, TinyData(), {"attention": {}}, size=4))
    assert sum(len(mask) for mask in seen) == 12 and len({mask.shape[1] for mask in seen}) == 2
    assert all(bool(mask.all()) for mask in seen)
