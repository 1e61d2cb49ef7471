"""Find the gate: which positions carry the picture to the answer, a few or many, wherever they stand.

:func:`find_gate` ranks every position of the picture and every position between it and the answer by four
measures, and looks for a small set whose reading, cut, takes 90 % of what the picture is worth.

Nothing relies on what a token is called: the picture is where the input differs between pictures under one
prompt, and the candidates are its positions (image tokens, row breaks, whatever stands among them) and all
between it and the answering last position (end markers, words). Each is measured by

- *attention*: the mean attention it gets from the positions after the picture that come after it, all
  heads, as a share of what all candidates get (NG's f_j, with rows of its own for each key), mean over
  layers;
- *overlap*: χ of its residual stream entering a layer with the labels (``k`` nearest neighbours), at its
  best layer of at most eight. It says that the class can be read there, not that anything reads it;
- *knockout*: nothing after the picture and after the position reads it, in any layer or head (positions
  of the picture still read each other): the drop of accuracy and of the right label's log-probability;
- *patching*: its residual stream entering every layer comes from an example of another class: the share
  of predictions that become that example's, and the gain in Σ min(p, q) with it.

The picture is searched from coarse to fine. It is cut into ``block`` positions in a row (by default the
square root of their number), each block is knocked out and patched as a whole, and only the positions of
blocks that matter are knocked out and patched one by one: blocks whose knockout lowers the log-probability,
or whose patching raises the overlap, by a mean of at least 2 % of the largest possible with an interval
above 0; the strongest ``refine`` of them if there are more. Positions of the other blocks have no number of
their own for these two measures, and are cut last, block by block, when sets grow. So what a position does
only together with positions of other blocks can be missed among single positions, not in the sets.

The set: a position is added that, cut jointly with those before it, leaves the lowest log-probability
(asked anew of all at each of the first ``narrow`` steps, then in the order last measured). Should the
candidates after the picture together be enough while no small set was, they are thinned out one by one
(this finds positions that stand in for each other). The order is chosen on one half of the examples;
shares (of the right label's probability, from what it is unmodified down to what it is with the whole
picture cut off, at least chance), size and intervals come from the other half. The size is an upper
bound: the search follows one order, another set of fewer positions may carry as much, and the interval
is over examples along that order. Positions after the picture whose patching moves nothing carry
nothing of the picture: cutting them can only do damage, and they are left out of the sets and named.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated, Any, Literal

from pydantic import Field

from gatelens.data import Dataset
from gatelens.errors import DataError, OutputError
from gatelens.examples import draw
from gatelens.measures.stats import IN_WORDS
from gatelens.model import HookedVLM
from gatelens.plots.style import NotebookFigure
from gatelens.runs import Run
from gatelens.studies.gate_finder import search
from gatelens.studies.gate_finder.cards import search_answer, search_opening
from gatelens.studies.gate_finder.figures import gate_figure
from gatelens.studies.gate_finder.planted import planted
from gatelens.studies.gate_finder.result import SearchResult
from gatelens.studies.gate_finder.state import why_not
from gatelens.studies.gate_finder.tables import UNPAIRED, as_html, as_text, comparable, comparable_values
from gatelens.studies.gate_finder.verdict import DISTRIBUTED, INCONCLUSIVE, NARROW, NOTHING
from gatelens.studies.options import AtLeastOne, CountsExamples
from gatelens.studies.report import read_from, write_report
from gatelens.studies.runner import run_study
from gatelens.studies.section import Absent, Batch, Evidence, Measured, Setup
from gatelens.studies.study import Drawn, Study, StudyOptions

# what was asked for; the other settings of a search were measured
ASKED = (
    "data", "weights", "examples", "n", "n_pairs", "how", "seed", "n_boot", "narrow", "k", "block", "part",
)  # fmt: skip


class GateSearch(SearchResult):
    """What :func:`~gatelens.studies.find_gate` gives. Prints as a table; shows itself with its figure in a notebook."""

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self)

    def figure(self, dark: bool = False) -> NotebookFigure:
        """The four measures over the prompt's tokens, and how many tokens carry the effect."""
        return gate_figure(self, dark)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tables, verdict, figures and report as a run: Parquet, JSON, PNG, ``report.html``.

        Raises:
            OutputError: the folder cannot be written or holds something else.
        """
        asked = {key: value for key, value in self.settings.items() if key in ASKED}
        settings = {"model": self.model, "prompt": self.prompt, **asked, "sections": {search.NAME: {}}}
        run = Run.open(folder, study=STUDY.name, settings=settings)
        for name, value in {**self.stored(), "verdict": self.verdict}.items():
            run.save(name, value)
        write_report(STUDY, run)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> GateSearch:
        """What :meth:`save` or the study wrote.

        Raises:
            OutputError: the folder holds no run, one of another study, or an unfinished one.
        """
        run = Run.load(folder)
        if run.study != STUDY.name:
            raise OutputError(f"run {run.label} is of study {run.study!r}, not of {STUDY.name!r}")
        with read_from(run):
            return cls.from_run(run)


class FindGateOptions(StudyOptions):
    """What can be asked of the search as a whole."""

    how: Annotated[
        Literal["zero", "mask", "both"],
        Field(description="Knockout: zero (after the softmax), mask (before it) or both; the first decides."),
    ] = "both"
    n: Annotated[AtLeastOne, Field(description="Examples."), CountsExamples()] = 96
    prompt: Annotated[
        str | None, Field(description="Asked instead of the data's own, with <image> in it.")
    ] = None


def draw_examples(data: Dataset, options: FindGateOptions) -> Drawn:
    """Examples of the task class, all with one prompt.

    Raises:
        DataError: there are too few of them, or their prompts differ.
    """
    examples = draw(data, "class", options.n, options.seed)
    if options.prompt is not None:
        examples = [dataclasses.replace(e, prompt=options.prompt) for e in examples]
    reason = why_not(examples)
    if reason is not None:
        raise DataError(f"find_gate: data {data.name!r} {reason}; give one prompt with prompt=, or raise n")
    return {"class": examples}


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """The search's; here nothing is left where it cannot be done.

    Raises:
        DataError: the data or the model's answers cannot be searched.
    """
    try:
        return search.batches(setup, measured)
    except Absent as reason:
        raise DataError(f"find_gate: {reason}") from None


def conclude(run: Run, evidence: list[Evidence]) -> dict[str, Any]:
    """The search's verdict with the sentence its report opens with."""
    result = GateSearch.from_run(run)
    return {**result.verdict, "answer": search_answer(result)}


STUDY = Study(
    name="find-gate",
    title="search for a gate",
    options=FindGateOptions,
    sections=(dataclasses.replace(search.SECTION, batches=batches),),
    draw=draw_examples,
    always=(search.NAME,),
    verdict=conclude,
    words=lambda run: {"interval": IN_WORDS},
    decides=search.NAME,
    opening=lambda run, said: search_opening(GateSearch.from_run(run), planted(run, said)),
    comparable=lambda run: comparable(GateSearch.from_run(run)),
    answers=lambda run: comparable_values(run, GateSearch.from_run(run).places),
    unpaired=UNPAIRED,
    settings=lambda model, data, drawn, options: {"prompt": drawn["class"][0].prompt},
    summary=lambda run: [str(GateSearch.from_run(run))],
    tones={NARROW: "gate", DISTRIBUTED: "image", INCONCLUSIVE: "none", NOTHING: "none"},
    lead={"model": "model", "data": "data", "prompt": "prompt"},
)


def find_gate(
    model: HookedVLM | str,
    data: Dataset | str = "emoji-scenes",
    n: int = 96,
    how: str = "both",
    n_pairs: int = 48,
    prompt: str | None = None,
    block: int | None = None,
    refine: int = 16,
    narrow: int = 4,
    k: int | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
    **options: Any,
) -> GateSearch:
    """Rank the positions that can carry the picture to the answer, and say whether a few of them do.

    :mod:`gatelens.studies.gate_finder.study` says how.

    Args:
        model: the model, or its name.
        data: a data set with the task ``class``, or its name; all prompts must be alike.
        n: examples.
        how: ``"zero"``, ``"mask"`` or ``"both"``; the first decides, the other is evidence.
        n_pairs: pairs of examples for patching.
        prompt: asked instead of the data's own, with ``<image>`` in it; the class name must be what follows.
        block: positions of the picture in a block.
        refine: blocks taken apart at most.
        narrow: a set of at most so many positions is a narrow gate (and of at most an eighth of the picture's).
        k: neighbours of the overlap; None is 30 or, with few examples, one less than a class has on average.
        n_boot: bootstrap replicates.
        seed: draws examples, halves and pairs.
        batch_size: None fits the length of the prompts.
        progress: show a progress bar.
        options: of the runner (:func:`gatelens.studies.runner.run_study`: ``out``, ``device``, ``dtype``,
            ``skip_bad``…).

    Raises:
        DataError: no class task, prompts that differ, fewer than 20 examples or a single class.
    """
    finely = {"n_pairs": n_pairs, "block": block, "refine": refine, "narrow": narrow, "k": k}
    run = run_study(
        STUDY, model, data, sections={search.NAME: finely}, n=n, how=how, prompt=prompt, n_boot=n_boot, seed=seed,
        batch_size=batch_size, progress=progress, **options,
    )  # fmt: skip
    return GateSearch.from_run(run)
