"""Fine-tuning away the gate: runs around the training, resuming, weights put back, and bad input."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gatelens.studies.gate_finetuning.summary import conclusion
from transformers import AutoModelForImageTextToText

import gatelens as gl
from gatelens.errors import DataError, OutputError
from gatelens.model import HookedVLM
from gatelens.studies import finetune_gate
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


class TrainingData(TinyData):
    """The same task on other pictures."""

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        found = super().examples(task, limit, seed + 100)
        for e in found:
            e.id = f"train-{e.id}"
        return found


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
        found = predictions[(predictions.id == e.id) & (predictions.row == "none")].prediction.iloc[0]
        assert word.strip() == found
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


def test_the_sentence_says_what_the_cuts_remove_before_and_after(tmp_path: Path) -> None:
    runs = {
        "before": synthetic_run(tmp_path / "a", "narrow"),
        "masked": synthetic_run(tmp_path / "b", "open"),
    }
    import pandas as pd

    shares = pd.concat([run.table("tasks").assign(stage=name) for name, run in runs.items()])
    found = conclusion(runs, shares, {"masked": pd.DataFrame({"step": [0, 1], "loss": [2.0, 1.0]})})
    assert found["headline"] == "narrow gate at <eoss> → distributed" and found["verdict"] == "distributed"
    assert found["sentence"].startswith(
        "Before, cutting the gate removes 101\xa0% of class accuracy (image tokens −2\xa0%)"
    )
    assert "After “masked”, cutting the gate removes" in found["sentence"]
    assert [s["verdict"] for s in found["stages"]] == ["narrow", "distributed"]
    assert found["stages"][0]["loss"] is None and found["stages"][1]["loss"] == 1.0
