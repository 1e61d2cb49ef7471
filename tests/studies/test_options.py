"""Options that cannot be are refused by name before anything is loaded, and leave no folder behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from gatelens.errors import DataError, InterventionError, OutputError
from gatelens.studies import STUDIES, narrow_gate
from gatelens.studies.narrow_gate.study import STUDY
from gatelens.studies.options import AtLeastOne, CountsExamples, Examples, Options, checked
from study_helpers import TinyData

SMALL = {"batch_size": 6, "caption_tokens": 2, "vqa_tokens": 2, "n_boot": 20, "progress": False}


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_every_default_may_be_given(study: Any) -> None:
    for kind in (study.options, *(section.options for section in study.sections)):
        defaults = {name: field.get_default() for name, field in kind.model_fields.items()}
        assert checked(kind, defaults).settings() == checked(kind, {}).settings()


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("patching.n_pairs", "many", "a whole number, 0 or more"),
        ("patching.n_pairs", 2.5, "a whole number, 0 or more"),
        ("patching.n_pairs", -1, "a whole number, 0 or more"),
        ("patching.n_pairs", None, "a whole number, 0 or more"),
        ("patching.n_pairs", True, "a whole number, 0 or more"),
        ("patching.classes", 1, "a whole number, 2 or more, or null"),
        ("patching.every", 0, "a whole number, 1 or more, or null"),
        ("patching.pairs", 3, "class pairs, as 'cat-dog,fox-pig', or null"),
        ("patching.pairs", [3], "class pairs, as 'cat-dog,fox-pig', or null"),
        ("progressive.window", "x", "a whole number, 1 or more, or null"),
        ("progressive.step", 0, "a whole number, 1 or more, or null"),
        ("questions.by", 1, "a name, or null"),
        ("meaning.k", 0, "a whole number, 1 or more"),
        ("meaning.folds", 1, "a whole number, 2 or more"),
        ("attention.least", "1 %", "a number, 0 or more"),
        ("attention.times", float("nan"), "a number, 0 or more"),
        ("finder.refine", -1, "a whole number, 0 or more"),
        ("steering.doses", [-1], "numbers above 0, as [0.5, 1, 2]"),
        ("steering.doses", "x", "numbers above 0, as [0.5, 1, 2]"),
        ("steering.doses", 1, "numbers above 0, as [0.5, 1, 2]"),
    ],
)
def test_impossible_values(place: str, value: Any, says: str) -> None:
    section, option = place.split(".")
    with pytest.raises(DataError) as caught:
        STUDY.chosen({section: {option: value}})
    assert str(caught.value) == f"option {place}={value!r}: give {says}"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("patching.pairs", "cat-dog"),
        ("patching.pairs", [["cat", "dog"], "fox-pig"]),
        ("patching.classes", None),
        ("questions.by", "category"),
        ("patching.n_pairs", 0),
    ],
)
def test_possible_values(place: str, value: Any) -> None:
    section, option = place.split(".")
    assert getattr(STUDY.chosen({section: {option: value}})[section], option) == value


def test_doses_are_numbers_however_they_are_given() -> None:
    assert STUDY.chosen({"steering": {"doses": "0.5,1"}})["steering"].doses == [0.5, 1.0]


class Unmarked(Options):
    """Options whose types alone say what they may be."""

    name: str | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5


@pytest.mark.parametrize("values", [{"name": 1}, {"share": 2.0}, {"share": "half"}, {"share": None}])
def test_options_without_a_mark_are_refused_in_one_line(values: dict[str, Any]) -> None:
    (name, value), *_ = values.items()
    with pytest.raises(DataError) as caught:
        checked(Unmarked, values, "made_up")
    said = str(caught.value)
    assert said.startswith(f"option made_up.{name}={value!r}: ") and "\n" not in said
    assert "http" not in said and not said.endswith(": ")


class Capped(Options):
    """Some options count examples."""

    n: Examples = 100
    more: Annotated[int | None, CountsExamples()] = None
    k: AtLeastOne = 30


def test_a_limit_caps_what_counts_examples() -> None:
    assert Capped().capped(None) == Capped()
    assert Capped().capped(8) == Capped(n=8)
    assert Capped(n=5, more=20).capped(8) == Capped(n=5, more=8)


def test_names_that_are_not_there_are_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="no option of section 'patching' 'n_pair'; did you mean 'n_pairs'"):
        STUDY.chosen({"patching": {"n_pair": 3}})
    with pytest.raises(DataError, match="no section 'patchin'; did you mean 'patching'"):
        STUDY.chosen("patchin")
    with pytest.raises(DataError, match="no option 'n_clas'; did you mean 'n_class'"):
        checked(STUDY.options, {"n_clas": 3})


def test_kinds_of_knockout() -> None:
    with pytest.raises(InterventionError, match="how='drop' is not a kind of knockout"):
        checked(STUDY.options, {"how": "drop"})


def test_options_without_names() -> None:
    with pytest.raises(DataError, match="section 'patching': 20 names no option"):
        STUDY.chosen({"patching": 20})  # type: ignore[dict-item]


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
