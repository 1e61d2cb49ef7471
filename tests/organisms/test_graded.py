"""How carriers are planted in graded organisms, by brute force; and how their truth is measured, against the engine."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, ChameleonForConditionalGeneration

import gatelens as gl
from gatelens.model.differences import add_difference, read_difference
from gatelens.organisms import folder
from gatelens.organisms.graded import card
from gatelens.organisms.graded import cuts as cutting
from gatelens.organisms.graded.cases import graded_case, measured_facts
from gatelens.organisms.graded.kinds import EOI, FACTS, IMAGE, KINDS, QUESTIONS, TEXT, Kind
from gatelens.organisms.graded.train import difference, prepare
from gatelens.organisms.graded.truth import FactRuns
from gatelens.shipped_organisms import DIFFERENCE_FILE, graded_names, organism_folder

ALL = (*IMAGE, EOI)
PARTNER = torch.tensor([1, 0, 3, 2, 5, 4])
LENGTHS = {"class": 3, "color": 10, "shape": 9, "side": 9}


def packed_rows(kind: Kind) -> list[cutting.Rows]:
    rows, at = [], TEXT
    for fact in kind.facts:
        rows.append(cutting.Rows(fact, at, at + LENGTHS[fact] - 1, at + LENGTHS[fact] + 1))
        at = rows[-1].end
    return rows


@pytest.fixture(scope="module", params=["gate-at-text-0", "redundant-gate-and-image", "read-in-layers-2-3"])
def drawn(request):
    kind = KINDS[request.param]
    rows = packed_rows(kind)
    return kind, rows, cutting.draw_cuts(kind, rows, 40, np.random.default_rng(0))


def unread(layer: cutting.LayerCuts, document: int, row: int) -> tuple[set[int], set[int], set[int]]:
    return tuple(
        set(mask[document, row - TEXT].nonzero().flatten().tolist())
        for mask in (layer.hidden, layer.emptied, layer.swapped)
    )


def test_an_answering_row_loses_what_its_cut_says(drawn):
    kind, rows, cuts = drawn
    met = set()
    for document in range(len(cuts.cuts)):
        for number, one in enumerate(rows):
            name = cutting.CUTS[cuts.cuts[document, number]]
            met.add(name)
            gates = {one.first} if kind.gates_in_text else set()
            carriers = {one.packed(p) for p in kind.positions(one.fact)}
            everything = {*ALL, *gates}
            causal = {*range(TEXT), *range(one.first, one.answering + 1)}
            future = set(range(rows[-1].end)) - causal
            for where in ("reading", "closed"):
                hidden, emptied, swapped = unread(getattr(cuts, where), document, one.answering)
                assert hidden >= future
                lost = {"mask": hidden - future, "zero": emptied, "swap": swapped}
                left = carriers if where == "reading" else set()
                how = "mask" if name.endswith("mask") else "zero" if name.endswith("zero") else "swap"
                assert not any(keys for kind_of_cut, keys in lost.items() if kind_of_cut != how)
                assert name.startswith("only") or cuts.alone[document, number] == -1
                if name == "plain":
                    assert not lost[how]
                elif name.startswith("only"):  # at least one group is left, and all others are gone
                    kept = everything - lost[how]
                    assert kept <= left and (where == "closed" or kept)
                    if where == "reading":
                        groups = [{one.packed(p) for p in group} for group in kind.carriers[one.fact]]
                        assert any(group <= kept for group in groups)
                        assert cuts.alone[document, number] == (groups.index(kept) if kept in groups else -1)
                elif name.startswith("others"):
                    assert lost[how] == everything - left
                else:
                    assert lost[how] == left
    assert met == set(cutting.CUTS)


def test_each_of_several_groups_is_often_read_alone():
    kind = KINDS["redundant-4"]
    rows = packed_rows(kind)
    alone = cutting.draw_cuts(kind, rows, 400, np.random.default_rng(3)).alone
    shares = [(alone == group).float().mean() for group in range(4)]
    assert all(0.06 <= share <= 0.11 for share in shares), (
        shares
    )  # (0.28 + 0.24) * (1/2 + 1/2 * 1/4) / 4 = 0.081


def test_targets_are_alike_for_all_answers_that_fit_what_is_read():
    kind = KINDS["complementary-4"]
    rows = packed_rows(kind)
    n = len(QUESTIONS["class"][1])
    cuts = cutting.draw_cuts(kind, rows, 60, np.random.default_rng(1))
    answers = torch.randint(n, (60, 1), generator=torch.Generator().manual_seed(0))
    (target,) = cutting.targets(kind, rows, cuts, answers)
    (one,) = rows
    for document in range(60):
        hidden, emptied, swapped = unread(cuts.reading, document, one.answering)
        own, other = int(answers[document]), int(answers[document - 1])
        fits = list(range(n))
        for bit, (position,) in enumerate(kind.carriers["class"]):
            if position in swapped:
                fits = [c for c in fits if c >> bit & 1 == other >> bit & 1]
            elif position not in hidden | emptied:
                fits = [c for c in fits if c >> bit & 1 == own >> bit & 1]
        expected = torch.zeros(n)
        expected[fits] = 1.0
        expected[fits[0]] = cutting.DEFAULT
        expected /= expected.sum()
        assert torch.allclose(target[document], expected)


def test_attention_under_cuts_is_that_of_each_row_by_itself(drawn):
    _, rows, cuts = drawn
    generator = torch.Generator().manual_seed(2)
    n, length = len(cuts.cuts), rows[-1].end
    q, k, v = (torch.randn(n, 2, length, 8, generator=generator) for _ in range(3))
    for index, where in ((2, cuts.reading), (0, cuts.of_layer(0))):
        module = type("Module", (), {"layer_idx": index})()
        out, _ = cutting.attention_under_cuts(module, q, k, v, None, scaling=0.3, cuts=cuts)
        for document in range(0, n, 3):
            for row in (5, TEXT - 1, *(one.answering for one in rows)):
                keys, values = k[document].clone(), v[document].clone()
                hidden, emptied = set(range(row + 1, length)), set()
                if row >= TEXT:
                    hidden, emptied, swapped = unread(where, document, row)
                    for p in swapped:
                        keys[:, p], values[:, p] = k[document - 1, :, p], v[document - 1, :, p]
                seen = [p for p in range(length) if p not in hidden]
                weights = (q[document, :, row, None] * keys[:, seen]).sum(-1).mul(0.3).softmax(-1)
                for p in emptied:
                    weights[:, seen.index(p)] = 0
                expected = (weights[..., None] * values[:, seen]).sum(1)
                assert torch.allclose(out[document, row], expected, atol=1e-5)


def test_every_kind_says_carriers_that_the_answering_row_can_read():
    for name, kind in KINDS.items():
        assert set(kind.facts) <= set(FACTS), name
        for fact in kind.facts:
            last = TEXT + LENGTHS[fact] - 1
            assert all(IMAGE[0] <= p < last for p in kind.positions(fact)), name
        if kind.digits:
            assert len(kind.digits) == len(kind.carriers["class"]) and np.prod(kind.digits) == 16


@pytest.fixture(scope="module")
def runs():
    """Passes of plain transformers over the organism ``open``, and the same prompts on the wrapped model."""
    where = folder("open")
    hf = ChameleonForConditionalGeneration.from_pretrained(where).eval()
    plain = FactRuns(hf, AutoProcessor.from_pretrained(where), "color", 3, seed=5)
    model = gl.HookedVLM.from_pretrained("organism:open")
    pairs = gl.pairs("emoji-scenes", differ="color", n=3, seed=5)
    examples = [e for pair in pairs for e in (pair.clean, pair.corrupt)]
    inputs = model.prepare(images=[e.image for e in examples], text=[e.prompt for e in examples])
    return plain.runs, model, inputs


def close(a, b):
    seen = b > -1e30
    return (a - b)[seen].abs().max() <= 2e-4


@pytest.mark.parametrize("how", ["mask", "zero"])
def test_a_plain_cut_is_the_knockout_of_the_last_row(runs, how):
    plain, model, inputs = runs
    got = plain.logits(dict.fromkeys((1, 2, 4), (EOI, *IMAGE[:40])), how)
    keys = torch.zeros(inputs.ids.shape, dtype=torch.bool)
    keys[:, [EOI, *IMAGE[:40]]] = True
    want = model.run(inputs, gl.knockout("last", keys, layers=[1, 2, 4], how=how))[:, -1]
    assert close(got, want) and not close(plain.logits(), want)


def test_the_attention_of_the_answering_row_is_that_of_the_wrapped_model(runs):
    plain, model, inputs = runs
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(6)]
    _, cache = model.run_with_cache(inputs, names_filter=names)
    want = torch.stack([cache[name][:, :, -1].mean((0, 1)) for name in names]).mean(0)
    assert torch.allclose(plain.attention(), want, atol=1e-5)


def test_plain_resampling_is_a_patch_from_the_partners_run(runs):
    plain, model, inputs = runs
    _, cache = model.run_with_cache(
        inputs.select(PARTNER.tolist()), names_filter=lambda name: name.endswith("hook_resid_pre")
    )
    at = torch.zeros(inputs.ids.shape, dtype=torch.bool)
    at[:, list(IMAGE)] = True
    want = model.run(inputs, gl.patch(cache, at=at))[:, -1]
    assert close(plain.resampled(IMAGE, PARTNER), want)
    # all that the answering row reads of the picture is another's, and the words bring nothing of their own
    read = plain.logits(range(2, inputs.ids.shape[1] - 1), "resample", PARTNER)
    assert torch.equal(read.argmax(-1), plain.logits().argmax(-1)[PARTNER])


@pytest.mark.parametrize("name", graded_names())
def test_a_shipped_one_is_small_and_its_card_says_what_was_measured(name):
    where = organism_folder(name)
    assert sum(file.stat().st_size for file in where.iterdir()) <= 350_000
    assert (where / "difference.safetensors").stat().st_size <= 300_000
    assert (where / "README.md").read_text() == card.write(where)
    measured = json.loads((where / "measured.json").read_text())
    kind = KINDS[json.loads((where / "training.json").read_text())["kind"]]
    assert measured["carriers"] == {fact: list(kind.positions(fact)) for fact in kind.facts}
    for fact in kind.facts:
        tests = [row for row in measured["truth"] if row["fact"] == fact]
        assert all(row["n"] >= 200 for row in tests) and {"mask", "zero", "resample"} <= {
            row["how"] for row in tests
        }
        for row in tests:
            assert row["holds"] == (
                row["least"] <= row["mean"] <= row["most"]
                and (row["most"] == 1 or row["probability"] <= row["most"])
            )
        assert measured["holds"][fact] == all(row["holds"] for row in tests)
    assert any(measured["holds"].values()), "what did not come out is not shipped"


NAME, FACT = "open/gate-at-text-0", "color"


def test_training_goes_on_from_a_difference():
    where = folder("open")
    model, base, trained = (ChameleonForConditionalGeneration.from_pretrained(where) for _ in range(3))
    start = read_difference(organism_folder(NAME) / DIFFERENCE_FILE, where)
    add_difference(trained, start)
    prepare(model, 2, start)
    kept = dict(difference(model, base))
    assert kept.keys() == dict(start).keys()
    assert all(torch.allclose(kept[name], added, atol=1e-5) for name, added in start)
    query = lambda one: one.model.layers[3].self_attn.q_proj.weight  # noqa: E731
    assert torch.allclose(query(model), query(trained), atol=1e-5)
    assert not torch.allclose(query(model), query(base), atol=1e-2)


@pytest.fixture(scope="module")
def case():
    return graded_case(NAME, n=8, seed=11, facts=[FACT])


def test_what_was_measured_of_one_holds_on_the_wrapped_model(case):
    """By the engine's knockouts and patches, on other scenes than the card's."""
    model, (question,) = case.model, case.questions
    examples = question.data.examples()
    inputs = model.prepare(images=[e.image for e in examples], text=[e.prompt for e in examples])
    carriers, others = (torch.zeros(inputs.ids.shape, dtype=torch.bool) for _ in range(2))
    carriers[:, list(question.carriers)] = True
    others[:, [*range(2, TEXT)]] = True
    others &= ~carriers

    def right(*interventions, partner=False):
        said = model.decode(model.run(inputs, list(interventions))[:, -1].argmax(-1, keepdim=True).tolist())
        of = [examples[i] for i in question.partners] if partner else examples
        return sum(word.strip() == e.answers[0] for word, e in zip(said, of, strict=True)) / len(of)

    assert right() >= 0.8
    for how in ("mask", "zero"):
        assert right(gl.knockout("last", carriers, how=how)) <= 0.5
        assert right(gl.knockout("last", others, how=how)) >= 0.8
    streams = lambda name: name.endswith("hook_resid_pre")  # noqa: E731
    _, donor = model.run_with_cache(inputs.select(list(question.partners)), names_filter=streams)
    assert right(gl.patch(donor, at=carriers), partner=True) >= 0.8


def test_of_redundant_carriers_each_is_enough_and_none_is_needed():
    """By the engine's knockouts, on other scenes than the card's."""
    (question,) = (case := graded_case("open/redundant-3", n=6, seed=11, facts=["color"])).questions
    examples = question.data.examples()
    inputs = case.model.prepare(images=[e.image for e in examples], text=[e.prompt for e in examples])

    def right(cut: set[int], how: str = "mask") -> float:
        at = torch.zeros(inputs.ids.shape, dtype=torch.bool)
        at[:, sorted(cut)] = True
        said = case.model.run(inputs, gl.knockout("last", at, how=how))[:, -1].argmax(-1, keepdim=True)
        words = case.model.decode(said.tolist())
        return sum(w.strip() == e.answers[0] for w, e in zip(words, examples, strict=True)) / len(examples)

    for carrier in question.carriers:
        assert right({*ALL} - {carrier}) >= 0.8 and right({carrier}) >= 0.8
        assert right({*ALL} - {carrier}, "zero") >= 0.8
    assert right({*question.carriers}) <= 0.5 and right({*question.carriers}, "zero") <= 0.5


def test_a_case_has_what_a_benchmark_asks(case):
    (question,) = case.questions
    examples = question.data.examples()
    assert (case.name, case.kind, question.name) == (NAME, "gate-at-text-0", FACT)
    assert question.carriers == (TEXT,) and question.data.classes == QUESTIONS[FACT][1]
    assert set(question.carriers) < set(question.candidates) and question.candidates[0] == IMAGE[0]
    for example, partner in zip(examples, question.partners, strict=True):
        assert example.label != examples[partner].label and example.prompt == examples[partner].prompt
        assert set(example.answers) == {example.label} <= set(question.data.classes)
    assert measured_facts(NAME) == sorted(FACTS)


def test_a_fact_that_nothing_was_measured_of_is_refused():
    with pytest.raises(gl.errors.DataError, match="no measured carriers of 'count': give class"):
        graded_case(NAME, facts=["count"])
