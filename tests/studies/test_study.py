"""Studies as they are declared: their sections, options and what is chosen of them."""

from __future__ import annotations

from typing import Any

import pytest

from gatelens.errors import DataError
from gatelens.studies import STUDIES
from gatelens.studies.narrow_gate.study import STUDY as NARROW_GATE
from gatelens.studies.study import Study, StudyOptions
from toy_study import STUDY

ALL = ["squares", "rounds", "picky", "idle"]
studies = pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)


@studies
def test_a_study_is_declared_as_a_whole(study: Study) -> None:
    names = [section.name for section in study.sections]
    assert len(set(names)) == len(names) and set(study.always) <= set(names)
    assert issubclass(study.options, StudyOptions)
    assert study.title and all(section.about for section in study.sections)
    assert STUDIES[study.name] is study


@studies
def test_a_section_reads_sections_before_it(study: Study) -> None:
    before: set[str] = set()
    for section in study.sections:
        assert set(section.reads) <= before, section.name
        before.add(section.name)


@studies
def test_options_are_described_and_have_defaults(study: Study) -> None:
    for options in (study.options, *(section.options for section in study.sections)):
        for name, field in options.model_fields.items():
            assert field.description, (options.__name__, name)
            assert not field.is_required(), (options.__name__, name)


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        (None, ALL),
        ("all", ALL),
        (["all"], ALL),
        ({"all": {}}, ALL),
        ({"all": {}, "rounds": {}}, ALL),
        ("rounds", ["squares", "rounds"]),
        ("rounds, idle", ["squares", "rounds", "idle"]),
        (["idle", "rounds"], ["squares", "rounds", "idle"]),
        ({"rounds": {}}, ["squares", "rounds"]),
        ([], ["squares"]),
        ({}, ["squares"]),
        ("", ["squares"]),
    ],
)
def test_sections_that_are_chosen(sections: Any, names: list[str]) -> None:
    """In the study's order, whatever the order they are asked for in; some are always measured."""
    assert list(STUDY.chosen(sections)) == names


def test_options_of_sections() -> None:
    chosen = STUDY.chosen({"all": {}, "squares": {"n": 5}}, limit=3)
    assert chosen["squares"].settings() == {"n": 3, "n_times": 50, "each": None}
    assert STUDY.chosen({"squares": {"each": 9}}, limit=3)["squares"].settings()["each"] == 3
    assert STUDY.chosen({"squares": {"n_times": 9}}, limit=3)["squares"].settings()["n_times"] == 9
    assert STUDY.chosen("squares")["squares"].settings() == {"n": 100, "n_times": 50, "each": None}


def test_a_limit_caps_examples_and_nothing_else() -> None:
    """An option that begins with n and counts no examples keeps its value."""
    steering = NARROW_GATE.chosen("steering", limit=2)["steering"]
    assert (steering.n_pairs, steering.n, steering.n_caption, steering.n_vqa) == (2, 2, 2, 2)  # type: ignore[attr-defined]
    assert steering.n_random == 3  # type: ignore[attr-defined]
    for name, options in NARROW_GATE.chosen(None, limit=1).items():
        for option, value in options.settings().items():
            if option == "n" or (option.startswith("n_") and option != "n_random"):
                assert value == 1, (name, option)
    assert STUDIES["find-gate"].options(limit=30).capped(30).settings()["n"] == 30
    assert STUDIES["whats-in-the-image"].options().capped(7).settings()["n_asked"] == 7


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ("round", "no section 'round'; did you mean 'rounds'?"),
        ("steering", "no section 'steering'; known: squares, rounds, picky, idle, all"),
        ([3], "sections=[3]: give names, in a list or with commas"),
        ({"squares": {"m": 1}}, "no option of section 'squares' 'm'"),
        ({"squares": {"n_time": 1}}, "no option of section 'squares' 'n_time'; did you mean 'n_times'?"),
        ({"rounds": {"n": 1}}, "no option of section 'rounds' 'n'; known: none"),
        ({"squares": 3}, "section 'squares': 3 names no option; give {'OPTION': value}"),
        ({"squares": None}, "section 'squares': None names no option; give {'OPTION': value}"),
        ({"squares": {"n": None}}, "option squares.n=None: give a whole number, 0 or more"),
        ({"squares": {"each": -1}}, "option squares.each=-1: give a whole number, 0 or more, or null"),
        ({"all": {"n": 3}}, "sections 'all' have no option 'n' together; name the section"),
    ],
)
def test_what_cannot_be_chosen(sections: Any, says: str) -> None:
    with pytest.raises(DataError) as caught:
        STUDY.chosen(sections)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)
