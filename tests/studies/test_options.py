"""Options that cannot be are refused by name before anything is loaded, and leave no folder behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gatelens.studies.narrow_gate.option_values import check_value
from gatelens.studies.narrow_gate.sections import SECTIONS, chosen

from gatelens.errors import DataError, OutputError
from gatelens.studies import narrow_gate
from study_helpers import TinyData

SMALL = {"batch_size": 6, "caption_tokens": 2, "vqa_tokens": 2, "n_boot": 20, "progress": False}


def test_every_default_may_be_given() -> None:
    for section in SECTIONS:
        for option, value in section.options.items():
            check_value(section.name, option, value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("patching.n_pairs", "many"),
        ("patching.n_pairs", 2.5),
        ("patching.n_pairs", -1),
        ("patching.n_pairs", None),
        ("patching.n_pairs", True),
        ("patching.classes", 1),
        ("patching.every", 0),
        ("patching.pairs", 3),
        ("patching.pairs", [3]),
        ("progressive.window", "x"),
        ("progressive.step", 0),
        ("questions.by", 1),
        ("meaning.k", 0),
        ("meaning.folds", 1),
        ("attention.least", "1 %"),
        ("attention.times", float("nan")),
        ("finder.refine", -1),
        ("steering.doses", [-1]),
        ("steering.doses", "x"),
        ("steering.doses", 1),
    ],
)
def test_impossible_values(place: str, value: Any) -> None:
    section, option = place.split(".")
    with pytest.raises(DataError, match=option):
        chosen({section: {option: value}})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("patching.pairs", "cat-dog"),
        ("patching.pairs", [["cat", "dog"], "fox-pig"]),
        ("patching.classes", None),
        ("steering.doses", "0.5,1"),
        ("questions.by", "category"),
        ("patching.n_pairs", 0),
    ],
)
def test_possible_values(place: str, value: Any) -> None:
    section, option = place.split(".")
    assert chosen({section: {option: value}})[section][option] == value


def test_options_without_names() -> None:
    with pytest.raises(DataError, match="section 'patching': 20 names no option"):
        chosen({"patching": 20})  # type: ignore[dict-item]


def test_negative_seed(tiny_chameleon: Any) -> None:
    with pytest.raises(DataError, match="seed=-1"):
        narrow_gate(tiny_chameleon, TinyData(n=4), None, seed=-1, **SMALL)


def test_pairs_nobody_drew_leave_no_folder(tiny_chameleon: Any, tmp_path: Path) -> None:
    """The classes are known only when the examples are drawn; the same folder takes the corrected command."""
    data, out = TinyData(n=8, tasks=("class",)), tmp_path / "new" / "run"
    wrong = {"patching": {"pairs": "zebra-dog", "n_pairs": 2}}
    with pytest.raises(DataError, match="no picture of 'zebra'"):
        narrow_gate(tiny_chameleon, data, out, sections=wrong, **SMALL)
    assert not out.exists()
    right = {"patching": {"pairs": "cat-dog", "n_pairs": 2}}
    run = narrow_gate(tiny_chameleon, data, out, sections=right, **SMALL)
    assert set(run.table("patching_pairs").base_class) == {"cat"}
    with pytest.raises(OutputError, match=r"sections\.patching\.pairs: there 'cat-dog', now 'dog-cat'"):
        narrow_gate(
            tiny_chameleon, data, out, sections={"patching": {"pairs": "dog-cat", "n_pairs": 2}}, **SMALL
        )
    assert (out / "report.html").exists()


def test_one_class_alone_has_nothing_to_patch(tiny_chameleon: Any) -> None:
    data = TinyData(n=4, tasks=("class",), classes=("dog",))
    run = narrow_gate(tiny_chameleon, data, None, sections="patching,steering,meaning", **SMALL)
    assert run.has("verdict") and not run.has("patching")
    with pytest.raises(DataError, match="no picture of 'cat'"):
        narrow_gate(tiny_chameleon, data, None, sections={"patching": {"pairs": "dog-cat"}}, **SMALL)
