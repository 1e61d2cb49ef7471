"""Rows of the table of measures: a mean over examples with its interval, of a place and a measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from gatelens.measures.stats import bootstrap_interval
from gatelens.studies.common import How
from gatelens.studies.gate_finder.knockouts import Effects
from gatelens.studies.gate_finder.patching import Moved

COLUMNS = ("place", "measure", "mean", "low", "high", "n", "layer")


@dataclass
class Rows:
    """Rows as they are measured; ``n_boot`` and ``seed`` are those of the intervals."""

    n_boot: int
    seed: int
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, place: int, measure: str, values: np.ndarray, layer: int = -1) -> None:
        """A row of one value an example; none of no values. ``layer``: where the measure has a best one."""
        if not len(values):
            return
        low, high = bootstrap_interval(values, self.n_boot, self.seed)
        row = (place, measure, float(values.mean()), low, high, len(values), layer)
        self.found.append(dict(zip(COLUMNS, row, strict=True)))

    def add_cut(
        self, place: int, how: How, clean: Effects, cut: Effects, at: int, has: np.ndarray | None = None
    ) -> None:
        """The drop of accuracy and of log-probability under set ``at``, over the examples that have the place."""
        chosen = np.ones(clean.right.shape[1], dtype=bool) if has is None else has
        self.add(place, f"{how} accuracy", (clean.right[0] - cut.right[at])[chosen])
        self.add(place, f"{how} log_prob", (clean.log_prob[0] - cut.log_prob[at])[chosen])

    def add_patch(self, place: int, moved: Moved, at: int, layer: int = -1) -> None:
        """Flipped answers, and the gain of overlap, under set ``at``."""
        self.add(place, "flipped", moved.flipped[at][moved.flippable], layer)
        self.add(place, "target overlap", moved.gain[at], layer)

    def mean(self, place: int, measure: str) -> float:
        """The mean of a row, 0 where there is none."""
        return next((r["mean"] for r in self.found if r["place"] == place and r["measure"] == measure), 0.0)

    def table(self) -> pd.DataFrame:
        """``place, measure, mean, low, high, n, layer``."""
        return pd.DataFrame(self.found, columns=list(COLUMNS))
