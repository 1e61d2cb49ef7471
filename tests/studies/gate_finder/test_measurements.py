"""What the finder measures, against hooks written out and by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import gatelens as gl
from gate_search_helpers import Measurements
from gatelens.studies.gate_finder.measurements import (
    AttentionReceived,
    ClassOverlap,
    PlacedPrompts,
    knockouts,
)
from gatelens.studies.gate_finder.places import locate
from study_helpers import TinyData


def examples(n: int = 24) -> list[Any]:
    return TinyData(n=n).examples("class")


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_a_cut_is_what_it_says(tiny_chameleon: Any, how: Any) -> None:
    """Against hooks written out: rows after the picture lose the columns, each place keeps itself."""
    search = Measurements(tiny_chameleon, examples(), 8)
    places = search.layout
    prompts = locate(tiny_chameleon, search.examples[:8], places.places)
    chosen = [places.picture[3], places.picture[9], *places.after[:2]]
    assert len(places.picture) == 16 and places.places[places.after[0]].token == "<eoss>"
    columns = [int(prompts.columns[0, p]) for p in chosen]
    first_after = int(prompts.columns[0, places.picture[-1]]) + 1

    def cut(tensor: Any, hook: Any) -> Any:
        tensor = tensor.clone()
        for row in range(first_after, tensor.shape[2]):
            for column in columns:
                if column != row:
                    tensor[:, :, row, column] = float("-inf") if how == "mask" else 0.0
        return tensor

    name = {"mask": "attn.hook_attn_scores", "zero": "attn.hook_pattern"}[how]
    hooks = [(f"blocks.{layer}.{name}", cut) for layer in range(3)]
    expected = tiny_chameleon.run_with_hooks(prompts.inputs, fwd_hooks=hooks)[:, -1]
    got = tiny_chameleon.run(prompts.inputs, knockouts(prompts, places.places, chosen, how))[:, -1]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    said = search.cut(how, [chosen]).sort_values("example").head(8)
    rows, wanted = range(8), [search.tokens[c] for c in search.labels[:8]]
    log_probs = expected.log_softmax(-1)[rows, wanted].double()
    torch.testing.assert_close(torch.tensor(said.log_prob.to_numpy()), log_probs, atol=1e-5, rtol=1e-5)
    assert said.right.tolist() == (expected.argmax(-1) == torch.tensor(wanted)).double().tolist()
    spare = places.after[:1]
    spared = tiny_chameleon.run(prompts.inputs, knockouts(prompts, places.places, places.picture, how, spare))
    plain = tiny_chameleon.run(prompts.inputs, gl.knockout("text - gate", "image", how=how))
    torch.testing.assert_close(spared[:, -1], plain[:, -1], atol=1e-5, rtol=1e-5)


def test_patching_every_candidate_gives_the_other_answer(tiny: Any) -> None:
    """The candidates leave out nothing through which the picture could come, and pairs are not mixed up."""
    search = Measurements(tiny, examples(), 8)
    answers, places = search.answers(), search.layout
    every = [p.number for p in places.places]
    pairs = {i: (i + 5) % 24 for i in range(10)}
    moved = search.patched(pairs, [every, places.picture, places.after])
    gain = {s: torch.tensor(part.gain.to_numpy()) for s, part in moved.groupby("set")}
    assert moved[moved.set == 0].flipped.tolist() == [1.0] * 10
    base, target = (answers[list(side)] for side in (pairs.keys(), pairs.values()))
    expected = 1 - torch.minimum(base, target).sum(-1)
    torch.testing.assert_close(gain[0], expected.double(), atol=1e-4, rtol=1e-4)
    assert moved[moved.set == 0].flippable.tolist() == (base.argmax(-1) != target.argmax(-1)).tolist()
    assert not (gain[2] == gain[0]).all()


def test_kept_and_taken_sets_are_the_two_pictures_and_all_between(tiny: Any) -> None:
    """Between nothing and everything; a single set, against the patch that the engine makes of the same places."""
    search = Measurements(tiny, examples(), 8)
    every = [p.number for p in search.layout.places]
    pairs = {i: (i + 5) % 24 for i in range(6)}
    table = search.spliced(pairs, [(), every, search.layout.picture])
    logits = search.answers().log()
    tokens = torch.tensor(search.tokens)[torch.tensor(search.labels)]
    here, there = (torch.tensor(list(side)) for side in (pairs, pairs.values()))

    def score(rows: torch.Tensor) -> list[float]:
        own, other = (logits[rows, tokens[side]] for side in (here, there))
        return (own - other).sigmoid().tolist()

    def of(kept: bool, number: int, column: str = "score") -> list[float]:
        part = table[(table.kept == kept) & (table.set == number)].sort_values("example")
        return part[column].tolist()

    for kept, number, rows in ((True, 1, here), (False, 0, here), (True, 0, there), (False, 1, there)):
        assert of(kept, number) == pytest.approx(score(rows), abs=1e-4)
    # the picture alone: what stands after it is computed from it
    assert of(True, 2) == pytest.approx(score(here), abs=1e-4)
    assert of(False, 2) == pytest.approx(score(there), abs=1e-4)
    moved = search.patched(pairs, [every])
    assert of(False, 1, "gain") == pytest.approx(moved.gain.tolist(), abs=1e-4)
    assert of(False, 1, "flipped") == moved.flipped.tolist()


def test_sets_that_do_not_fit_into_memory_together_change_nothing(
    tiny_chameleon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Measurements(tiny_chameleon, examples(), 8)
    pairs, sets = {i: (i + 5) % 24 for i in range(4)}, [[0, 1], [2], [3, 4, 5], search.layout.after]
    together = search.patched(pairs, sets)
    monkeypatch.setattr("gatelens.studies.gate_finder.measurements.CACHE", 1)
    pd.testing.assert_frame_equal(search.patched(pairs, sets), together, atol=1e-5)


def test_attention_by_hand(tiny_chameleon: Any) -> None:
    search = Measurements(tiny_chameleon, examples(), 8)
    places = search.layout
    table = search.measured(AttentionReceived, "attention")
    total = torch.zeros(len(places.places), dtype=torch.float64)
    for part in search.parts:
        prompts = locate(tiny_chameleon, [search.examples[i] for i in part], places.places)
        _, cache = tiny_chameleon.run_with_cache(
            prompts.inputs, names_filter=lambda n: n.endswith("hook_pattern")
        )
        for row in range(len(part)):
            first = int(prompts.columns[row, places.picture[-1]]) + 1
            for layer in range(3):
                pattern = cache[f"blocks.{layer}.attn.hook_pattern"][row].double().mean(0)
                mass = []
                for column in prompts.columns[row].tolist():
                    readers = [i for i in range(first, pattern.shape[0]) if i > column]
                    mass.append(sum(float(pattern[i, column]) for i in readers) / len(readers))
                total += torch.tensor(mass, dtype=torch.float64) / sum(mass) / 3
    got = table.groupby("place").value.mean()
    assert got.tolist() == pytest.approx((total / 24).tolist(), abs=1e-5)
    assert got.sum() == pytest.approx(1.0, abs=1e-5)
    by_layer = search.measured(AttentionReceived, "layers").groupby("place").total.sum()
    assert (by_layer / 3 / 24).tolist() == pytest.approx(got.tolist(), abs=1e-6)


def test_the_picture_is_told_without_its_names(tiny: Any) -> None:
    layout = Measurements(tiny, examples(), 5).layout
    prompts = locate(tiny, examples()[:5], layout.places)
    tokens = prompts.inputs.tokens
    assert prompts.mask(layout.picture).equal(tokens.mask("image"))
    assert prompts.mask(layout.after).equal(tokens.mask("(eoi | query) - last"))
    assert prompts.mask(layout.gate).equal(tokens.mask("gate"))
    assert [len(b) for b in layout.blocks()] == [4, 4, 4, 4]
    assert [len(b) for b in layout.blocks(7)] == [7, 7, 2]
    assert layout.has.all() and layout.has.shape == (24, len(layout.places))


def test_pictures_of_other_sizes_are_aligned_by_number_in_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of several sizes: a place is missing where the grid is smaller, and the words still line up."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "families"))
    pixtral = importlib.import_module("cases.pixtral")
    model = gl.HookedVLM.from_module(pixtral.pixtral(), pixtral.processor())
    drawn = examples()
    for i, one in enumerate(drawn):
        one.image = one.image.resize([(16, 16), (24, 16), (16, 32)][i % 3])
    search = Measurements(model, drawn, 7)
    layout = search.layout
    assert [p.token for p in layout.places if not p.in_picture] == ["[IMG_END]", "this", "animal", "is"]
    for part in search.parts:
        prompts = locate(model, [drawn[i] for i in part], layout.places)
        tokens = prompts.inputs.tokens
        assert prompts.mask(layout.picture).equal(tokens.mask("image | row_break"))
        assert prompts.mask(layout.after[:1]).equal(tokens.mask("eoi"))
        assert prompts.after.equal(tokens.mask("eoi | query"))
    assert not layout.has.all()
    moved = search.patched({i: (i + 1) % 24 for i in range(9)}, [layout.after, layout.after[:1]])
    assert len(moved) == 18 and not moved.gain.isna().any()
    last = layout.picture[-1]
    counts = {int((search.measured(AttentionReceived, "attention").place == last).sum())}
    parts = [PlacedPrompts(str(i), **search.placed(part)) for i, part in enumerate(search.parts)]
    overlap = ClassOverlap("0", parts, (0, 1, 2), 1).measure(model)["overlap"]
    counts.add(int((overlap.place == last).sum()))
    assert counts == {8}  # the largest picture alone has it
    assert overlap.groupby("place").layer.nunique().max() == 1
