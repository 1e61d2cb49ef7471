"""The search for a small circuit, and what it is compared with: prefixes of other sizes, and random sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from gatelens.errors import InputError
from gatelens.measures.stats import drawn_means, mean_interval, middle

Values = Callable[[Bool[np.ndarray, "circuit part"]], Float[np.ndarray, "circuit pair"]]
ROUNDING = 1e-6  # of faithfulness
NONE = 1e-3  # the least that full and empty circuit differ by, as a share of the larger one


class Faithfulness:
    """The share of a metric that a circuit carries, measured once for each set of parts.

    Args:
        values: the metric of circuits.
        n_parts: how many parts there are.

    Attributes:
        full, empty: the metric with all parts and with none, one per pair.

    Raises:
        InputError: the two do not differ.
    """

    def __init__(self, values: Values, n_parts: int, metric: str) -> None:
        self.n_parts, self._values = n_parts, values
        self._known: dict[bytes, Float[np.ndarray, " pair"]] = {}
        self.empty, self.full = self.metrics([[], range(n_parts)])
        self.between = float(self.full.mean() - self.empty.mean())
        if abs(self.between) <= NONE * max(abs(self.full.mean()), abs(self.empty.mean())):
            raise InputError(
                f"the {metric} is {self.full.mean():.4g} with all parts clean and {self.empty.mean():.4g} with all of "
                "them corrupt: no circuit carries a share of that; give pairs and a metric that tell the runs apart"
            )

    def metrics(self, circuits: Sequence[Sequence[int]]) -> Float[np.ndarray, "circuit pair"]:
        """The metric of circuits, each the numbers of its parts."""
        masks = np.zeros((len(circuits), self.n_parts), dtype=bool)
        for row, parts in zip(masks, circuits, strict=True):
            row[list(parts)] = True
        keys = [np.packbits(row).tobytes() for row in masks]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            measured = self._values(masks[list(new.values())])
            self._known.update(zip(new, measured, strict=True))
        return np.array([self._known[key] for key in keys])

    def of(self, circuits: Sequence[Sequence[int]]) -> Float[np.ndarray, " circuit"]:
        """The faithfulness of circuits: of the means over pairs."""
        return (self.metrics(circuits).mean(axis=1) - self.empty.mean()) / self.between

    def reach(self, circuits: Sequence[Sequence[int]], share: float) -> Bool[np.ndarray, " circuit"]:
        """Whether circuits are faithful to a share, but for rounding."""
        return self.of(circuits) >= share - ROUNDING

    def completeness(self, circuits: Sequence[Sequence[int]]) -> Float[np.ndarray, " circuit"]:
        """The completeness of circuits."""
        return 1 - self.of([self.others(one) for one in circuits])

    def others(self, circuit: Sequence[int]) -> list[int]:
        """The complement of a circuit."""
        return sorted(set(range(self.n_parts)) - set(circuit))

    def interval(self, circuit: Sequence[int]) -> tuple[float, float]:
        """The 95 % interval over pairs of a circuit's faithfulness: a ratio of means, by Bayesian bootstrap."""
        (values,) = self.metrics([circuit])
        drawn, empty, full = drawn_means(values, self.empty, self.full, bounds=None)
        low, high = middle((drawn - empty) / (full - empty))
        return low, high


def smallest_prefix(shares: Faithfulness, order: Sequence[int], share: float, sizes: Sequence[int]) -> int:
    """The size of a prefix of ``order`` that carries the share, while the one with a part fewer does not.

    Prefixes of all ``sizes`` are measured; between the first that carries the share and the size before it a bisection
    goes on.
    """
    first = int(np.argmax(shares.reach([order[:n] for n in sizes], share)))
    low, high = (sizes[first - 1] if first else -1), sizes[first]
    while high - low > 1:
        middle_size = (low + high) // 2
        if shares.reach([order[:middle_size]], share)[0]:
            high = middle_size
        else:
            low = middle_size
    return high


def minimal(shares: Faithfulness, kept: Sequence[int], share: float) -> list[int]:
    """The parts without those that can go, until each of those left is needed.

    The last of ``kept`` is tried first. After a block that could go, one twice as large is tried; after one that could
    not, a single part.
    """
    parts, n_before = list(kept), len(kept) + 1
    while len(parts) < n_before:
        n_before, end, size = len(parts), len(parts), 1
        while end:
            start = max(0, end - size)
            rest = [*parts[:start], *parts[end:]]
            if shares.reach([rest], share)[0]:
                parts, end, size = rest, start, 2 * size
            elif size > 1:
                size = 1
            else:
                end = start
    return parts


def curve_sizes(n_parts: int) -> list[int]:
    """Sizes to measure: 0, 1, 2, 5, 10, 20, 50, … and all."""
    steps = [factor * 10**power for power in range(len(str(n_parts))) for factor in (1, 2, 5)]
    return [0, *(size for size in steps if size < n_parts), n_parts]


def curves(
    shares: Faithfulness,
    order: Sequence[int],
    circuit: Sequence[int],
    sizes: Sequence[int],
    random: int,
    seed: int,
) -> pd.DataFrame:
    """Faithfulness and completeness over sizes: ``set, size, measure, mean, low, high, n``.

    ``set`` is ``top`` (prefixes by score), ``circuit``, or ``random``: the mean and its interval over random sets, in
    place of pairs. ``n`` counts pairs or sets.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, int, str, float, float, float, int]] = []
    n_pairs = len(shares.full)
    prefixes = [("top", list(order[:size])) for size in sizes]
    named: list[tuple[str, list[int]]] = [*prefixes, ("circuit", list(circuit))]
    drawn = {size: [_draw(rng, shares.n_parts, size) for _ in range(random)] for size in sizes}
    shares.metrics([*(parts for _, parts in named), *chain(*drawn.values())])  # many a pass
    for name, parts in named:
        low, high = shares.interval(parts)
        rows.append((name, len(parts), "faithfulness", float(shares.of([parts])[0]), low, high, n_pairs))
        low, high = shares.interval(shares.others(parts))
        mean = float(shares.completeness([parts])[0])
        rows.append((name, len(parts), "completeness", mean, 1 - high, 1 - low, n_pairs))
    for size, sets in drawn.items() if random else ():
        for measure, values in (
            ("faithfulness", shares.of(sets)),
            ("completeness", shares.completeness(sets)),
        ):
            low, high = mean_interval(values, None)
            rows.append(("random", size, measure, float(values.mean()), low, high, random))
    return pd.DataFrame(rows, columns=["set", "size", "measure", "mean", "low", "high", "n"])


def _draw(rng: np.random.Generator, n_parts: int, size: int) -> list[int]:
    return [int(part) for part in np.sort(rng.choice(n_parts, size=size, replace=False))]
