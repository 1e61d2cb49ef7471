"""Pairs that differ in everything: an untrained VQ encoder sees all pictures alike, so words change places too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gatelens.data import Example, Pair


def pair_of_all(text: str, picture: Callable[[int, int], Any], i: int = 0) -> Pair:
    """The ``i``-th pair of a prompt and ``picture(which, seed)``; its answers stand in no vocabulary."""
    words = text.split()
    plain = [number for number, word in enumerate(words) if word.isalpha()]
    swapped = dict(zip(plain, plain[::-1], strict=True))
    other = " ".join(words[swapped.get(number, number)] for number in range(len(words)))
    clean, corrupt = (
        Example(picture(0, 2 * i + side), said, ("one",), "class", f"{i}{side}")
        for side, said in enumerate((text, other))
    )
    return Pair(clean, corrupt, differ="all", target="one")
