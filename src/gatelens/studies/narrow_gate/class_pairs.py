"""Pairs of classes, given by the user or drawn, for patching and for steering; and which layers either visits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, zip_longest
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field

from gatelens.data import Example
from gatelens.errors import DataError, did_you_mean
from gatelens.examples import labels_of
from gatelens.studies.options import AtLeastOne, Says

ClassPair = tuple[str, str]
Thing = TypeVar("Thing")
AskedPairs = Annotated[
    str | list[str | list[str]] | None,
    Says("class pairs, as 'cat-dog,fox-pig', or null"),
    Field(description="Class pairs, as 'cat-dog,fox-pig'. Default: drawn."),
]
Every = Annotated[
    AtLeastOne | None,
    Field(description="Layers between two. Default: all, or every fourth from 24 layers on."),
]
DEEP = 24  # layers from which not every one is visited, as in the paper, which takes every fourth


def class_of(example: Example) -> str:
    """The example's class: its label, else its first answer."""
    return labels_of(example)[0]


def by_class(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """The examples of each class, classes in alphabetic order."""
    classes: dict[str, list[Example]] = {}
    for example in examples:
        classes.setdefault(class_of(example), []).append(example)
    return dict(sorted(classes.items()))


def pair_name(pair: ClassPair) -> str:
    """``base-target``, as it is written on the command line."""
    return "-".join(pair)


def given_pairs(asked: str | Sequence[Any], known: Sequence[str]) -> list[ClassPair]:
    """The (base, target) pairs that the user gave.

    Args:
        asked: ``"cat-dog,fox-pig"``, or a list of such words or of ``[base, target]``.
        known: classes of which there are pictures. A hyphen inside a class name is read as part of the name.

    Raises:
        DataError: a pair that cannot be read, of one class twice, or with a class that has no picture.
    """
    parts = [p.strip() for p in asked.split(",") if p.strip()] if isinstance(asked, str) else list(asked)
    pairs: list[ClassPair] = []
    for part in parts:
        pair = _split(part, known) if isinstance(part, str) else tuple(part)
        if len(pair) != 2:
            raise DataError(f"class pair {part!r}: give a base and a target class, as 'cat-dog'")
        for name in pair:
            if name not in known:
                hint = did_you_mean(name, known) or f"; drawn are: {', '.join(known)}"
                raise DataError(f"class pair {part!r}: no picture of {name!r} was drawn{hint}")
        if pair[0] == pair[1]:
            raise DataError(f"class pair {part!r}: base and target are one class; give two")
        pairs.append((str(pair[0]), str(pair[1])))
    if not pairs:
        raise DataError("pairs is empty; give class pairs, as 'cat-dog,fox-pig', or leave it out")
    return list(dict.fromkeys(pairs))


def _split(part: str, known: Sequence[str]) -> tuple[str, ...]:
    words = [w.strip() for w in part.split("-")]
    ways = [("-".join(words[:i]), "-".join(words[i:])) for i in range(1, len(words))]
    fitting = [way for way in ways if way[0] in known and way[1] in known]
    read = fitting or ways
    return read[0] if read else (part,)


def all_pairs(known: Sequence[str], most_classes: int, rng: np.random.Generator) -> list[ClassPair]:
    """Every ordered pair among a limited number of classes, which are drawn, in an order that is drawn too."""
    few = [known[int(i)] for i in rng.permutation(len(known))[:most_classes]]
    pairs = list(permutations(few, 2))
    return [pairs[int(i)] for i in rng.permutation(len(pairs))]


def ring_of_pairs(known: Sequence[str], most: int, rng: np.random.Generator) -> list[ClassPair]:
    """A limited number of pairs, no class the base of two or the target of two."""
    order = [known[int(i)] for i in rng.permutation(len(known))]
    return (
        [(name, order[(i + 1) % len(order)]) for i, name in enumerate(order)][:most] if len(order) > 1 else []
    )


def take_turns(queues: Sequence[Sequence[Thing]]) -> list[Thing]:
    """The first of each, then the second of each, until all are through."""
    return [one for turn in zip_longest(*queues) for one in turn if one is not None]


def layers_visited(n_layers: int, every: int | None = None) -> list[int]:
    """Every ``every``-th layer, and the last. None: all of them below 24 layers, else every fourth (NG).

    Raises:
        DataError: ``every`` below 1.
    """
    step = every if every is not None else 1 if n_layers < DEEP else 4
    if step < 1:
        raise DataError(f"every={step} visits no layer; give at least 1")
    return sorted({*range(0, n_layers, step), n_layers - 1})
