"""Is there a narrow gate? The study of Serra et al. (arXiv 2412.06646) on any model and data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gatelens.data import Dataset, Example
from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.examples import draw
from gatelens.model import HookedVLM
from gatelens.runs import Run
from gatelens.studies.narrow_gate import finder, knockouts, meaning, progressive, questions
from gatelens.studies.narrow_gate.asking import REPEATS, as_asked, check_repeats, turned_kinds
from gatelens.studies.narrow_gate.attention import section as attention
from gatelens.studies.narrow_gate.drawing import section as drawing
from gatelens.studies.narrow_gate.knockout_table import by_example
from gatelens.studies.narrow_gate.modality_gap import section as modality_gap
from gatelens.studies.narrow_gate.opening import opening
from gatelens.studies.narrow_gate.patching import section as patching
from gatelens.studies.narrow_gate.steering import section as steering
from gatelens.studies.narrow_gate.verdict import ANOTHER, DISTRIBUTED, INCONCLUSIVE, MIXED, NARROW, verdict
from gatelens.studies.narrow_gate.words import words
from gatelens.studies.options import AtLeastOne, Examples
from gatelens.studies.runner import run_study
from gatelens.studies.section import Evidence
from gatelens.studies.study import Drawn, Study, StudyOptions


class NarrowGateOptions(StudyOptions):
    """What can be asked of the study as a whole."""

    how: Annotated[
        Literal["zero", "mask", "both"],
        Field(
            description="Knockout: zero (after the softmax, as the paper's code), mask (before it) or both."
        ),
    ] = "zero"
    n_class: Annotated[Examples, Field(description="Examples of the task class.")] = 500
    n_vqa: Annotated[Examples, Field(description="Questions.")] = 500
    n_caption: Annotated[Examples, Field(description="Pictures to caption.")] = 200
    random_tokens: Annotated[AtLeastOne, Field(description="Image tokens of the random row.")] = 10
    random_repeats: Annotated[
        int | dict[str, int],
        Field(description="Draws of the random row: a number, or one for each kind of task."),
    ] = REPEATS
    vqa_tokens: Annotated[AtLeastOne, Field(description="Longest answer.")] = 20
    caption_tokens: Annotated[AtLeastOne, Field(description="Longest caption.")] = 60
    chat: Annotated[
        bool | None,
        Field(
            description="Ask questions and captions as a user's turn. Default: as the paper did, by family."
        ),
    ] = None

    @field_validator("random_repeats")
    @classmethod
    def _by_kind(cls, value: int | dict[str, int]) -> int | Mapping[str, int]:
        return check_repeats(value)

    def longest(self, task: str) -> int:
        """Most new tokens of an answer; a class is one."""
        return {"vqa": self.vqa_tokens, "caption": self.caption_tokens}.get(kind(task), 1)


def draw_tasks(data: Dataset, options: NarrowGateOptions) -> Drawn:
    """The examples of each task the data has.

    Raises:
        DataError: it has none, or examples lack pictures or answers.
    """
    wanted = {"class": options.n_class, "vqa": options.n_vqa, "caption": options.n_caption}
    tasks = [task for asked in wanted for task in data.tasks if kind(task) == asked]
    drawn: dict[str, list[Example]] = {
        task: draw(data, task, wanted[kind(task)], options.seed) for task in tasks
    }
    drawn = {task: examples for task, examples in drawn.items() if examples}
    if not drawn:
        raise DataError(
            f"data {data.name!r} has none of the tasks {', '.join(wanted)} (it has: {', '.join(data.tasks)})"
        )
    return drawn


def conclude(run: Run, evidence: list[Evidence]) -> Mapping[str, Any]:
    """The verdict over all tasks; the knockout table decides, and names what the search found where it is elsewhere."""
    gate = run.json("tokens")["gate"]
    called = (
        f"the end-of-image token {gate['string']}" if gate["literal"] else "the first token after the image"
    )
    return verdict(run.table("tasks"), evidence, called, finder.candidate(finder.search_of(run)))


STUDY = Study(
    name="narrow-gate",
    title="narrow-gate study",
    options=NarrowGateOptions,
    sections=(
        knockouts.SECTION,
        progressive.SECTION,
        questions.SECTION,
        attention.SECTION,
        modality_gap.SECTION,
        meaning.SECTION,
        patching.SECTION,
        finder.SECTION,
        steering.SECTION,
        drawing.SECTION,
    ),
    draw=draw_tasks,
    verdict=conclude,
    comparable=lambda run: run.table("knockout"),
    answers=lambda run: by_example(run.table("predictions")),
    always=("knockouts",),
    tones={NARROW: "gate", DISTRIBUTED: "image", MIXED: "mixed", ANOTHER: "gate", INCONCLUSIVE: "none"},
    words=words,
    closing=knockouts.closing,
    decides="knockouts",
    opening=opening,
    ask=lambda model, drawn, options: as_asked(model, drawn, turned_kinds(model, options.chat)),
    settings=lambda model, data, drawn, options: {
        "chat": turned_kinds(model, options.chat),
        "max_new_tokens": {"vqa": options.vqa_tokens, "caption": options.caption_tokens},
    },
)


def narrow_gate(
    model: HookedVLM | str,
    data: Dataset | str = "emoji-scenes",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Run:
    """Run the study, or finish one that was cut short in the same folder.

    Args:
        model: a model or its name.
        data: a data set, its name or a folder (see :func:`gatelens.data.load`); tasks it lacks are left out. The
            paper's settings: ``narrow_gate(model, out=..., **gatelens.studies.preset("paper").arguments())``.
        out: folder of the run; None keeps the tables in memory and draws no report.
        options: of the study (:class:`NarrowGateOptions`: ``how``, ``n_vqa``, ``limit``, ``seed``…) and of the runner
            (:func:`gatelens.studies.runner.run_study`: ``sections``, ``name``, ``skip_bad``, ``device``, ``dtype``,
            ``progress``, ``workers``, ``ray``).

    Returns:
        The run: ``run.table("knockout")``, ``"attention"``, ``"patching"``, ``"tasks"``, ``"predictions"``,
        ``run.json("verdict")``; with ``out`` also ``figures/knockout.png``, …, ``report.html``.

    Raises:
        OutputError: ``out`` can't be written or holds other settings (before any compute).
        DataError: the data has none of the tasks, or examples lack pictures or answers.

    Example:
        >>> few = gl.studies.narrow_gate(model, limit=4, sections=["knockouts"], progress=False)
        >>> table = few.table("knockout")
        >>> table[table.metric == table.metric.iloc[0]][["row", "mean"]].round(2)
                            row  mean
        0                  none   1.0
        2           gate → text   0.0
        4          image → text   1.0
        6      random-10 → text   1.0
        8     last image → text   1.0
        10  gate + image → text   0.0
    """
    return run_study(STUDY, model, data, out, **options)
