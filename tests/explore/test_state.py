"""What the page may send: taken as it is, or refused at one control in one line."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelens.errors import GatelensError, InputError
from gatelens.explore.state import KEYS, QUERIES, Cell, ControlError, State, belonging_to, read_state
from gatelens.tokens import Selection

BASE = {"picture": "sample:0", "prompt": "<image>this"}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
)
NEAR = {  # values that are almost right
    "cut": st.lists(st.lists(st.sampled_from([*QUERIES, *KEYS, ""]), max_size=3), max_size=3),
    "region": st.lists(st.floats(-1, 2e6) | st.integers(0, 9), min_size=3, max_size=5),
    **dict.fromkeys(("cut_layers", "patch_layers", "cut_heads"), st.lists(st.integers(-2, 1001), max_size=3)),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_field_is_taken_as_it_is_or_refused_in_a_line(data: Any) -> None:
    field = data.draw(st.sampled_from([*State.model_fields, "extra"]))
    sent = {**BASE, field: data.draw(NEAR.get(field, st.nothing()) | JSON)}
    try:
        state = read_state(sent)
    except ControlError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        assert error.control in (field if field in State.model_fields else "page", "page")
        return
    assert field in State.model_fields
    taken = state.model_dump(mode="json")
    assert {name: taken[name] for name in sent} == sent
    assert type(taken[field]) is type(sent[field]) or isinstance(taken[field], float)


@settings(max_examples=30, deadline=None)
@given(JSON)
def test_what_is_no_state_is_refused(sent: Any) -> None:
    with pytest.raises(ControlError):
        read_state(sent)


@pytest.mark.parametrize(
    ("change", "control"),
    [
        ({"region": [3, 1, 2, 9]}, "region"),
        ({"cut_layers": [4, 2]}, "cut_layers"),
        ({"cut_heads": []}, "cut_heads"),
        ({"steer": float("nan")}, "steer"),
        ({"steer": "1"}, "steer"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"look_at": -1}, "look_at"),
        ({"how": "both"}, "how"),
        ({"unknown": 1}, "page"),
    ],
    ids=str,
)
def test_the_control_is_named(change: dict[str, Any], control: str) -> None:
    with pytest.raises(ControlError) as caught:
        read_state({**BASE, **change})
    assert caught.value.control in (control, "page" if change == {"prompt": "\ud800"} else control)


def test_rows_and_columns_of_the_matrix_are_selectors() -> None:
    queries, keys = (set(get_args(part)) for part in get_args(Cell))
    assert queries == set(QUERIES) and keys == set(KEYS)
    for text in (*QUERIES.values(), *KEYS.values()):
        Selection.parse(text.format(region="image.box(0,0,4,4)"))


def test_an_error_keeps_the_control_it_came_from() -> None:
    with (
        pytest.raises(ControlError, match=r"^one two$") as caught,
        belonging_to("patch"),
        belonging_to("steer"),
    ):
        raise InputError("one\n two")
    assert caught.value.control == "steer"
    assert isinstance(caught.value, GatelensError)
