"""Section steering: evidence by hand, a run end to end, and the organisms told apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import load

import gatelens as gl
from gatelens.data import load as load_data
from gatelens.errors import DataError
from gatelens.examples import Labels, draw, prepare
from gatelens.runs import Run
from gatelens.studies.narrow_gate.steering import directions
from gatelens.studies.narrow_gate.steering.section import (
    SECTION,
    SteeringOptions,
    as_safetensors,
    evidence,
    unconcerned,
)
from gatelens.studies.narrow_gate.study import STUDY
from gatelens.studies.options import checked
from gatelens.studies.section import Absent
from section_helpers import run_section, setup_of
from study_helpers import TinyData

OPTIONS = {"n_pairs": 3, "n": 2, "n_caption": 3, "n_vqa": 4, "n_random": 2, "doses": [0.5, 1, 4]}


def test_equal_directions_are_equal_bytes() -> None:
    generator = np.random.default_rng(0)
    rows = [
        ("gate", base, target, 1, generator.normal(size=8).tolist())
        for base, target in (("fox", "pig"), ("crab", "bus"), ("bus", "fox"))
    ]
    fitted = pd.DataFrame(rows, columns=["place", "base", "target", "layer", "direction"])
    written = {as_safetensors(fitted, 1) for _ in range(20)}
    assert len(written) == 1
    data = written.pop()
    read = load(data)
    assert {name: vector.tolist() for name, vector in read.items()} == {
        f"{base}-{target}": np.float32(direction).tolist() for _, base, target, _, direction in rows
    }
    assert b'"__metadata__":{"at":"gate","layers":"[1]","site":"resid_pre"}' in data


def question(prompt: str, *answers: str) -> Any:
    return SimpleNamespace(prompt="<image>" + prompt, answers=answers, id=prompt)


def test_questions_that_do_not_concern_the_pair() -> None:
    pairs = [("fox", "pig"), ("crab", "bus")]
    asked = [
        question("what color is it?", "red"),
        question("what color is the fox?", "red"),
        question("what is it?", "crab"),  # its answer is a class
        question("is there a fox or a crab?", "yes"),  # concerns every pair
        question("how many crabs are there?", "two"),
        question("what is the panda?", "big"),
    ]
    items = unconcerned(asked, pairs, ("fox", "pig", "crab", "bus", "panda"))
    assert [(i.example.id, i.pair[0]) for i in items] == [
        ("what color is it?", "fox"),
        ("what color is the fox?", "crab"),
        ("how many crabs are there?", "fox"),
        ("what is the panda?", "crab"),
    ]


def test_doses() -> None:
    for given in ([4, 0.5], "0.5,4,0"):
        assert checked(SteeringOptions, {"doses": given}).doses == [0.5, 1.0, 4.0]
    for wrong in ([-1.0], "high", 3, [float("nan")]):
        with pytest.raises(DataError, match="give numbers above 0"):
            checked(SteeringOptions, {"doses": wrong})


def run_of(once: tuple[float, float], best: tuple[float, float], at_last: float, n: int, n_fit: int) -> Run:
    """A run with a steering table of given intervals at doses 1 and 4."""
    rows = [
        ("all", 1, dose, "class means", "success above random", (low + high) / 2, low, high, n)
        for dose, (low, high) in ((1.0, once), (4.0, best))
    ]
    rows.append(("all", 5, 1.0, "class means, last position", "success", at_last, 0.0, 1.0, n))
    columns = ["pair", "layer", "dose", "direction", "measure", "mean", "low", "high", "n"]
    run = Run.open(None, study="narrow-gate", settings={})
    run.save("steering", pd.DataFrame(rows, columns=columns))
    run.save("steering_layers", pd.DataFrame({"layer": [1, 2], "n_fit": [n_fit, n_fit]}))
    return run


@pytest.mark.parametrize(
    "once, best, at_last, n, n_fit, says",
    [
        ((0.7, 0.9), (0.7, 0.9), 0.9, 50, 15, "narrow"),
        ((0.7, 0.9), (0.7, 0.9), 0.9, 50, 3, "narrow"),
        ((0.0, 0.1), (0.0, 0.1), 0.9, 50, 15, "distributed"),
        ((0.0, 0.1), (0.0, 0.1), 0.1, 50, 15, "inconclusive"),  # the recipe works nowhere
        ((0.0, 0.1), (0.7, 0.9), 0.9, 50, 15, "mixed"),  # only pushes four times the difference turn it
        ((0.3, 0.6), (0.3, 0.6), 0.9, 50, 15, "mixed"),
        ((0.3, 0.6), (0.3, 0.6), 0.9, 50, 3, "inconclusive"),  # means of three pictures
        ((0.7, 0.9), (0.7, 0.9), 0.9, 19, 15, "inconclusive"),
    ],
)
def test_evidence(once: Any, best: Any, at_last: float, n: int, n_fit: int, says: str) -> None:
    assert [e["says"] for e in evidence(run_of(once, best, at_last, n, n_fit))] == [says]


def test_evidence_says_what_is_missing() -> None:
    """No random push is not the same as no right answer."""
    columns = ["pair", "layer", "dose", "direction", "measure", "mean", "low", "high", "n"]
    for n, text in ((50, "without a random direction"), (7, "only 7 pictures are answered correctly")):
        run = run_of((0.7, 0.9), (0.7, 0.9), 0.9, n, 15)
        rows = [("all", 1, 0.0, "none", "success", 0.0, 0.0, 0.0, n)]
        run.save("steering", pd.DataFrame(rows, columns=columns))
        (said,) = evidence(run)
        assert said["says"] == "inconclusive" and text in said["text"]


def steer_alone(model: Any, data: Any, most: int = 500, size: int = 64, **options: Any) -> Run:
    """The section without the rest of the study."""
    drawn = {task: draw(data, task, most, 0) for task in data.tasks if task in ("class", "vqa", "caption")}
    setup = setup_of(STUDY, model, data, {"steering": options}, size, drawn, vqa_tokens=3, caption_tokens=12)
    return run_section(STUDY, "steering", setup)


class Answered(TinyData):
    """Pictures labelled by what an untrained model answers, so that its answers are right."""

    def __init__(self, model: Any) -> None:
        super().__init__(n=24)
        self.model = model

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        examples = super().examples(task, limit, seed)
        if task == "vqa":  # an answer that is not a class: colours are classes here
            return [SimpleNamespace(**{**vars(e), "answers": ("yes",)}) for e in examples]
        if task != "class":
            return examples
        best = self.model(prepare(self.model, examples))[:, -1].argmax(-1).tolist()
        for example, word in zip(examples, self.model.tokenizer.convert_ids_to_tokens(best), strict=True):
            example.label, example.answers = word, (word,)
        return examples


@pytest.fixture(scope="module")
def seen() -> list[str]:
    """Ids of the pictures that directions were fitted on."""
    return []


@pytest.fixture(scope="module")
def finished(tiny_llava: Any, seen: list[str]) -> Run:
    patch = pytest.MonkeyPatch()
    real = directions.gate_means

    def spying(model: Any, examples: Any, *rest: Any) -> Any:
        seen.extend(e.id for e in examples)
        return real(model, examples, *rest)

    patch.setattr(directions, "gate_means", spying)
    try:
        return steer_alone(tiny_llava, Answered(tiny_llava), size=5, **OPTIONS)
    finally:
        patch.undo()


def test_no_steered_picture_was_fitted_on(finished: Run, seen: list[str]) -> None:
    steered = set(finished.table("steering_pictures").id) | set(finished.table("steering_captions").id)
    assert seen and steered and not steered & set(seen)


def test_tables_of_a_run(finished: Run) -> None:
    assert STUDY.section("steering") is SECTION
    table = finished.table("steering")
    assert {"none", "class means", "random", "class means, last position"} <= set(table.direction)
    assert sorted(set(table[table.direction == "class means"].dose)) == [0.5, 1.0, 4.0]
    measures = {
        "success",
        "base kept",
        "elsewhere",
        "VQA accuracy",
        "VQA overlap",
        "rest of the caption kept",
    }
    assert measures <= set(table.measure)
    assert ((table.low <= table["mean"] + 1e-9) & (table["mean"] <= table.high + 1e-9)).all()
    unsteered = table[table.direction == "none"].set_index("measure")["mean"]
    assert unsteered["base kept"] == 1 and unsteered["success"] == 0
    assert unsteered["rest of the caption kept"] == 1 and unsteered["VQA overlap"] == pytest.approx(
        1, abs=1e-5
    )
    assert finished.table("steering_layers").groupby("place").chosen.sum().tolist() == [1, 1]
    assert len(finished.json("steering_examples")[0]["captions"]) == 4  # unsteered, 0.5, 1, 4


def test_saved_directions_steer_as_the_run_did(finished: Run, tiny_llava: Any, tmp_path: Any) -> None:
    file = tmp_path / "directions.safetensors"
    file.write_bytes(finished.file("directions"))
    with safe_open(file, "pt") as opened:
        how = opened.metadata()
    layers = finished.table("steering_layers").query("place == 'gate' and chosen").layer.tolist()
    assert how == {"at": "gate", "site": "resid_pre", "layers": str(layers)}
    saved = load(finished.file("directions"))
    rows = finished.table("steering_pictures").query("direction == 'class means' and dose == 4")
    examples = {e.id: e for e in Answered(tiny_llava).examples("class")}
    labels = Labels(tiny_llava)
    for row in rows.itertuples():
        steer = gl.steer(saved[f"{row.base}-{row.target}"], at="gate", layers=layers, scale=4.0)
        inputs = prepare(tiny_llava, [examples[row.id]])
        p = tiny_llava.run(inputs, steer)[0, -1].softmax(-1)
        assert float(p[labels.first_token(examples[row.id].prompt, row.target)]) == pytest.approx(
            row.p_target, abs=1e-5
        )


def test_absent_without_what_it_needs(tiny_llava: Any) -> None:
    for data in (TinyData(tasks=("vqa",)), TinyData(n=8), TinyData(n=24, classes=("dog",))):
        with pytest.raises(Absent):
            steer_alone(tiny_llava, data)
    with pytest.raises(Absent, match="two classes"):
        steer_alone(tiny_llava, TinyData(n=24), n=0)
    bare = steer_alone(tiny_llava, TinyData(n=24, tasks=("class",)))  # nothing answered correctly
    assert bare.has("steering") and [e["says"] for e in evidence(bare)] == ["inconclusive"]
    with pytest.raises(DataError, match="'lion'"):
        steer_alone(tiny_llava, TinyData(n=24), pairs="lion-dog")


@pytest.mark.parametrize("name, says", [("gated", "narrow"), ("llava", "distributed")])
def test_organisms(name: str, says: str) -> None:
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    few = {
        "pairs": "cactus-bus,fox-crab,frog-bus,bus-fox",
        "n": 8,
        "n_caption": 8,
        "n_vqa": 0,
        "n_random": 1,
        "doses": [1.0, 2.0],
    }
    run = steer_alone(model, load_data("emoji-scenes"), 320, **few)
    assert [e["says"] for e in evidence(run)] == [says]
    table = (
        run.table("steering").query("pair == 'all' and dose == 1").set_index(["direction", "measure"])["mean"]
    )
    success = table["class means", "success"]
    assert success > 0.6 if name == "gated" else success < 0.1
    assert table["random", "success"] < 0.1
    assert table["class means", "rest of the caption kept"] > 0.8
    assert np.isfinite(run.table("steering")["mean"]).all()
