"""The study tells the organisms apart: the planted gate is found, the open ones are called distributed."""

import pytest

from gatelens import studies

EXPECTED = {"gated": "narrow", "open": "distributed", "llava": "distributed"}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_verdict_is_the_one_planted(name):
    run = studies.narrow_gate(
        f"organism:{name}",
        "emoji-scenes",
        sections=["attention", "patching"],
        limit=64,
        n_caption=0,
        random_repeats=1,
        progress=False,
    )
    verdict = run.json("verdict")
    assert verdict["verdict"] == EXPECTED[name], verdict["sentence"]
    # Text of the gated organism looks at picture tokens without using them: attention alone would mislead.
    assert set(verdict["disagree"]) <= ({"attention share"} if name == "gated" else set())
    if name == "gated":
        assert verdict["headline"] == "narrow gate at the end-of-image token <eoss>"
        flips = run.table("patching").query("measure == 'flipped' and layer >= 0")["mean"]
        assert flips.max() > 0.5
