"""Fine-tuning away the gate: runs around the training, resuming, weights put back, and bad input."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForImageTextToText

import gatelens as gl
from gatelens.errors import DataError, OutputError
from gatelens.model import HookedVLM
from gatelens.runs import Run
from gatelens.studies import finetune_gate
from gatelens.studies.gate_finetuning.stages import before_after, loss_curves
from gatelens.studies.gate_finetuning.study import STUDY, conclude
from gatelens.studies.runner import run_study
from gatelens.studies.section import Measured, Setup
from study_helpers import TinyData, synthetic_run
from tiny_models import make_chameleon_processor

MEASURED = {
    "limit": 6,
    "batch_size": 6,
    "caption_tokens": 3,
    "vqa_tokens": 2,
    "n_boot": 50,
    "random_repeats": 1,
}
SMALL = {
    "n_train": 24,
    "steps": 3,
    "swap_steps": 2,
    "control": True,
    "batch_size": 4,
    "lr": 1e-2,
    "measured": {**MEASURED, "sections": ["attention"]},
    "progress": False,
}


SMALL_OPTIONS = {name: value for name, value in SMALL.items() if name != "progress"}


class TrainingData(TinyData):
    """The same task on other pictures."""

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        drawn = super().examples(task, limit, seed + 100)
        for e in drawn:
            e.id = f"train-{e.id}"
        return drawn


@pytest.fixture(scope="module")
def model(hf_chameleon: Any) -> HookedVLM:
    return HookedVLM.from_module(copy.deepcopy(hf_chameleon), make_chameleon_processor())


@pytest.fixture(scope="module")
def finished(model: HookedVLM, tmp_path_factory: pytest.TempPathFactory) -> gl.Run:
    out = tmp_path_factory.mktemp("runs") / "wide"
    return finetune_gate(model, TinyData(), out, train_data=TrainingData(), **SMALL)


def test_the_weights_given_come_back(model: HookedVLM, finished: gl.Run, hf_chameleon: Any) -> None:
    inputs = model.prepare(TinyData().examples("class")[0].image, "<image>this animal is a")
    with torch.no_grad():
        want = hf_chameleon(**inputs.tensors).logits
    assert torch.allclose(model(inputs), want, atol=1e-5)


def test_tables_are_those_of_the_runs_around_each_training(finished: gl.Run) -> None:
    table = finished.table("knockout")
    folders = {
        "before": "before",
        "masked": "masked/study",
        "swapped": "swapped/study",
        "control": "control/study",
    }
    assert list(dict.fromkeys(table.stage)) == list(folders)
    for stage, folder in folders.items():
        own = gl.Run.load(finished.path / folder).table("knockout")
        part = table[table.stage == stage].drop(columns="stage").reset_index(drop=True)
        assert part.equals(own)
    loss = finished.table("loss")
    assert loss.groupby("stage").size().to_dict() == {"masked": 3, "swapped": 2, "control": 5}


def test_the_kept_weights_are_those_measured(finished: gl.Run) -> None:
    """Loaded by transformers alone, the checkpoint of each stage gives what its run predicted."""
    e = TinyData().examples("class")[0]
    before = None
    for stage in ("masked", "swapped", "control"):
        hf = AutoModelForImageTextToText.from_pretrained(finished.path / stage / "model")
        model = HookedVLM.from_module(hf, make_chameleon_processor())
        inputs = model.prepare(e.image, e.prompt)
        word = model.decode(model(inputs)[:, -1].argmax(-1, keepdim=True).tolist())[0]
        predictions = gl.Run.load(finished.path / stage / "study").table("predictions")
        said = predictions[(predictions.id == e.id) & (predictions.row == "none")].prediction.iloc[0]
        assert word.strip() == said
        weights = torch.cat([p.flatten() for p in hf.parameters()])
        assert before is None or not torch.equal(weights, before)
        before = weights


def test_a_finished_run_is_not_trained_again(
    model: HookedVLM, finished: gl.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gatelens.training import loop as module

    monkeypatch.setattr(module, "loss_of", lambda *_: pytest.fail("trained again"))
    again = finetune_gate(model, TinyData(), finished.path, train_data=TrainingData(), **SMALL)
    assert again.table("knockout").equals(finished.table("knockout"))
    with pytest.raises(OutputError, match="other settings \\(lr"):
        finetune_gate(model, TinyData(), finished.path, train_data=TrainingData(), **{**SMALL, "lr": 1.0})


def test_bad_input(model: HookedVLM, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="both trained on and measured on"):
        finetune_gate(model, TinyData(), tmp_path / "a", train_data=TinyData(), **SMALL)
    with pytest.raises(DataError, match="steps=0"):
        finetune_gate(model, TinyData(), tmp_path / "b", train_data=TrainingData(), **{**SMALL, "steps": 0})
    for name, value in (("seed", -1), ("n_train", 0), ("lr", 0.0), ("lr", float("nan"))):
        with pytest.raises(DataError, match=f"{name}={value}"):
            finetune_gate(
                model, TinyData(), tmp_path / "b", train_data=TrainingData(), **{**SMALL, name: value}
            )
    with pytest.raises(DataError, match="none of the tasks"):
        finetune_gate(model, TinyData(), tmp_path / "c", train_data=TrainingData(tasks=()), **SMALL)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"no split to train on|data\.csv"):
        finetune_gate(model, str(tmp_path / "folder"), tmp_path / "d", **SMALL)
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_a_folder_is_needed(model: HookedVLM) -> None:
    with pytest.raises(DataError, match="give a folder"):
        run_study(STUDY, model, TinyData(), None, train_data=TrainingData(), **SMALL)


@pytest.mark.usefixtures("no_report")
def test_a_stage_goes_on_where_it_was_cut_short(
    model: HookedVLM, finished: gl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the training of the last stage: the others are not measured again, the tables are the same."""
    module = __import__("sys").modules["gatelens.training.loop"]
    train = module.loss_of
    asked: list[int] = []

    def interrupted(*given: Any) -> Any:
        asked.append(1)
        if len(asked) > 7:  # 3 steps masked, 2 swapped, 2 of the control
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(module, "loss_of", interrupted)
    before = model(model.prepare(TinyData().examples("class")[0].image, "<image>this animal is a"))
    with pytest.raises(KeyboardInterrupt):
        finetune_gate(model, TinyData(), tmp_path / "r", train_data=TrainingData(), **SMALL)
    after = model(model.prepare(TinyData().examples("class")[0].image, "<image>this animal is a"))
    assert torch.equal(before, after)  # its own weights, also then
    stages = tmp_path / "r" / "shards" / "stages"
    assert sorted(p.name for p in stages.iterdir()) == ["before", "masked", "swapped"]
    kept = (stages / "masked" / "knockout.parquet").stat().st_mtime_ns
    monkeypatch.setattr(module, "loss_of", train)
    run = finetune_gate(model, TinyData(), tmp_path / "r", train_data=TrainingData(), **SMALL)
    assert (stages / "masked" / "knockout.parquet").stat().st_mtime_ns == kept
    for name in ("knockout", "shares", "loss"):
        pd.testing.assert_frame_equal(run.table(name), finished.table(name))


def test_the_sentence_says_what_the_cuts_remove_before_and_after() -> None:
    runs = {"before": synthetic_run(None, "narrow"), "masked": synthetic_run(None, "open")}
    stages = [
        {"name": name, **run.json("verdict"), "loss": loss, "flips": flips}
        for (name, run), loss, flips in zip(runs.items(), (None, 1.0), (0.75, None), strict=True)
    ]
    both = Run.open(None, study="gate-finetuning", settings={})
    shares = [run.table("tasks").assign(stage=name) for name, run in runs.items()]
    both.save("shares", pd.concat(shares, ignore_index=True))
    both.save("stages", stages)
    said = conclude(both, [])
    assert said["headline"] == "narrow gate at <eoss> → distributed" and said["verdict"] == "distributed"
    assert said["sentence"].startswith(
        "Before, cutting the gate removes 101\xa0% of class accuracy (image tokens −2\xa0%)"
    )
    assert (
        "Another picture's gate flips 75\xa0% of predictions at the best layer. After “masked”"
        in said["sentence"]
    )
    assert [s["verdict"] for s in said["stages"]] == ["narrow", "distributed"]
    assert said["stages"][0]["loss"] is None and said["stages"][1]["loss"] == 1.0
    first, second = said["evidence"]
    assert (first["kind"], first["says"]) == ("Before", "narrow")
    assert second["text"].startswith("training ended at 1.000 nats per token. ")


def test_the_report_shows_all_stages(finished: gl.Run) -> None:
    page = (finished.path / "report.html").read_text()
    for title in ("Before", "Trained with the gate masked", "… then with another picture’s gate"):
        assert title in page
    for link in ("before/report.html", "masked/study/report.html", "control/study/report.html"):
        assert f'href="{link}"' in page and (finished.path / link).is_file()
    assert {p.name for p in (finished.path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("before_after", "loss") for kind in ("png", "svg", "pdf")
    }
    table, loss = finished.table("knockout"), finished.table("loss")
    panels = before_after(table, dark=True).axes
    assert len(panels) == table[~table.metric.str.contains("among")].metric.nunique()
    lines = loss_curves(loss).axes[0].get_lines()
    assert [line.get_ydata()[0] for line in lines] == pytest.approx(
        loss.groupby("stage", sort=False).loss.mean().tolist()
    )


def test_the_stages_can_be_sent_away(model: HookedVLM, finished: gl.Run) -> None:
    options = STUDY.options(**{**SMALL_OPTIONS, "train_data": TrainingData()})
    drawn = STUDY.draw(TinyData(), options)
    setup = Setup(model, TinyData(), drawn, options, {}, 4, finished)
    for batch in STUDY.sections[0].batches(setup, Measured()):
        sent = pickle.loads(pickle.dumps(batch))
        assert (sent.name, repr(sent.trainings)) == (batch.name, repr(batch.trainings))
        assert [e.id for e in sent.examples] == [e.id for e in batch.examples]
