"""Which rows come first when only some are wanted."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any


def sample_rows(total: int, limit: int, paper_n: int, seed: int) -> list[int]:
    """``limit`` rows as the narrow-gate paper's code draws them: ``random.sample(range(total), n)``.

    Its start depends on n only where n is a large part of the whole, so the paper's n is drawn even when fewer are
    wanted: a smaller limit gives the first rows of a larger one.
    """
    return random.Random(seed).sample(range(total), min(total, max(limit, paper_n)))[:limit]


def round_robin(groups: Iterable[Any], units: Iterable[Any], seed: int) -> list[int]:
    """Row numbers, one unit of every group in turn, each group's units shuffled by the seed.

    Args:
        groups: the group of every row.
        units: what in a group stays together, for every row.
        seed: shuffles.
    """
    members: dict[Any, dict[Any, list[int]]] = {}
    for number, (group, unit) in enumerate(zip(groups, units, strict=True)):
        members.setdefault(group, {}).setdefault(unit, []).append(number)
    rng = random.Random(seed)
    queues: list[Sequence[list[int]]] = []
    for group in sorted(members, key=str):
        rows_of_units = list(members[group].values())
        queues.append(rng.sample(rows_of_units, len(rows_of_units)))
    turns = max(map(len, queues), default=0)
    return [n for turn in range(turns) for queue in queues if turn < len(queue) for n in queue[turn]]
