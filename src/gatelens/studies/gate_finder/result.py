"""What a gate search gives: its tables and its verdict, stored in a run and read from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from gatelens.errors import DataError
from gatelens.runs import Run
from gatelens.studies.gate_finder.places import Place
from gatelens.studies.gate_finder.verdict import NARROW

TABLES = ("measures", "blocks", "curves", "layers")
BY_EXAMPLE = "by_example"  # the table of the values that two runs are compared in
LOST, TAKEN = "accuracy lost", "share carried by a set"
FACTS = "search"  # the JSON value that holds what is in no table


@dataclass
class SearchResult:
    """What a search for a gate gives.

    Attributes:
        model, prompt: what was searched.
        places: every candidate, in prompt order.
        measures: one row a place and measure: ``place, measure, mean, low, high, n, layer``. Measures are
            ``attention``, ``overlap``, ``flipped``, ``target overlap``, ``kept``, and for each kind of knockout
            ``zero accuracy`` (drop, paired), ``zero log_prob`` (drop in nats), and so for ``mask``; ``layer``
            is the best layer where a measure has one. Places of blocks not taken apart have attention and overlap only.
        blocks: the same columns for blocks of the picture; ``place`` is the first, ``last`` the last place. Measures
            are shares of the whole: ``alone``, ``last``, ``shared`` (:mod:`gatelens.studies.gate_finder.carriers`).
        curves: one row a way to be gone (``resample``, then kinds of knockout) and size of set: ``how, size, share,
            low, high, added``.
        layers: the chosen set (else the best place) patched in one layer alone: ``measure`` (``flipped``, ``target
            overlap``), ``layer, mean, low, high, n``.
        settings: numbers the search went by, ``chance``, ``k`` of the overlap and its ``overlap_by_chance`` among
            them.
        verdict: ``verdict, headline, sentence, evidence, disagree``, and by way to be gone ``sets``; the first decides.
    """

    model: str
    prompt: str
    places: tuple[Place, ...]
    measures: pd.DataFrame
    blocks: pd.DataFrame
    curves: pd.DataFrame
    layers: pd.DataFrame
    settings: dict[str, Any]
    verdict: dict[str, Any]

    @property
    def decides(self) -> str:
        """Which of the sets decides."""
        return str(next(iter(self.verdict["sets"])))

    @property
    def smallest(self) -> Mapping[str, Any]:
        """The set that decides: ``size, low, high, share, share_low, share_high, places, damage``."""
        return self.verdict["sets"][self.decides]

    @property
    def gate(self) -> tuple[Place, ...]:
        """The places of the narrow gate; empty when there is none."""
        narrow = self.verdict["verdict"] == NARROW
        return tuple(self.places[p] for p in self.verdict["places"]) if narrow else ()

    def ranking(self, measure: str | None = None) -> pd.DataFrame:
        """Places by a measure, the highest first: ``rank, name, role, index, position, mean, low, high, n, layer``.

        ``measure``: None is the drop in log-probability under the first kind of knockout.
        """
        measure = measure or f"{self.settings['how'][0]} log_prob"
        part = self.measures[self.measures.measure == measure]
        if part.empty:
            raise DataError(f"no measure {measure!r}; there are {', '.join(self.measures.measure.unique())}")
        part = part.sort_values("mean", ascending=False, kind="stable").reset_index(drop=True)
        ranked = [self.places[p] for p in part.place]
        names = ("name", "role", "index", "position")
        facts = pd.DataFrame({name: [getattr(place, name) for place in ranked] for name in names})
        facts.insert(0, "rank", facts.index + 1)
        return facts.join(part[["place", "mean", "low", "high", "n", "layer"]])

    def stored(self) -> dict[str, Any]:
        """Tables and JSON values by the names under which a run of the study keeps them."""
        facts = {name: getattr(self, name) for name in ("model", "prompt", "settings", "verdict")}
        tables = {name: getattr(self, name) for name in TABLES}
        return {"places": pd.DataFrame([vars(p) for p in self.places]), **tables, FACTS: facts}

    @classmethod
    def from_run(cls, run: Run, names: Mapping[str, str] | None = None) -> Self:
        """What was stored in a run; ``names`` are those there, by name in :meth:`stored`, where they are others.

        Raises:
            OutputError: the run lacks a table.
        """
        called = {name: name for name in ("places", *TABLES, FACTS)} | dict(names or {})
        places = tuple(Place(**row) for row in run.table(called["places"]).to_dict("records"))
        tables = {name: run.table(called[name]) for name in TABLES}
        return cls(places=places, **run.json(called[FACTS]), **tables)
