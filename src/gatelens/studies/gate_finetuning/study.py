"""Train a model with its gate masked; the narrow-gate study measures it before and after."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from gatelens.data import Dataset, load
from gatelens.data.base import kind
from gatelens.data.folder import Folder
from gatelens.errors import DataError
from gatelens.examples import draw
from gatelens.identity import resolve_data
from gatelens.model import HookedVLM
from gatelens.plots.numbers import percent
from gatelens.plots.opening import BarTable, Diagram, Opening
from gatelens.runs import Run
from gatelens.studies.gate_finder.planted import planted
from gatelens.studies.gate_finetuning.stages import (
    BEFORE,
    CONTROL,
    SECTION,
    SHOWN,
    TITLES,
    report_of,
    shown_rows,
)
from gatelens.studies.narrow_gate.knockout_table import GATE, IMAGE, NONE
from gatelens.studies.narrow_gate.study import STUDY as NARROW_GATE
from gatelens.studies.narrow_gate.verdict import EITHER, INCONCLUSIVE, MIXED, paths_of
from gatelens.studies.narrow_gate.words import METHOD
from gatelens.studies.options import AtLeastOne, Count, Says, checked
from gatelens.studies.runner import run_study
from gatelens.studies.section import Evidence
from gatelens.studies.study import Drawn, Study, StudyOptions

TRAINED = ("class", "vqa", "caption")
SECTIONS = ("knockouts", "attention", "patching")
SAID = ("gate", "X → text", "what the picture is worth", "lost")  # terms of the first screen
SMALL = 1e8  # parameters: below, the learning rate is higher


class GateFinetuningOptions(StudyOptions):
    """How the model is trained, and what is measured before and after."""

    train_data: Annotated[
        str | Dataset | None, Field(description="Trained on. Default: the train split of the data.")
    ] = None
    n_train: Annotated[
        AtLeastOne,
        Field(description="Training examples, half of them questions, the others classes and captions."),
    ] = 12_000
    steps: Annotated[AtLeastOne, Field(description="Steps with the gate masked from the text.")] = 1500
    swap_steps: Annotated[
        Count, Field(description="Further steps in which the text reads another picture's gate.")
    ] = 0
    control: Annotated[bool, Field(description="Also train equally long with nothing cut.")] = False
    batch_size: Annotated[AtLeastOne, Field(description="Training examples of a step.")] = 32
    lr: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Learning rate of AdamW. Default: 1e-3 for small models, 1e-5 for large.",
        ),
        Says("a number above 0"),
    ] = None
    parameters: Annotated[
        str | None,
        Field(description="Regular expression: train only the parameters whose names it finds."),
    ] = None
    measured: Annotated[
        dict[str, Any] | None,
        Field(description="Further arguments for all narrow-gate runs of this study."),
    ] = None

    def inner(self) -> dict[str, Any]:
        """Arguments of the narrow-gate study."""
        limit = {} if self.limit is None else {"limit": self.limit}
        return {"sections": list(SECTIONS), "seed": self.seed, **limit, **(self.measured or {})}


def draw_training(data: Dataset, options: GateFinetuningOptions) -> Drawn:
    """Training examples: half questions, a quarter classes, a quarter captions; what is lacking the others fill.

    Raises:
        DataError: there are none, or an example is both trained on and measured on.
    """
    teacher = training_data(data, options.train_data)
    tasks = [t for wanted in TRAINED for t in teacher.tasks if kind(t) == wanted]
    if not tasks:
        raise DataError(f"data {teacher.name!r} has none of the tasks {', '.join(TRAINED)} to learn from")
    weight = {t: 2 if kind(t) == "vqa" else 1 for t in tasks}
    share = options.n_train / sum(weight.values())
    drawn = {t: draw(teacher, t, max(1, int(weight[t] * share)), options.seed) for t in tasks}
    both = {e.id for learned in drawn.values() for e in learned} & _measured_ids(data, options)
    if both:
        raise DataError(
            f"data {data.name!r}: example {min(both)!r} is both trained on and measured on; give train_data= of "
            "another split"
        )
    return drawn


def training_data(data: Dataset | str, train_data: Dataset | str | None) -> Dataset:
    """What is trained on: the data set named, or the split ``train`` of the other.

    Raises:
        DataError: a folder, which has no splits.
    """
    if train_data is not None:
        return resolve_data(train_data)
    name = data if isinstance(data, str) else data.name
    if isinstance(data, Folder) or Path(name).is_dir():
        raise DataError(f"data {name!r} is a folder, which has no split to train on; give train_data=")
    return load(name, split="train")


def _measured_ids(data: Dataset, options: GateFinetuningOptions) -> set[str]:
    given = {k: v for k, v in options.inner().items() if k in NARROW_GATE.options.model_fields}
    asked = checked(NARROW_GATE.options, given)
    drawn = NARROW_GATE.draw(data, asked.capped(asked.limit))
    return {e.id for examples in drawn.values() for e in examples}


def _settings(
    model: HookedVLM, data: Dataset, drawn: Drawn, options: GateFinetuningOptions
) -> Mapping[str, Any]:
    small = sum(p.numel() for p in model.hf.parameters()) < SMALL
    return {
        "train_data": training_data(data, options.train_data).name,
        "lr": (1e-3 if small else 1e-5) if options.lr is None else options.lr,
        "measured": options.inner(),
    }


def conclude(run: Run, evidence: list[Evidence]) -> Mapping[str, Any]:
    """``headline``, ``sentence``, and by stage its verdict: before, and after each training."""
    shares, stages = run.table("shares"), run.json("stages")
    first = shares[shares.how == shares.how.iloc[0]]
    last = [s for s in stages if s["name"] != CONTROL][-1]
    headline = f"{stages[0]['headline']} → {_called(last, first[first.stage == last['name']])}"
    return {
        "verdict": last["verdict"],
        "headline": headline,
        "sentence": " ".join(_removed(s, first[first.stage == s["name"]]) for s in stages),
        "answer": _answer(first, last["name"]),
        "evidence": [_stage_evidence(s, first[first.stage == s["name"]]) for s in stages],
        "stages": stages,
    }


def _called(stage: dict[str, Any], rows: pd.DataFrame) -> str:
    """The verdict's headline; "mixed" by its reason, where all tasks have the same."""
    usable = rows[rows.verdict != INCONCLUSIVE]
    if stage["verdict"] == MIXED and len(usable) and usable.why.str.startswith(EITHER).all():
        return EITHER
    return str(stage["headline"])


def _removed(stage: dict[str, Any], rows: pd.DataFrame) -> str:
    """What cutting the gate removes, and how often another picture's gate wins."""
    name = stage["name"]
    title = {BEFORE: "Before", CONTROL: TITLES[CONTROL]}.get(name, f"After “{name}”")
    usable = rows[rows.verdict != INCONCLUSIVE]
    parts = [
        f"{percent(r.gate)} of {r.metric} (image tokens {percent(r.image)})" for r in usable.itertuples()
    ]
    text = (
        f"{title}, cutting the gate removes {', '.join(parts)}."
        if parts
        else f"{title}: nothing can be said."
    )
    if stage["flips"] is None:
        return text
    where = "at the best layer" if stage["flips"] > 0 else "in any layer"
    return f"{text} Another picture's gate flips {percent(stage['flips'])} of predictions {where}."


def _answer(shares: pd.DataFrame, last: str) -> str:
    """The sentence the report opens with."""
    (before, _), (gate, image) = (paths_of(shares[shares.stage == name]) for name in (BEFORE, last))
    return (
        f"Before, cutting the gate loses {before.said} of what the picture is worth; after training, it loses "
        f"{gate.said}, and cutting the image tokens {image.said}."
    )


def _opening(run: Run, said: Mapping[str, Any]) -> Opening:
    """The first screen: the two paths before and after each training."""
    shares = run.table("shares")
    first = shares[shares.how == shares.how.iloc[0]]
    diagrams = [
        Diagram(
            *paths_of(first[first.stage == name]), ("the image", "tokens"), ("gate", ""), ("text", "the answer"),
            link=f"#{SECTION.name}", title=TITLES[name],
        )
        for name in first.stage.unique()
    ]  # fmt: skip
    # what was planted is in the model as it was given
    known = planted(run, next(stage for stage in said["stages"] if stage["name"] == BEFORE))
    return Opening(diagrams, _bars(run, first), known, {term: METHOD[term] for term in SAID})


def inner_runs(run: Run) -> dict[str, Run]:
    """The narrow-gate runs of the stages, those that are still in the run's folder."""
    if run.path is None:
        return {}
    folders = {stage["name"]: (run.path / report_of(stage["name"])).parent for stage in run.json("stages")}
    return {
        name: Run.load(folder) for name, folder in folders.items() if (folder / "manifest.json").is_file()
    }


def _bars(run: Run, shares: pd.DataFrame) -> BarTable:
    """What is left when nothing, the gate or the image tokens are cut: the stages of each side by side."""
    table = shown_rows(run.table("knockout"))
    rows = [(cut, stage) for cut in (NONE, GATE, IMAGE) for stage in table.stage.unique()]
    names = {NONE: "nothing cut", GATE: "gate cut", IMAGE: "image cut"}
    floors = shares.groupby("metric", sort=False).floor.mean().to_dict()
    return BarTable.from_means(
        table.assign(row=table.row + "\n" + table.stage),
        {f"{cut}\n{stage}": SHOWN[cut] for cut, stage in rows},
        names={f"{cut}\n{stage}": f"{names[cut]}, {stage}" for cut, stage in rows},
        tops={metric: 1.0 for metric in table.metric if "accuracy" in metric},
        chances=floors, link=f"#{SECTION.name}",
        caption="Score with attention from text cut. Whiskers: 95 % interval. Dashed: no picture, mean of all.",
    )  # fmt: skip


def _stage_evidence(stage: dict[str, Any], rows: pd.DataFrame) -> Evidence:
    gate, image = paths_of(rows)
    flips = "" if stage["flips"] is None else f"; another picture’s gate changes {percent(stage['flips'])}"
    ended = "" if stage["loss"] is None else f"training ended at {stage['loss']:.3f} nats per token. "
    name = stage["name"]
    return {
        "kind": TITLES[name],
        "says": stage["verdict"],
        "text": ended + stage["sentence"].removesuffix("."),
        "line": f"{stage['verdict']}; {gate.name} loses {gate.said}, {image.name} {image.said}{flips}",
    }


STUDY = Study(
    name="gate-finetuning",
    title="fine-tuning away the gate",
    options=GateFinetuningOptions,
    sections=(SECTION,),
    draw=draw_training,
    always=(SECTION.name,),
    verdict=conclude,
    comparable=lambda run: run.table("knockout").assign(row=lambda t: t.stage + ": " + t.row),
    inner=inner_runs,
    settings=_settings,
    tones=NARROW_GATE.tones,
    lead={"model": "model", "data": "data"},
    words=NARROW_GATE.words,
    decides=SECTION.name,
    opening=_opening,
)


def finetune_gate(
    model: HookedVLM | str,
    data: Dataset | str = "emoji-scenes",
    out: str | os.PathLike[str] = "runs/gate-finetuning",
    *,
    train_data: Dataset | str | None = None,
    **options: Any,
) -> Run:
    """Fine-tune the gate away, before and after; a run cut short in the same folder goes on.

    1. *before*: the narrow-gate study of the model as it is;
    2. *masked*: ``steps`` steps in which the text cannot read the gate (knockout before the softmax, all layers), the
       fine-tuning of the paper's later version: the text must learn another way to the picture;
    3. *swapped*, where ``swap_steps`` is not 0: further ones in which it reads the gate of another picture. Masking
       leaves what the text once read at the gate as it was, so that either way alone may do; here what it reads there
       is wrong;
    4. *control*: with ``control``, the model given is trained equally long with nothing cut.

    After each training the study runs again, and the weights are kept in ``out/STAGE/model`` as a checkpoint of
    transformers. The model has its own weights back at the end.

    Args:
        model: a model or its name.
        data: measured on; see :func:`gatelens.data.load`.
        out: folder of the run.
        train_data: trained on; None is the split ``train`` of the data set named by ``data``.
        options: of the study (:class:`GateFinetuningOptions`: ``steps``, ``swap_steps``, ``control``, ``n_train``,
            ``batch_size``, ``lr``, ``parameters``, ``seed``, ``measured``…) and of the runner
            (:func:`gatelens.studies.runner.run_study`: ``device``, ``dtype``, ``progress``…).

    Returns:
        The run: tables ``knockout``, ``shares``, ``loss``, each with a ``stage``, and ``run.json("verdict")``.

    Raises:
        DataError: no training data, or an example both trained on and measured on.
        OutputError: ``out`` can't be written or holds other settings.
    """
    source = resolve_data(data, options.get("skip_bad", False))
    return run_study(STUDY, model, source, out, train_data=training_data(data, train_data), **options)
