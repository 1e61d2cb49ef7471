"""When a gradient map of an organism is wrong, and whether it says so.

``python -m benchmarks.agreement`` patches every cell of maps of one layer exactly, and prints how many maps are wrong
among those that warn and among those that do not. A map is wrong where its largest cell is not the true one, or less
than 70 % of its top tenth is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import gatelens as gl
from gatelens.measures.agreement import (
    LEAST_OVERLAP,
    LEAST_RANK_CORRELATION,
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
    f"rank correlation below {LEAST_RANK_CORRELATION}": lambda a: (
        not a.rank_correlation >= LEAST_RANK_CORRELATION
    ),
    f"top overlap below {LEAST_OVERLAP}": lambda a: a.top_overlap < LEAST_OVERLAP,
    f"error above {MOST_ERROR}": lambda a: not a.error <= MOST_ERROR,
    "overlap or error": lambda a: a.top_overlap < LEAST_OVERLAP or not a.error <= MOST_ERROR,
    "any of the three (what warns)": lambda a: bool(a.warnings),
}


def judged() -> Iterator[Judged]:
    """Maps of resid_pre over positions: three organisms, two pairs, layers 1, 2 and 4, ``atp`` and ``ig``."""
    for name in ("gated", "open", "llava"):
        model = gl.HookedVLM.from_pretrained(f"organism:{name}")
        for pair in gl.pairs("emoji-scenes", n=2):
            for layer in (1, 2, 4):
                for method in ("atp", "ig"):
                    given = {"over": "pos", "layers": layer, "check": 10**6, "progress": False}
                    found = gl.attribution_map(model, pair, method=method, **given)  # type: ignore[arg-type]
                    yield _judged(found.tensor[0].numpy(), np.asarray(found.columns["exact"])[0])


def _judged(guess: np.ndarray, truth: np.ndarray) -> Judged:
    top = max(1, len(truth) // 10)
    best = [np.argsort(-np.abs(values), kind="stable")[:top].tolist() for values in (guess, truth)]
    right = len(set(best[0]) & set(best[1])) / top
    seen = thirds(guess, CHECKED)
    return Judged(agreement(guess[seen], truth[seen]), right < 0.7 or best[0][0] != best[1][0])


def main() -> None:
    """Print the table."""
    found = list(judged())
    rows = []
    for words, rule in RULES.items():
        said = [one.wrong for one in found if rule(one.agreement)]
        quiet = [one.wrong for one in found if not rule(one.agreement)]
        rows.append((words, f"{sum(said)} of {len(said)}", f"{sum(quiet)} of {len(quiet)}"))
    print(markdown(("rule", "wrong among maps it warns of", "wrong among the others"), rows))


if __name__ == "__main__":
    main()
