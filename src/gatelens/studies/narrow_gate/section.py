"""What a section of the study is: pieces of work that can be resumed, tables made of them, evidence for the verdict.

A section is a file of this folder with a ``SECTION``; its page is the file of the same name in
``gatelens/views/narrow_gate``. ``sections.py`` lists them in the order of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from gatelens.data.base import kind
from gatelens.studies.common import How, Labels, Progress

if TYPE_CHECKING:
    from gatelens.data import Dataset, Example
    from gatelens.model import HookedVLM
    from gatelens.runs import Run


Evidence = dict[str, str]  # kind: what it is called; says: a verdict; text: the numbers in a sentence


@dataclass
class Context:
    """What every section works with.

    Attributes:
        model, data, run: the study's.
        drawn: the examples of each task, drawn once for all sections.
        hows: the kinds of knockout; the first decides.
        size: examples in a batch.
        labels: first tokens of class names.
        bar: the progress bar over all sections.
    """

    model: HookedVLM
    data: Dataset
    drawn: Mapping[str, Sequence[Example]]
    hows: Sequence[How]
    size: int
    run: Run
    labels: Labels
    bar: Progress

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings."""
        return self.run.manifest["settings"]

    @property
    def seed(self) -> int:
        """Draws whatever a section draws."""
        return self.settings["seed"]

    @property
    def n_boot(self) -> int:
        """Bootstrap replicates of an interval."""
        return self.settings["n_boot"]

    def options(self, section: str) -> dict[str, Any]:
        """What the run was asked for in this section."""
        return self.settings["sections"][section]

    def examples(self, *kinds: str) -> list[tuple[str, Sequence[Example]]]:
        """``(task, examples)`` of the kinds named (``"class"``, ``"vqa"``, ``"caption"``), in that order."""
        return [(t, found) for wanted in kinds for t, found in self.drawn.items() if kind(t) == wanted]


@dataclass(frozen=True)
class Piece:
    """A table that is computed in one go and kept, so that a run cut short goes on after it.

    Attributes:
        stage: its name in the run, ``shards/SECTION-0000`` (or the table's own name when there is one piece).
        label: what the progress bar says meanwhile.
        compute: the table.
        units: of the progress bar, about as long as one batch under one knockout each. ``compute`` may step the bar
            itself; what it left is stepped at its end.
    """

    stage: str
    label: str
    compute: Callable[[], pd.DataFrame]
    units: int = 1


@dataclass(frozen=True)
class Section:
    """One section of the study.

    Attributes:
        name: in ``sections=`` and on the command line.
        about: a line for ``gatelens sections``.
        pieces: its work; an empty list when model or data do not have what it needs.
        conclude: makes the section's tables from those of its pieces, in order; cheap, done anew every time.
        evidence: what its tables say about the gate, in words; of a run that has them, else nothing.
        options: its settings and their defaults; those whose name starts with ``n`` are capped by ``limit``.
    """

    name: str
    about: str
    pieces: Callable[[Context], list[Piece]]
    conclude: Callable[[Context, list[pd.DataFrame]], None]
    evidence: Callable[[Run], list[Evidence]] = lambda run: []
    options: Mapping[str, Any] = field(default_factory=dict)
