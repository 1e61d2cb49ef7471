"""How often the intervals of :mod:`gatelens.measures.stats` hold the truth.

    python -m benchmarks.intervals [--samples 2000]

A row is a distribution whose mean is known: samples are drawn from it, and counted is how often the 95 % interval holds
that mean. Beside it stands what the percentile bootstrap of the same samples does. Proportions are not drawn: all
outcomes are counted with their probability.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import comb

import numpy as np

from gatelens.measures.stats import CHANGE, SHARE, Bounds, mean_interval

N = (24, 30, 200)
DRAWS = 1000  # of every interval
Draw = Callable[[np.random.Generator, int], np.ndarray]


def percentile_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The middle 95 % of the means of samples drawn again with replacement."""
    means = values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def of(values: tuple[float, ...], shares: tuple[float, ...]) -> tuple[Draw, float]:
    """A distribution of a few values, and its mean."""
    return lambda rng, n: rng.choice(values, n, p=shares), float(np.dot(values, shares))


CREDIT = (0.0, 0.3, 0.6, 0.9, 1.0)  # VQA accuracy with ten annotators
DISTRIBUTIONS: dict[str, tuple[tuple[Draw, float], Bounds | None]] = {
    "difference of paired outcomes: 1 % better, 5 % worse": (of((-1, 0, 1), (0.05, 0.94, 0.01)), CHANGE),
    "difference of paired outcomes: 5 % better, 20 % worse": (of((-1, 0, 1), (0.20, 0.75, 0.05)), CHANGE),
    "difference of paired outcomes: 98 % worse": (of((-1, 0), (0.98, 0.02)), CHANGE),
    "partial credit, mean .96": (of(CREDIT, (0.02, 0.02, 0.02, 0.02, 0.92)), SHARE),
    "partial credit, mean .68": (of(CREDIT, (0.2, 0.1, 0.1, 0.1, 0.5)), SHARE),
    "object F1, mean .99": (of((0.5, 2 / 3, 1.0), (0.01, 0.02, 0.97)), SHARE),
    "no bounds: gamma, shape 4 (CIDEr-D)": ((lambda rng, n: rng.gamma(4, 2, n), 8.0), None),
    "no bounds: log-normal, σ = 1": ((lambda rng, n: rng.lognormal(0, 1, n), float(np.exp(0.5))), None),
}


def held_by_proportion(n: int, p: float, rng: np.random.Generator) -> tuple[float, float]:
    """How often both intervals of a proportion hold p, over all outcomes of n examples."""
    held = np.zeros(2)
    for k in range(n + 1):
        values = np.array([1.0] * k + [0.0] * (n - k))
        for i, (low, high) in enumerate((mean_interval(values), percentile_interval(values, rng))):
            held[i] += (low <= p <= high) * comb(n, k) * p**k * (1 - p) ** (n - k)
    return float(held[0]), float(held[1])


def held_by_samples(
    draw: Draw, mean: float, bounds: Bounds | None, n: int, samples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """How often both intervals of so many samples of n values hold the mean."""
    held = np.zeros(2)
    for seed in range(samples):
        values = draw(rng, n)
        ours = mean_interval(values, bounds, n_boot=DRAWS, seed=seed)
        for i, (low, high) in enumerate((ours, percentile_interval(values, rng))):
            held[i] += low - 1e-12 <= mean <= high + 1e-12
    return float(held[0] / samples), float(held[1] / samples)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2000)
    samples, rng = parser.parse_args().samples, np.random.default_rng(0)
    print(
        "| 95 % interval of a mean contains the true value (percentile bootstrap) |",
        *(f"n = {n} |" for n in N),
    )
    print("|---" * (len(N) + 1) + "|")
    for p in (0.5, 0.9, 0.99):
        cells = [held_by_proportion(n, p, rng) for n in N]
        print(f"| proportion {p} |", *(f"{100 * a:.1f} ({100 * b:.1f}) |" for a, b in cells), flush=True)
    for name, ((draw, mean), bounds) in DISTRIBUTIONS.items():
        cells = [held_by_samples(draw, mean, bounds, n, samples, rng) for n in N]
        print(f"| {name} |", *(f"{100 * a:.1f} ({100 * b:.1f}) |" for a, b in cells), flush=True)


if __name__ == "__main__":
    main()
