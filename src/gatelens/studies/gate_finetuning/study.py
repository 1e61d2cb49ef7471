"""Train a model with its gate masked, and measure with the narrow-gate study what became of the gate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gatelens.checkpoints import put_weights, weights
from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.runs import Run, check_writable
from gatelens.studies.common import (
    data_fingerprint,
    draw,
    model_fingerprint,
    model_name,
    provenance,
    resolve_data,
    resolve_model,
)
from gatelens.studies.gate_finetuning import summary
from gatelens.studies.gate_finetuning.stages import CONTROL, Stage, check_apart, stages
from gatelens.studies.narrow_gate.study import narrow_gate
from gatelens.training import fine_tune

if TYPE_CHECKING:
    from gatelens.data import Dataset, Example
    from gatelens.model import HookedVLM

STUDY = "gate-finetuning"
TRAINED = ("class", "vqa", "caption")
SECTIONS = ("knockouts", "attention", "patching")


def finetune_gate(
    model: HookedVLM | str,
    data: Dataset | str = "emoji-scenes",
    out: str | os.PathLike[str] = "runs/gate-finetuning",
    *,
    train_data: Dataset | str | None = None,
    n_train: int = 12_000,
    steps: int = 1500,
    swap_steps: int = 0,
    control: bool = False,
    batch_size: int = 32,
    lr: float | None = None,
    parameters: str | None = None,
    seed: int = 0,
    measured: Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Run:
    """Fine-tune the gate away, before and after; a run cut short in the same folder goes on.

    1. *before*: the narrow-gate study of the model as it is;
    2. *masked*: ``steps`` steps in which the text cannot read the gate (knockout before the softmax, all layers), the
       fine-tuning of the paper's later version: the text must learn another way to the picture;
    3. *swapped*, where ``swap_steps`` is not 0: further ones in which it reads the gate of another picture. Masking
       leaves what the text once read at the gate as it was, so that either way alone may do; here what it reads there
       is wrong;
    4. *control*: with ``control``, the model given is trained as long with nothing cut.

    After each training the study runs again, and the weights are kept in ``out/STAGE/model`` as a checkpoint of
    transformers. A model passed as an object has its own weights back at the end.

    Args:
        model: a model or its name.
        data: measured on; see :func:`gatelens.data.load`.
        out: folder of the run.
        train_data: trained on; None is the split ``train`` of the data set named by ``data``.
        n_train: training examples, half of them questions, the others classes and captions, as far as there are.
        steps, swap_steps, batch_size, lr: of AdamW; ``lr`` None is 1e-3 below 100 million parameters, else 1e-5.
        parameters: regular expression: train only the parameters whose names it finds.
        seed: draws examples and batches.
        measured: further arguments of :func:`gatelens.studies.narrow_gate`, the same in all runs; by default the
            sections knockouts, attention and patching.

    Returns:
        The run: tables ``knockout``, ``shares``, ``loss``, each with a ``stage``, and ``run.json("verdict")``.

    Raises:
        DataError: no training data, or an example both trained on and measured on.
        OutputError: ``out`` can't be written or holds other settings.
    """
    folder = check_writable(out)
    if steps < 1 or swap_steps < 0:
        raise DataError(
            f"steps={steps}, swap_steps={swap_steps}: give at least 1 step and no negative number"
        )
    if seed < 0 or n_train < 1 or not (lr is None or 0 < lr < float("inf")):
        raise DataError(
            f"seed={seed}, n_train={n_train}, lr={lr}: give a seed from 0 on, 1 example or more, lr above 0"
        )
    given = not isinstance(model, str)
    options = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}
    source, teacher = resolve_data(data), _training_data(data, train_data)
    learned = _draw(teacher, n_train, seed)
    study = {"sections": list(SECTIONS), "seed": seed, "progress": progress, **(measured or {})}
    vlm = resolve_model(model, **options)
    if lr is None:
        lr = 1e-3 if sum(p.numel() for p in vlm.hf.parameters()) < 1e8 else 1e-5
    named = model_name(model)
    settings = {
        "model": named, "weights": model_fingerprint(vlm), "data": source.name, "train_data": teacher.name,
        "trained_on": data_fingerprint(learned), "n_train": len(learned), "steps": steps, "swap_steps": swap_steps,
        "control": control, "batch_size": batch_size, "lr": lr, "parameters": parameters, "seed": seed,
        "measured": {k: v for k, v in study.items() if k != "progress"},
    }  # fmt: skip
    run = Run.open(
        folder, study=STUDY, settings=settings, info={"device": str(vlm.device), **provenance(source)}
    )
    runs = {summary.BEFORE: narrow_gate(vlm, source, folder / summary.BEFORE, name=named, **study)}
    check_apart(learned, list(runs[summary.BEFORE].table("predictions").id.unique()), source.name)
    losses: dict[str, pd.DataFrame] = {}
    training = {
        "batch_size": batch_size,
        "lr": lr,
        "parameters": parameters,
        "seed": seed,
        "progress": progress,
    }
    with own_weights(vlm, restore=given or control) as put_back:
        for stage in stages(swap_steps > 0, control):
            if not stage.goes_on and losses:
                put_back()
            n = {"swapped": swap_steps, CONTROL: steps + swap_steps}.get(stage.name, steps)
            losses[stage.name] = _train(vlm, stage, learned, folder / stage.name, n, training)
            after = f"{named}, after “{stage.name}”"
            runs[stage.name] = narrow_gate(vlm, source, folder / stage.name / "study", name=after, **study)
    _conclude(run, runs, losses)
    return run


def _train(
    model: HookedVLM,
    stage: Stage,
    examples: list[Example],
    folder: Path,
    steps: int,
    training: dict[str, Any],
) -> pd.DataFrame:
    lr = training["lr"] / (2 if stage.goes_on else 1)  # what has been learned need not be shaken up again
    log = fine_tune(
        model, examples, stage.holds, out=folder / "training", steps=steps, **{**training, "lr": lr}
    )
    if not (folder / "model").exists():
        model.save_pretrained(folder / "model")
    return log


def _conclude(run: Run, runs: Mapping[str, Run], losses: Mapping[str, pd.DataFrame]) -> None:
    run.save_table("knockout", summary.knockouts(runs))
    shares = summary.shares(runs)
    run.save_table("shares", shares)
    run.save_table(
        "loss", pd.concat([log.assign(stage=name) for name, log in losses.items()], ignore_index=True)
    )
    run.save_json("verdict", summary.conclusion(runs, shares, losses))
    # As in every study, the last act is to have itself drawn.
    from gatelens.views.report import write_report

    write_report(run)


@contextmanager
def own_weights(model: HookedVLM, restore: bool) -> Iterator[Any]:
    """Keep the weights on the CPU while the block lasts; yields what puts them back, as is done at its end."""
    kept = {k: v.cpu().clone() for k, v in weights(model).items()} if restore else None

    def put_back() -> None:
        if kept is not None:
            put_weights(model, kept)

    try:
        yield put_back
    finally:
        put_back()


def _training_data(data: Dataset | str, train_data: Dataset | str | None) -> Dataset:
    from gatelens.data import load

    if train_data is not None:
        return resolve_data(train_data)
    name = data if isinstance(data, str) else data.name
    if Path(name).is_dir():
        raise DataError(f"data {name!r} is a folder, which has no split to train on; give train_data=")
    return load(name, split="train")


def _draw(data: Dataset, n: int, seed: int) -> list[Example]:
    """Half questions, a quarter classes, a quarter captions; what a data set lacks the others fill."""
    tasks = [t for wanted in TRAINED for t in data.tasks if kind(t) == wanted]
    if not tasks:
        raise DataError(f"data {data.name!r} has none of the tasks {', '.join(TRAINED)} to learn from")
    weight = {t: 2 if kind(t) == "vqa" else 1 for t in tasks}
    return [e for t in tasks for e in draw(data, t, max(1, n * weight[t] // sum(weight.values())), seed)]
