"""How sure a mean is: percentile bootstrap intervals over examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from gatelens.errors import DataError

_CELLS = 4_000_000  # indices drawn at once: bounds memory for large n


def bootstrap_replicates(
    statistic: Callable[..., Float[np.ndarray, " boot"]],
    *columns: Sequence[float] | Float[np.ndarray, " example"],
    n_boot: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, " boot"]:
    """Replicates of a statistic when the examples are drawn again with replacement.

    ``columns`` are paired: the same examples are drawn from each. ``statistic`` receives one array
    ``[boot, example]`` a column and returns ``[boot]`` (so it should reduce over the last axis).

    Raises:
        DataError: no values, columns of different length, or a value that is not finite.
    """
    arrays = [np.asarray(c, dtype=np.float64) for c in columns]
    sizes = {a.shape for a in arrays}
    if not arrays or len(sizes) != 1 or arrays[0].ndim != 1:
        raise DataError(
            f"bootstrap: columns must be one-dimensional and equally long, got shapes {sorted(sizes)}"
        )
    n = len(arrays[0])
    if n == 0:
        raise DataError("bootstrap: no values to draw from; give at least one example")
    for i, a in enumerate(arrays):
        if not np.isfinite(a).all():
            raise DataError(
                f"bootstrap: column {i} holds {int((~np.isfinite(a)).sum())} value(s) that are not finite"
            )
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // n)
    parts = []
    for start in range(0, n_boot, step):
        index = rng.integers(0, n, size=(min(step, n_boot - start), n))
        parts.append(np.asarray(statistic(*(a[index] for a in arrays)), dtype=np.float64))
    return np.concatenate(parts)


def bootstrap_interval(
    values: Sequence[float] | Float[np.ndarray, " example"],
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (Efron 1979), as ``(low, high)``.

    The interval has no width when all values are equal (an accuracy of exactly 0 or 1): read it with n.

    Raises:
        DataError: see :func:`bootstrap_replicates`; or ``level`` outside (0, 1).
    """
    if not 0 < level < 1:
        raise DataError(f"bootstrap: level {level} is outside (0, 1); 0.95 means a 95 % interval")
    means = bootstrap_replicates(lambda v: v.mean(axis=-1), values, n_boot=n_boot, seed=seed)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
