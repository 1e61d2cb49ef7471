"""What a gate search found: its tables and its verdict, stored in a run and read from one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gatelens.errors import DataError, OutputError
from gatelens.runs import Run
from gatelens.studies.gate_finder import verdict as gate_verdict
from gatelens.studies.gate_finder.places import Place

STUDY = "find-gate"
SEARCH = "search"  # the JSON value of a find-gate run that holds what is in no table
TABLES = ("measures", "blocks", "curves", "layers")
# what was asked for; the other settings of a search were measured
ASKED = (
    "data", "weights", "examples", "n", "n_pairs", "how", "seed", "n_boot", "narrow", "k", "block", "part",
)  # fmt: skip


@dataclass
class GateSearch:
    """What :func:`~gatelens.studies.find_gate` found. Prints as a table; shows itself with its figure in a notebook.

    Attributes:
        model, prompt: what was searched.
        places: every candidate, in prompt order.
        measures: one row a place and measure: ``place, measure, mean, low, high, n, layer``. Measures are
            ``attention``, ``overlap``, ``flipped``, ``target overlap``, and for each kind of knockout
            ``zero accuracy`` (drop, paired), ``zero log_prob`` (drop in nats), and so for ``mask``; ``layer``
            is the best layer where a measure has one. Places of blocks not taken apart have no knockout and
            patching rows.
        blocks: the same columns for blocks of the picture; ``place`` is the first, ``last`` the last place.
        curves: one row a knockout and size of set: ``how, size, share, low, high, added``.
        layers: the found set (else the best place) patched in one layer alone: ``measure`` (``flipped``, ``target
            overlap``), ``layer, mean, low, high, n``.
        settings: numbers the search went by, ``chance``, ``k`` of the overlap and its ``overlap_by_chance`` among
            them.
        verdict: ``verdict, headline, sentence, evidence, disagree``, and by kind of knockout ``sets``.
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
    def gate(self) -> tuple[Place, ...]:
        """The places of the narrow gate; empty when there is none."""
        found = self.verdict["places"] if self.verdict["verdict"] == gate_verdict.NARROW else []
        return tuple(self.places[p] for p in found)

    def ranking(self, measure: str | None = None) -> pd.DataFrame:
        """Places by a measure, the highest first: ``rank, name, role, index, position, mean, low, high, n, layer``.

        ``measure``: None is the drop in log-probability under the first kind of knockout.
        """
        measure = measure or f"{self.settings['how'][0]} log_prob"
        part = self.measures[self.measures.measure == measure]
        if part.empty:
            raise DataError(
                f"no measure {measure!r}; there are {', '.join(dict.fromkeys(self.measures.measure))}"
            )
        part = part.sort_values("mean", ascending=False, kind="stable").reset_index(drop=True)
        known = [self.places[p] for p in part.place]
        facts = {
            "rank": range(1, len(part) + 1),
            "name": [p.name for p in known],
            "role": [p.role for p in known],
            "index": [p.index for p in known],
            "position": [p.position for p in known],
        }
        return pd.concat([pd.DataFrame(facts), part[["place", "mean", "low", "high", "n", "layer"]]], axis=1)

    def __str__(self) -> str:
        from gatelens.views.gate_finder.tables import as_text

        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from gatelens.views.gate_finder.tables import as_html

        return as_html(self)

    def figure(self, dark: bool = False) -> Any:
        """The four measures over the prompt's tokens, and how many tokens carry the effect."""
        from gatelens.views.gate_finder.figures import gate_figure

        return gate_figure(self, dark)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tables, verdict, figures and report as a run: Parquet, JSON, PNG, ``report.html``.

        Raises:
            OutputError: the folder cannot be written or holds something else.
        """
        from gatelens.views.report import write_report

        asked = {key: self.settings[key] for key in ASKED if key in self.settings}
        run = Run.open(folder, study=STUDY, settings={"model": self.model, "prompt": self.prompt, **asked})
        self.store(run)
        run.save_json("verdict", self.verdict)
        write_report(run)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> GateSearch:
        """What :meth:`save` wrote.

        Raises:
            OutputError: the folder holds no run, one of another study, or an unfinished one.
        """
        return cls.from_run(Run.load(folder))

    def store(self, run: Run, section: str = "") -> None:
        """Put everything into a run: its own, or that of a study in which it is a section of this name."""
        prefix = f"{section}_" if section else ""
        run.save_table(f"{prefix}places", pd.DataFrame([vars(p) for p in self.places]))
        for name in TABLES:
            run.save_table(f"{prefix}{name}", getattr(self, name))
        facts = {
            "model": self.model,
            "prompt": self.prompt,
            "settings": self.settings,
            "verdict": self.verdict,
        }
        run.save_json(section or SEARCH, facts)

    @classmethod
    def from_run(cls, run: Run, section: str = "") -> GateSearch:
        """What :meth:`store` put into a run.

        Raises:
            OutputError: the run is of another study and no section is named, or it lacks a table.
        """
        if not section and run.manifest["study"] != STUDY:
            raise OutputError(f"run {run.label} is of study {run.manifest['study']!r}, not of {STUDY!r}")
        prefix = f"{section}_" if section else ""
        facts = run.json(section or SEARCH)
        places = tuple(Place(**row) for row in run.table(f"{prefix}places").to_dict("records"))
        tables = {name: run.table(f"{prefix}{name}") for name in TABLES}
        return cls(facts["model"], facts["prompt"], places, **tables, settings=facts["settings"],
                   verdict=facts["verdict"])  # fmt: skip
