"""The verdict on decoders whose gate is written into the weights, wherever it stands."""

from __future__ import annotations

from typing import Any

import pytest

from gatelens.runs import Run
from gatelens.studies import narrow_gate
from planted_gates import planted_model
from study_helpers import TinyData

DATA = TinyData(n=40, tasks=("class",))
PLANTED: dict[str, tuple[dict[str, Any], str]] = {
    "a text token": ({"words": ("animal",)}, "animal (position 66)"),
    "an image token": ({"image": (31,)}, "image token 31 (position 32)"),
    "two image tokens": (
        {"image": (10, 40)},
        "image token 10 (position 11), image token 40 (position 41)",
    ),
    "the last image token": ({"image": (63,)}, "image token 63 (position 64)"),
}


def studied(**planted: Any) -> Run:
    return narrow_gate(
        planted_model(**planted), DATA, sections={"finder": {"n": 40, "n_pairs": 24}, "attention": {}},
        n_boot=100, random_repeats=1, batch_size=20, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("where", PLANTED)
def test_a_gate_that_is_not_the_one_named_is_found_and_named(where: str) -> None:
    planted, name = PLANTED[where]
    said = studied(**planted).json("verdict")
    assert (said["verdict"], said["gate"]) == ("narrow", name)
    assert said["headline"] == f"narrow gate at {name}"
    assert f"through {name}, not through the first token after the image" in said["sentence"]
    assert ("upper bound" in said["sentence"]) == (where == "two image tokens")  # fewer than one there is not
    assert "along the one order in which positions were added" in said["sentence"]
    (search,) = [e for e in said["evidence"] if e["kind"] == "gate finder"]
    assert search["says"] == "another gate" and said["disagree"] == []
    (cut,) = [e for e in said["evidence"] if e["kind"] == "knockout, class accuracy"]
    assert cut["says"] == "distributed"  # what the named gate alone would have given


def test_the_named_gate_is_named() -> None:
    said = studied(words=("this",)).json("verdict")
    assert (
        said["headline"]
        == "narrow gate at the first token after the image"
        == f"narrow gate at {said['gate']}"
    )
    assert [e["says"] for e in said["evidence"] if e["kind"] == "gate finder"] == ["narrow"]
