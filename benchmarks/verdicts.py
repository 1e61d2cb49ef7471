"""How often the verdicts of the narrow-gate study err, on answers drawn from models whose truth is set.

    python -m benchmarks.verdicts [--runs 400]

Answers are right or wrong by chance, with probabilities that follow from what is set: the accuracy of the unmodified
model, the floor, and the share of the difference that each cut really removes. Every drawn table gets its verdict by
the study's own rule; a row of the result counts them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from math import comb

import numpy as np
import pandas as pd

from gatelens.measures.stats import wilson_interval
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE
from gatelens.studies.narrow_gate.verdict import (
    DISTRIBUTED,
    FLIPS,
    INCONCLUSIVE,
    MIXED,
    NARROW,
    gate_stands_out,
    task_verdicts,
)

N = (24, 50, 200, 500)
DRAWS = 200  # of every interval
CLASSES = 20
TRUTHS: dict[
    str, tuple[float, float]
] = {  # the share that cutting the gate removes, and cutting the image tokens
    "gate all, image nothing": (1.0, 0.0),
    "gate nothing, image all": (0.0, 1.0),
    "gate 70 %, image 10 %": (0.7, 0.1),
    "gate 50 %, image nothing (the threshold)": (0.5, 0.0),
    "gate 55 %, image 45 %": (0.55, 0.45),
    "either is enough": (0.0, 0.0),
    "both are needed": (1.0, 1.0),
}
WORTHLESS = "the picture is worth nothing"


def answers(
    n: int, none: float, floor: float, gate: float, image: float, rng: np.random.Generator
) -> pd.DataFrame:
    """The predictions of one study of n examples of the task class."""
    right = {
        NONE: none,
        GATE: none - gate * (none - floor),
        IMAGE: none - image * (none - floor),
        FLOOR: floor,
    }
    parts = [
        pd.DataFrame({"how": "zero", "task": "class", "row": row, "id": range(n), "score": rng.random(n) < p})
        for row, p in right.items()
    ]
    return pd.concat(parts).astype({"score": float})


def verdicts(
    n: int, none: float, floor: float, gate: float, image: float, runs: int, rng: np.random.Generator
) -> Counter[str]:
    """How often each verdict comes out."""
    said: Counter[str] = Counter()
    for seed in range(runs):
        drawn = answers(n, none, floor, gate, image, rng)
        said[task_verdicts(drawn, CLASSES, DRAWS, seed).verdict.iloc[0]] += 1
    return said


def flips_err(n: int, truth: float) -> tuple[float, float]:
    """How often patching n pairs is said to turn most answers, and to turn few, by the exact probabilities."""
    most = few = 0.0
    for k in range(n + 1):
        low, high = wilson_interval(k, n)
        chance = comb(n, k) * truth**k * (1 - truth) ** (n - k)
        most, few = most + chance * (low > FLIPS[1]), few + chance * (high < FLIPS[0])
    return most, few


def standing_out(n_positions: int, spread: float, runs: int, rng: np.random.Generator) -> float:
    """How often a gate that is like any other position stands out: scores drawn alike for all, 8 heads, 6 layers."""
    scores = spread * rng.standard_normal((runs, 6, 8, n_positions), dtype=np.float32)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    share = (weights / weights.sum(-1, keepdims=True)).mean(2)[..., 0].max(1)
    return float(np.mean([gate_stands_out(float(s), n_positions) for s in share]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for line in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(line) + " |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400)
    runs, rng = parser.parse_args().runs, np.random.default_rng(0)
    order = (NARROW, DISTRIBUTED, MIXED, INCONCLUSIVE)
    rows = []
    for name, (gate, image) in [*TRUTHS.items(), (WORTHLESS, (0.0, 0.0))]:
        floor = 0.9 if name == WORTHLESS else 0.06
        cells = []
        for n in N:
            said = verdicts(n, 0.9, floor, gate, image, runs, rng)
            cells.append(" / ".join(f"{100 * said[v] / runs:.0f}" for v in order))
        rows.append([name, *cells])
    table([f"truth ({' / '.join(order)}, %)", *(f"n = {n}" for n in N)], rows)
    rows = [
        [f"{truth:.2f}", *(" / ".join(f"{100 * x:.1f}" for x in flips_err(n, truth)) for n in (24, 48, 224))]
        for truth in (0.1, 0.2, 0.35, 0.5, 0.7)
    ]
    table(["true share of answers changed (judged most / few, %)", "24 pairs", "48 pairs", "224 pairs"], rows)
    rows = [
        [f"{spread:g}", *(f"{100 * standing_out(n, spread, runs, rng):.1f}" for n in (6, 18, 66, 1026))]
        for spread in (1.0, 3.0, 6.0)
    ]
    table(
        ["spread of scores (a gate like any other stands out, %)", "6 positions", "18", "66", "1,026"], rows
    )


if __name__ == "__main__":
    main()
