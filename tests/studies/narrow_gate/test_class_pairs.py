"""Class pairs as a user gives them, or drawn; the layers that patching and steering visit."""

from __future__ import annotations

import numpy as np
import pytest

from gatelens.errors import DataError
from gatelens.studies.narrow_gate.class_pairs import all_pairs, given_pairs, layers_visited, ring_of_pairs

KNOWN = ["cat", "dog", "fox", "pig", "t-shirt", "hot-dog"]


@pytest.mark.parametrize(
    "asked, wanted",
    [
        ("cat-dog,fox-pig", [("cat", "dog"), ("fox", "pig")]),
        (" cat - dog , ", [("cat", "dog")]),
        ([["cat", "dog"], "fox-pig"], [("cat", "dog"), ("fox", "pig")]),
        ("t-shirt-hot-dog,cat-t-shirt", [("t-shirt", "hot-dog"), ("cat", "t-shirt")]),
        ("cat-dog,cat-dog,dog-cat", [("cat", "dog"), ("dog", "cat")]),
    ],
)
def test_given_pairs(asked: object, wanted: list[tuple[str, str]]) -> None:
    assert given_pairs(asked, KNOWN) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "asked, said",
    [
        ("cat-dgo", "no picture of 'dgo' was drawn; did you mean 'dog'"),
        ([["zebra", "dog"]], "no picture of 'zebra' was drawn; drawn are: cat, dog"),
        ("cat-cat", "one class"),
        ("cat", "give a base and a target"),
        ([["cat", "dog", "fox"]], "give a base and a target"),
        ("", "pairs is empty"),
    ],
)
def test_pairs_that_cannot_be(asked: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        given_pairs(asked, KNOWN)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_drawn_pairs() -> None:
    names = [f"c{i}" for i in range(9)]
    pairs = all_pairs(names, 4, np.random.default_rng(0))
    few = {name for pair in pairs for name in pair}
    assert len(few) == 4 and sorted(pairs) == sorted((a, b) for a in few for b in few if a != b)
    assert (
        pairs
        == all_pairs(names, 4, np.random.default_rng(0))
        != all_pairs(names, 4, np.random.default_rng(1))
    )
    ring = ring_of_pairs(names, 7, np.random.default_rng(0))
    assert len(ring) == 7 and len({b for b, _ in ring}) == 7 == len({t for _, t in ring})
    assert all(b != t for b, t in ring)
    assert ring_of_pairs(["one"], 3, np.random.default_rng(0)) == []


def test_layers_visited() -> None:
    assert layers_visited(6) == list(range(6))
    assert layers_visited(23) == list(range(23))
    assert layers_visited(32) == [0, 4, 8, 12, 16, 20, 24, 28, 31]
    assert layers_visited(24) == [0, 4, 8, 12, 16, 20, 23]
    assert layers_visited(6, every=4) == [0, 4, 5]
    assert layers_visited(1, every=3) == [0]
    with pytest.raises(DataError, match="every=0"):
        layers_visited(6, every=0)
