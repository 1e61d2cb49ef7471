"""What errors say: the nearest known word, and why the hub gives nothing."""

from __future__ import annotations

import re

import httpx2
import pytest
from huggingface_hub import errors as hub

from gatelens.errors import did_you_mean
from gatelens.hub_errors import hub_reason, one_line


def test_the_nearest_known_word() -> None:
    assert did_you_mean("imgae", ["image", "gate"]) == "; did you mean 'image'?"
    assert did_you_mean("xyz", ["image", "gate"]) == ""
    assert did_you_mean("im", ["image"]) == "" and did_you_mean("im", ["image"], cutoff=0.5) != ""


class DatasetNotFoundError(Exception):
    """By this name the library datasets says that a repository is missing, or gated."""


RESPONSE = httpx2.Response(401, request=httpx2.Request("GET", "https://hub.example/some/data"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            hub.GatedRepoError("no", response=RESPONSE),
            "some/data is gated: accept its terms .* 'hf auth login'",
        ),
        (
            DatasetNotFoundError("'x' is a gated dataset.\nAsk."),
            "some/data is gated: accept its terms on its hub page",
        ),
        (DatasetNotFoundError("'x' doesn't exist"), "the hub has no data set some/data, or it is private"),
        (
            hub.RevisionNotFoundError("404", response=RESPONSE),
            "has no revision 'v9': see .*/datasets/some/data",
        ),
        (ConnectionError("no\nroute"), r"the hub cannot be reached for some/data \(offline\?\): connect"),
    ],
)
def test_why_the_hub_gives_no_data_set(error: Exception, reason: str) -> None:
    wrapped = RuntimeError("could not load")
    wrapped.__cause__ = error
    for raised in (error, wrapped) if not isinstance(error, ConnectionError) else (error,):
        said = hub_reason(raised, "some/data", kind="dataset", revision="v9")
        assert said is not None and "\n" not in said
        assert re.search(reason, said), said


def test_other_errors_are_not_the_hubs() -> None:
    assert hub_reason(RuntimeError("gated by something else"), "some/data", kind="dataset") is None
    assert one_line(RuntimeError("first.\nsecond")) == "first" and one_line(KeyError()) == "KeyError"
