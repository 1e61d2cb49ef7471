"""The Python that the page gives does what the page shows, in a namespace of its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gatelens as gl
from explore_helpers import png, state
from gatelens.explore.explorer import Explorer
from gatelens.explore.script import VERBS, plan
from gatelens.explore.state import KEYS, QUERIES, ControlError

REGION = [8.0, 24.5, 48.0, 64.0]
STATES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "knockouts": {
        "cut": [["text", "gate"], ["answer", "outside"]],
        "region": REGION,
        "cut_layers": [2, 5],
        "cut_heads": [0, 2],
        "how": "mask",
    },
    "the gate from the second": {"patch": "gate", "patch_layers": [2, 2], "look_at": 68, "look_head": 1},
    "a region, and steering": {
        "patch": "region",
        "region": REGION,
        "patch_layers": [0, 1],
        "steer": -1.3,
        "steer_layer": 4,
        "steer_at": "gate | last",
    },
    "toward a class": {"steer": 2.5, "steer_layer": 3, "toward": "class:crown", "cut": [["text", "image"]]},
    "a row of the answer": {
        "prompt": "<image>describe",
        "cut": [["text", "gate"], ["answer", "region"]],
        "region": REGION,
        "cut_layers": [1, 4],
        "patch": "gate",
        "patch_layers": [2, 3],
        "look_at": 71,
        "look_layer": 2,
    },
    "odd text": {"prompt": '<image>this\nis "a" \\ \u2028 #'},
}


def run_as_script(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "copied"}
    exec(compile(text, "copied.py", "exec"), names)
    return names


def same(told: dict[str, Any], names: dict[str, Any]) -> None:
    assert names["answer"] == told["answer"]["after"]
    after = {one["token"]: one["after"] for one in told["top"]}
    assert [token for token, _ in names["top"]] == list(after)[: len(names["top"])]
    assert [p for _, p in names["top"]] == pytest.approx(
        [after[token] for token, _ in names["top"]], abs=1e-5
    )
    assert names["attention"].tolist() == pytest.approx(told["attention"]["values"], abs=1e-5)
    assert names["lens"].table["word"].tolist() == [one["after"][0] for one in told["lens"]]


@pytest.mark.parametrize("changes", STATES.values(), ids=STATES)
def test_the_script_gives_what_the_page_shows(explorer: Explorer, changes: dict[str, Any]) -> None:
    told = explorer.run(state(**changes))
    same(told, run_as_script(told["python"]))


def test_an_uploaded_picture_is_read_from_its_file(
    explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, colour in (("first.png", "purple"), ("second one.png", "green")):
        Path(name).write_bytes(png(colour, (100, 60)))
    keys = [explorer.shelf.upload(Path(name).read_bytes(), name) for name in ("first.png", "second one.png")]
    region = {"patch": "region", "region": [0, 0, 50, 30]}
    told = explorer.run(state(picture=keys[0], second=keys[1], steer=1.0, steer_layer=3, **region))
    assert 'picture = "first.png"  # the file that was uploaded' in told["python"]
    same(told, run_as_script(told["python"]))


def test_a_region_is_the_same_part_of_a_picture_of_another_size(explorer: Explorer) -> None:
    big = explorer.shelf.upload(png("green", (128, 192)), "big.png")
    planned = plan(state(second=big, patch="region", region=[8, 8, 32, 32]), explorer.shelf, "", [])
    assert planned.interventions[0].arguments["source"] == "image.box(16,24,64,96)"


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cut=st.lists(
        st.tuples(st.sampled_from(list(QUERIES)), st.sampled_from(list(KEYS))).map(list), max_size=3
    ),
    ends=st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted),
    how=st.sampled_from(["mask", "zero"]),
    patch=st.sampled_from(["off", "gate", "region"]),
    steer=st.floats(-3, 3),
    picture=st.integers(0, 11),
    look=st.none() | st.integers(0, 75),
)
def test_any_script_gives_what_the_page_shows(explorer: Explorer, **drawn: Any) -> None:
    ends = list(drawn["ends"])
    changes = {name: drawn[name] for name in ("cut", "how", "patch", "steer")}
    changes |= {
        "cut_layers": ends,
        "patch_layers": ends,
        "steer_layer": 3,
        "region": REGION,
        "look_at": drawn["look"],
    }
    try:
        told = explorer.run(state(picture=f"sample:{drawn['picture']}", **changes))
    except ControlError:  # as a knockout with nothing to cut
        return
    with patch.object(
        gl.HookedVLM, "from_pretrained", lambda name: explorer.model
    ):  # loading is tested above
        same(told, run_as_script(told["python"]))


def test_only_public_names_are_called(explorer: Explorer) -> None:
    text = explorer.run(state(**STATES["a region, and steering"]))["python"]
    named = [
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and re.fullmatch(r"gl(\.\w+)+", ast.unparse(node.func))
    ]
    assert {"gl.patch", "gl.steer", "gl.direction", "gl.hooks", "gl.logit_lens", "gl.views.overlay"} <= set(
        named
    )
    for name in named:
        found: Any = gl
        for part in name.split(".")[1:]:
            assert not part.startswith("_")
            found = getattr(found, part)
        assert callable(found)
    assert all(getattr(gl, verb) is function for verb, function in VERBS.items())
    assert not [part for part in text.split() if part.startswith("gatelens.")]
