"""The smallest set of places that, cut jointly, takes enough of what the picture is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gatelens.measures.concentration import (
    greedy_order,
    prune,
    set_sizes,
    share_removed,
    smallest_carrying,
)
from gatelens.studies.common import How
from gatelens.studies.gate_finder.knockouts import Effects, cut
from gatelens.studies.gate_finder.setup import Setup

PART = 0.9  # of what the picture is worth: a set that takes this much carries it
FINE_SIZES = 128  # sets up to this size are all measured, larger ones in steps of a quarter


def smallest_set(
    setup: Setup,
    how: How,
    clean: Effects,
    whole: Effects,
    singles: Sequence[int],
    carrying: Sequence[int],
    rest: Sequence[int],
    limit: int,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The order in which places are cut, the share each size takes, and the smallest that takes enough.

    The first half of the examples gives the order, the second shares, size and intervals.

    Args:
        setup: what is searched.
        how: the kind of knockout.
        clean, whole: outcomes of all examples with nothing and with the whole picture cut.
        singles: the places that were measured one by one and may be among the first.
        carrying: those of them that stand behind the picture.
        rest: all others, cut after them in this order.
        limit: size of a narrow set.

    Returns:
        ``size, low, high, share, share_low, share_high, places``, and the curve ``how, size, share, low, high,
        added``.
    """
    choose, judge = (np.array(half) for half in setup.halves)
    chance = 1 / len(setup.tokens)

    def remains(sets: Sequence[tuple[int, ...]]) -> list[float]:
        return list(cut(setup, how, sets, 0).log_prob.mean(1))

    def carried(sets: Sequence[Sequence[int]]) -> list[bool]:
        left = cut(setup, how, sets, 0).prob
        return list(share_removed(clean.prob[0, choose], left, whole.prob[0, choose], chance) >= PART)

    def enough(chosen: tuple[int, ...]) -> bool:
        return bool(carried([chosen])[0])

    order = greedy_order(remains, singles, limit, enough) if singles else []
    small = any(carried([order[:size] for size in range(1, min(limit, len(order)) + 1)]))
    if not small and len(carrying) > 1 and enough(tuple(carrying)):
        kept = prune(enough, carrying)
        order = [*kept, *(p for p in order if p not in kept)]
    order = [*order, *rest]
    sizes = set_sizes(len(order), every=FINE_SIZES)
    left = cut(setup, how, [order[:size] for size in sizes], 1)
    none, floor = clean.prob[0, judge], whole.prob[0, judge]
    path = dict(zip(sizes, left.prob, strict=True))
    found = smallest_carrying(none, floor, path, chance, PART, setup.n_boot, setup.seed)
    shares = [
        smallest_carrying(none, floor, {size: path[size]}, chance, PART, setup.n_boot, setup.seed)
        for size in sizes
    ]
    curve = pd.DataFrame(
        {
            "how": how, "size": sizes, "share": [s.share for s in shares], "low": [s.share_low for s in shares],
            "high": [s.share_high for s in shares], "added": [order[size - 1] for size in sizes],
        }
    )  # fmt: skip
    one = {
        "size": found.size, "low": found.low, "high": found.high, "share": found.share,
        "share_low": found.share_low, "share_high": found.share_high, "places": order[: found.size or 0],
    }  # fmt: skip
    return one, curve
