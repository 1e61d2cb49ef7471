"""Find the gate: which positions carry the picture to the answer, few or many, anywhere in the prompt.

:func:`find_gate` says what every position of the picture and every position between it and the answer adds, and looks
for a small set that carries 90 % of what the picture is worth.

Nothing relies on what a token is called: the picture is where the input differs between pictures under one prompt, and
the candidates are its positions (image tokens, row breaks, whatever stands among them) and all between it and the
answering last position (end markers, words).

Sets of positions are *kept* or *taken*. Each example is paired with one of another class, its picture of the same size.
A set that is kept has its own activations (the residual stream entering every layer) and all other positions of the
picture have the partner's; a set that is taken has the partner's and all others keep their own. Rows after the picture
that are in no set are computed from what they then read. What is measured is the log-odds of the own answer against
the partner's, or its probability between these two. Nothing is damaged: a position that carries a constant does not
count.

- First the picture is cut into ``block`` positions in a row (by default the square root of their number). What blocks
  and the positions after the picture add is asked alone (kept against nothing), last (taken against everything) and on
  average over random orders (their Shapley values). So parts that stand in for each other are seen, parts that only
  work together, and parts of which some are enough.
- Then the same is asked of single positions of the blocks that seem to add anything (the strongest ``refine`` of them)
  and of those after the picture, in new pairs. Positions of the other blocks have no number of their own.
- All sets of the six strongest are tried; the smallest that is enough comes first in the order, then the others as they
  rank. A set carries the mean of the share that is there with it kept and of the share that is lost with it taken.
- All this is done on one half of the examples. The share of sets of growing size along the order, the smallest that
  carries enough and its intervals come from the other half. The size is an upper bound: the search follows one order,
  and another set of fewer positions may carry as much.

Beside this, as evidence, every single position and every growing set is cut: nothing after the picture and after the
position reads it, in any layer or head (positions of the picture still read each other). Shares are of the right
answer's probability, from what it is unmodified down to what it is with the whole picture cut off, at least chance.
Each position has its mean attention from the positions after the picture that come after it, as a share of what all
candidates get (NG's f_j, with rows of its own for each key), and the overlap χ of its residual stream with the labels
(``k`` nearest neighbours) at its best layer of at most eight. Positions after the picture that move nothing when they
are taken carry nothing of the picture: cutting them can only do damage, and they are left out of the sets and named.
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
        """The measures over the prompt's tokens, and how many of them carry the effect."""
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
        Field(description="Knockout: zero (after the softmax), mask (before it) or both."),
    ] = "both"
    n: Annotated[AtLeastOne, Field(description="Examples."), CountsExamples()] = 96
    prompt: Annotated[
        str | None, Field(description="Prompt to use instead of the data's own, with <image> in it.")
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
        data: a data set with the task ``class``, or its name; all prompts must be the same.
        n: examples.
        how: kinds of knockout, as evidence: ``"zero"``, ``"mask"`` or ``"both"``.
        n_pairs: pairs of examples in which the chosen set is patched layer by layer.
        prompt: asked instead of the data's own, with ``<image>`` in it; the class name must be what follows.
        block: positions of the picture in a block.
        refine: blocks taken apart at most.
        narrow: the maximum number of positions of a narrow gate (and of at most an eighth of the picture's).
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
