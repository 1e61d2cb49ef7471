"""What a study is: options, sections, how its examples are drawn and what its verdict is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from gatelens.data import Dataset, Example
from gatelens.errors import DataError, OutputError
from gatelens.model import HookedVLM
from gatelens.plots.card import Card
from gatelens.plots.opening import Opening
from gatelens.runs import Run
from gatelens.studies.options import AtLeastOne, Options, Resamples, Seed, check_known, checked
from gatelens.studies.section import VALUES, Evidence, Section

Drawn = Mapping[str, Sequence[Example]]
Chosen = str | Sequence[str] | Mapping[str, Mapping[str, Any]] | None


class StudyOptions(Options):
    """Options every study has."""

    seed: Annotated[Seed, Field(description="Draws examples, random tokens and bootstrap samples.")] = 0
    n_boot: Annotated[Resamples, Field(description="Bootstrap samples of an interval.")] = 1000
    limit: Annotated[
        AtLeastOne | None, Field(description="At most this many examples per task and section.")
    ] = None
    batch_size: Annotated[
        AtLeastOne | None, Field(description="Examples in a batch. Default: fits the length of the prompts.")
    ] = None


def verdict_of(run: Run) -> dict[str, Any]:
    """What a finished run says: ``verdict``, ``headline``, ``sentence`` and the rest of its study's verdict.

    Raises:
        OutputError: it is not finished, or what is there is no verdict.
    """
    said = run.json("verdict")
    if not isinstance(said, dict) or not all(
        isinstance(said.get(name), str) for name in ("verdict", "headline", "sentence")
    ):
        raise OutputError(f"'verdict.json' of run {run.label} is damaged; delete it there and run again")
    return said


def evidence_of(sections: Sequence[Section], run: Run) -> list[Evidence]:
    """What the tables of measured sections say; each piece names its ``section``."""
    return [{**e, "section": s.name} for s in sections for e in s.evidence(run)]


def _summary(run: Run) -> list[str]:
    said = verdict_of(run)
    return [said["headline"], said["sentence"]]


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        name: of the command and in the manifest.
        title: on the report.
        options: its options.
        sections: in the order they are measured and reported.
        draw: the examples of each task, before a model is loaded; raises DataError where the data has none.
        verdict: of the finished tables and the evidence of all sections: ``verdict, headline, sentence, evidence,
            disagree``, ``answer``, the sentence in at most 25 words for the report, and whatever else that shows.
        comparable: cells ``how, metric, row, mean, low, high, n`` for the comparison of two runs.
        answers: what the cells are the means of, as ``values`` of a :class:`~gatelens.studies.section.Section`.
        unpaired: by metric, why its cells can have no values by example.
        always: sections that are measured whether or not they are asked for.
        ask: the drawn examples as this model is asked, such as in turns of a chat.
        settings: what the manifest says besides the options, about model, data, examples and options.
        summary: lines for a terminal when a run is finished.
        tones: colours of the report by what a verdict or a piece of evidence says.
        lead: settings named over the verdict, and their names there.
        words: terms the report explains besides those of its cards.
        closing: cards after those of the sections.
        decides: the section whose tables the verdict is made of.
        opening: the drawings under the verdict, of the run and its verdict.
        inner: the runs of other studies that a run holds, by name, such as those before and after a training; two
            runs are compared in these too.
    """

    name: str
    title: str
    options: type[StudyOptions]
    sections: tuple[Section, ...]
    draw: Callable[[Dataset, Any], Drawn]
    verdict: Callable[[Run, list[Evidence]], Mapping[str, Any]]
    comparable: Callable[[Run], pd.DataFrame]
    answers: Callable[[Run], pd.DataFrame] = lambda run: pd.DataFrame(columns=VALUES)
    unpaired: Mapping[str, str] = field(default_factory=dict)
    always: tuple[str, ...] = ()
    ask: Callable[[HookedVLM, Drawn, Any], Drawn] = lambda model, drawn, options: drawn
    settings: Callable[[HookedVLM, Dataset, Drawn, Any], Mapping[str, Any]] = lambda *_: {}
    summary: Callable[[Run], list[str]] = _summary
    tones: Mapping[str, str] = field(default_factory=dict)
    lead: Mapping[str, str] = field(
        default_factory=lambda: {"model": "model", "data": "data", "how": "knockout"}
    )
    words: Callable[[Run], Mapping[str, str]] = lambda run: {}
    closing: Callable[[Run], list[Card]] = lambda run: []
    decides: str = ""
    opening: Callable[[Run, Mapping[str, Any]], Opening] = lambda run, said: Opening()
    inner: Callable[[Run], Mapping[str, Run]] = lambda run: {}

    def section(self, name: str) -> Section:
        """The section of that name."""
        check_known("section", name, [s.name for s in self.sections])
        return next(s for s in self.sections if s.name == name)

    def chosen(self, sections: Chosen, limit: int | None = None) -> dict[str, Options]:
        """The sections asked for, in order, each with its options.

        Args:
            sections: None or ``"all"``; names, in a list or with commas; or names with options,
                ``{"patching": {"n_pairs": 20}}``, where ``"all"`` may stand for the others. An empty list is those
                that are always measured.
            limit: caps the options that count examples.

        Raises:
            DataError: an unknown section or option, or a value that an option cannot have.
        """
        if isinstance(sections, str):
            sections = [name.strip() for name in sections.split(",") if name.strip()]
        if sections is None:
            sections = ["all"]
        if not (isinstance(sections, Sequence | Mapping) and all(isinstance(name, str) for name in sections)):
            raise DataError(
                f"sections={sections!r}: give names, in a list or with commas, or names with options"
            )
        asked: dict[str, Any] = (
            dict(sections) if isinstance(sections, Mapping) else {name: {} for name in sections}
        )
        names = [s.name for s in self.sections]
        for name, given in asked.items():
            check_known("section", name, [*names, "all"])
            if not isinstance(given, Mapping):
                raise DataError(f"section {name!r}: {given!r} names no option; give {{'OPTION': value}}")
        if asked.get("all"):
            raise DataError(f"sections 'all' have no option {min(asked['all'])!r} together; name the section")
        wanted = set(names) if "all" in asked else {*asked, *self.always}
        return {
            s.name: checked(s.options, asked.get(s.name, {}), s.name).capped(limit)
            for s in self.sections
            if s.name in wanted
        }
