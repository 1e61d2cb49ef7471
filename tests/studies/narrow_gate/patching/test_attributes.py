"""Patching by attribute: pairs of one question and two answers, and the layer in which each fact stands at the gate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import gatelens as gl
from gatelens.examples import Labels
from gatelens.studies import narrow_gate
from gatelens.studies.narrow_gate.patching.attributes import (
    FEWEST_PAIRS,
    attribute_pairs,
    depths,
    summarise_attributes,
)
from gatelens.studies.narrow_gate.patching.section import SITE, patch_layers
from study_helpers import TinyData


def question(number: int, kind: str | None, prompt: str, answer: str) -> Any:
    meta = {} if kind is None else {"kind": kind}
    return SimpleNamespace(id=f"q{number}", prompt=prompt, answers=(answer,), label=None, meta=meta)


def test_pairs_have_one_question_and_two_answers() -> None:
    words = ("fox", "pig", "cat")
    examples = [
        question(i, "color", f"what color is the {words[i % 3]}?", ("red", "blue")[(i // 3) % 2])
        for i in range(24)
    ]
    examples += [question(100 + i, "side", f"where is number {i}?", "left") for i in range(24)]  # none alike
    examples += [question(200 + i, None, "what is it?", str(i)) for i in range(24)]  # of no kind
    found = attribute_pairs(examples, 30, seed=3)
    assert list(found) == ["color"] and len(found["color"]) == 30
    assert all(a.prompt == b.prompt and a.answers != b.answers for a, b in found["color"])
    assert len({(a.id, b.id) for a, b in found["color"]}) == 30
    assert {a.prompt for a, _ in found["color"][:3]} == {f"what color is the {w}?" for w in words}
    assert found == attribute_pairs(examples, 30, seed=3) != attribute_pairs(examples, 30, seed=4)
    assert attribute_pairs(examples, FEWEST_PAIRS - 1, seed=3) == {}


def test_depths_by_hand() -> None:
    rows = [
        ("class", layer, pair, True, pair < right)
        for layer, right in ((0, 0), (1, 9), (2, 4))
        for pair in range(10)
    ]
    rows += [
        ("side", layer, 20 + i, i < 10, i < right)
        for layer, right in ((0, 1), (1, 0), (2, 2))
        for i in range(12)
    ]
    pairs = pd.DataFrame(rows, columns=["attribute", "layer", "pair", "both_right", "success"])
    table = summarise_attributes(pairs, 100, 0)
    assert table[table.attribute == "side"].n.tolist() == [10] * 3  # two pairs were not answered correctly
    found = depths(table).set_index("attribute")
    assert found.loc["class", ["layer", "mean", "first", "last"]].tolist() == [1, 0.9, 1, 1]
    assert found.loc["side", ["layer", "first", "last"]].tolist() == [-1, -1, -1]  # 2 of 10 are as good as 1
    near = depths(table.assign(mean=[0.0, 0.9, 0.5, 0.0, 0.0, 0.0])).set_index("attribute")
    assert near.loc["class", ["first", "last"]].tolist() == [1, 2]


def test_a_run_without_kinds_of_question_has_its_classes(tiny_llava: Any) -> None:
    options = {"patching": {"n_pairs": 6}}
    run = narrow_gate(tiny_llava, TinyData(), None, sections=options, n_boot=20, vqa_tokens=1, caption_tokens=1,
                      random_repeats=1, progress=False)  # fmt: skip
    assert set(run.table("patching_pairs").attribute) == {"class"}


@pytest.mark.organism
def test_side_is_written_at_the_gate_long_after_the_class() -> None:
    """Of organism:gated, measured otherwise before: class in layer 1, colour and shape in 3, side in 5."""
    model = gl.HookedVLM.from_pretrained("organism:gated")
    examples = gl.data.load("emoji-scenes").examples("vqa", 300)
    found = attribute_pairs(examples, 20, 0)
    tables = [
        patch_layers(model, found[name], 100 * i, Labels(model), sites=(SITE,)).assign(attribute=name)
        for i, name in enumerate(("presence", "shape", "side"))
    ]
    layers = depths(summarise_attributes(pd.concat(tables), 100, 0)).set_index("attribute").layer
    assert layers.to_dict() == {"presence": 1, "shape": 3, "side": 5}
