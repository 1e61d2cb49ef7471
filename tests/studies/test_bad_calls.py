"""Calls of a study that cannot be: each is refused in one line, before a model is loaded or memory is taken."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import gatelens as gl
from gatelens.errors import GatelensError
from gatelens.studies import STUDIES
from gatelens.studies.runner import run_study

HUGE = (10**12, 99999999999999999999)
NO_COUNT = (*HUGE, -1, "a", 1.5, [1], True, float("nan"))
COUNTS = [
    ("narrow-gate", "limit"),
    ("narrow-gate", "n_class"),
    ("narrow-gate", "n_boot"),
    ("narrow-gate", "seed"),
    ("narrow-gate", "random_tokens"),
    ("narrow-gate", "random_repeats"),
    ("narrow-gate", "batch_size"),
    ("narrow-gate", "vqa_tokens"),
    ("find-gate", "n"),
    ("whats-in-the-image", "n"),
    ("whats-in-the-image", "n_asked"),
    ("whats-in-the-image", "max_new_tokens"),
    ("gate-finetuning", "n_train"),
    ("gate-finetuning", "steps"),
    ("gate-finetuning", "swap_steps"),
]
OF_SECTIONS = [
    ("patching", "n_pairs"),
    ("patching", "every"),
    ("steering", "n_random"),
    ("modality_gap", "n"),
    ("meaning", "folds"),
    ("finder", "block"),
    ("questions", "n"),
]
NO_SECTIONS = [5, 1.5, b"x", [5], [["a"]], {5: {}}, {"patching": 3}, "patchin", object()]
NO_FOLDER = [5, b"x", ["x"], "a\0b", "~nobody_of_this_name/x", "x" * 300]
NO_DATA = [5, None, ["emoji-scenes"], "\0", "", "nothing"]
CALLS: list[tuple[str, dict[str, Any]]] = [
    *((study, {option: value}) for study, option in COUNTS for value in NO_COUNT),
    *(("narrow-gate", {"sections": {s: {o: v}}}) for s, o in OF_SECTIONS for v in (*NO_COUNT, {"a": 1})),
    *(("narrow-gate", {"sections": value}) for value in NO_SECTIONS),
    *(("narrow-gate", {"data": value}) for value in NO_DATA),
    *(("narrow-gate", {"out": value}) for value in NO_FOLDER),
    *(("narrow-gate", {"model": value, "n_vqa": 0, "n_caption": 0}) for value in (5, None, ["x"])),
]


@pytest.mark.parametrize(("study", "given"), CALLS, ids=lambda value: str(value).partition(" at 0x")[0])
def test_what_cannot_be_is_one_line(
    study: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", never)
    arguments = {"model": "x", "data": "emoji-scenes", "out": tmp_path / "r", **given}
    started = time.process_time()
    with pytest.raises(GatelensError) as caught:
        run_study(STUDIES[study], **arguments)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 5
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("limit", [0, -5, 1.5, "a", True, *HUGE])
def test_examples_that_cannot_be_drawn(limit: Any) -> None:
    for task in ("class", "draw"):
        with pytest.raises(GatelensError, match=r"^emoji-scenes: limit="):
            gl.data.load("emoji-scenes").examples(task, limit=limit)
    with pytest.raises(GatelensError, match="it makes 100,000 examples of a task at most"):
        gl.data.load("emoji-scenes").examples("class", limit=10**12)
    assert len(gl.data.load("emoji-scenes").examples("class", limit=3)) == 3


@pytest.mark.parametrize("seed", [-1, "a", 1.5, None])
def test_seeds_that_cannot_be(seed: Any) -> None:
    with pytest.raises(GatelensError, match=r"^emoji-scenes: seed=.*give a whole number, 0 or more$"):
        gl.data.load("emoji-scenes").examples("class", limit=1, seed=seed)
