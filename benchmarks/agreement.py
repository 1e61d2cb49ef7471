"""When a gradient map of an organism is wrong, and whether it says so.

``python -m benchmarks.agreement`` patches every cell of maps over layers and positions exactly, and prints how many of
them, and of their layers, are wrong among those that warn and among those that do not. A map is wrong where its largest
cell is not the true one, or less than 70 % of its top tenth is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import gatelens as gl
from gatelens.measures.agreement import (
    LEAST_OVERLAP,
    MOST_ERROR,
    Agreement,
    agreement,
    thirds,
)

from .report import markdown

CHECKED = 64


class Judged(NamedTuple):
    """One map: what 64 of its cells tell, and whether it is wrong."""

    agreement: Agreement
    wrong: bool


RULES: dict[str, Callable[[Agreement], bool]] = {
    "rank correlation below 0.9": lambda a: not a.rank_correlation >= 0.9,
    f"overlap of the top third below {LEAST_OVERLAP}": lambda a: a.top_overlap < LEAST_OVERLAP,
    f"error above {MOST_ERROR} (warns of values)": lambda a: not a.error <= MOST_ERROR,
    "another largest cell (warns)": lambda a: a.best[0] != a.best[1],
    f"overlap of the top tenth below {LEAST_OVERLAP} (warns)": lambda a: a.tenth_overlap < LEAST_OVERLAP,
    "either of these two": lambda a: a.best[0] != a.best[1] or a.tenth_overlap < LEAST_OVERLAP,
}


def maps() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Maps of resid_pre and the truth, Float[layer, pos]: three organisms, three pairs, ``atp`` and ``ig``."""
    for name in ("gated", "open", "llava"):
        model = gl.HookedVLM.from_pretrained(f"organism:{name}")
        for pair in gl.pairs("emoji-scenes", n=3):
            truth = gl.patch_map(model, pair, progress=False).tensor[0].numpy()
            for method in ("atp", "ig"):
                given = {"check": 0, "steps": 16, "progress": False}
                found = gl.attribution_map(model, pair, method=method, **given)  # type: ignore[arg-type]
                yield found.tensor[0].numpy(), truth


def _judged(guess: np.ndarray, truth: np.ndarray) -> Judged:
    top = max(1, len(truth) // 10)
    best = [np.argsort(-np.abs(values), kind="stable")[:top].tolist() for values in (guess, truth)]
    right = len(set(best[0]) & set(best[1])) / top
    seen = thirds(guess, CHECKED)
    return Judged(agreement(guess[seen], truth[seen]), right < 0.7 or best[0][0] != best[1][0])


def main() -> None:
    """Print the table, for whole maps and for their layers."""
    every = list(maps())
    whole = [_judged(guess.ravel(), truth.ravel()) for guess, truth in every]
    by_layer = [_judged(*rows) for both in every for rows in zip(*both, strict=True)]
    counts = [_counts(found) for found in (whole, by_layer)]
    rows = [(words, *counts[0][words], *counts[1][words]) for words in RULES]
    header = [f"{kind}: wrong {among}" for kind in ("maps", "layers") for among in ("if it warns", "if not")]
    print(markdown(("rule", *header), rows))


def _counts(found: list[Judged]) -> dict[str, tuple[str, str]]:
    """By rule, how many are wrong of those it warns of, and of the others."""
    table = {}
    for words, rule in RULES.items():
        said = [one.wrong for one in found if rule(one.agreement)]
        quiet = [one.wrong for one in found if not rule(one.agreement)]
        table[words] = (f"{sum(said)} of {len(said)}", f"{sum(quiet)} of {len(quiet)}")
    return table


if __name__ == "__main__":
    main()
