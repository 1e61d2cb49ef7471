"""The verdict: from known scores to the right words, and no words where the numbers carry none."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from gatelens.plots.numbers import percent
from gatelens.studies.narrow_gate.verdict import (
    attention_evidence,
    patching_evidence,
    task_verdicts,
    verdict,
)
from study_helpers import synthetic_predictions, synthetic_run


def judged(predictions: pd.DataFrame, n_classes: int = 20) -> dict[str, Any]:
    return verdict(task_verdicts(predictions, n_classes, 200, 0), [], "<eoss>")


def test_narrow_and_distributed() -> None:
    narrow, open_ = (judged(synthetic_predictions(kind)) for kind in ("narrow", "open"))
    assert narrow["headline"] == "narrow gate at <eoss>"
    assert open_["headline"] == "distributed"
    assert "class accuracy" in narrow["sentence"]


def test_shares_in_closed_form() -> None:
    rows = []
    means = {
        "none": 0.9,
        "gate → text": 0.3,
        "image → text": 0.8,
        "random-10 → text": 0.9,
        "last image → text": 0.9,
        "gate + image → text": 0.1,
    }
    for name, mean in means.items():
        for i in range(1000):
            rows.append(("class", "zero", name, 0, f"{i}", "", float((i * 7919) % 1000 < 1000 * mean), 0.0))
    columns = ["task", "how", "row", "repeat", "id", "prediction", "score", "restricted"]
    table = task_verdicts(pd.DataFrame(rows, columns=columns), 4, 200, 0).iloc[0]
    assert table.floor == 0.25  # chance among four classes lies above what is left
    assert table.gate == pytest.approx((0.9 - 0.3) / 0.65)
    assert table.image == pytest.approx(0.1 / 0.65)
    assert table.gate_low < table.gate < table.gate_high
    assert table.verdict == "narrow"


def swap(predictions: pd.DataFrame, row: str, by: str) -> pd.DataFrame:
    """Let one row have another's scores."""
    out = predictions[predictions.row != row]
    copied = predictions[(predictions.row == by) & (predictions["repeat"] == 0)].assign(row=row)
    return pd.concat([out, copied], ignore_index=True)


def test_mixed_says_why() -> None:
    scores = synthetic_predictions("narrow")
    both = judged(swap(scores, "image → text", "gate → text"))
    assert both["verdict"] == "mixed"
    assert "both paths are needed" in both["sentence"]
    either = judged(swap(scores, "gate → text", "none"))
    assert either["verdict"] == "mixed"
    assert "either path alone is enough" in either["sentence"]


def test_tasks_that_disagree_are_mixed() -> None:
    narrow, open_ = synthetic_predictions("narrow"), synthetic_predictions("open")
    both = judged(pd.concat([narrow[narrow.task == "class"], open_[open_.task != "class"]]))
    assert both["verdict"] == "mixed"


def test_inconclusive_says_why() -> None:
    blind = judged(swap(synthetic_predictions("narrow"), "none", "gate + image → text"))
    assert blind["verdict"] == "inconclusive"
    assert "too near the floor" in blind["sentence"]
    few = judged(synthetic_predictions("narrow", n=8))
    assert few["verdict"] == "inconclusive"
    assert "only 8 examples" in few["sentence"]


def test_disagreeing_evidence_is_named() -> None:
    narrow, open_ = synthetic_run(None, "narrow", 60), synthetic_run(None, "open", 60)
    assert narrow.json("verdict")["disagree"] == []
    further = attention_evidence(open_.table("attention")) + patching_evidence(open_.table("patching"))
    said = verdict(narrow.table("tasks"), further, "<eoss>")
    assert said["verdict"] == "narrow"
    assert said["disagree"] == ["attention share", "patching the gate"]
    assert "does not agree: attention share, patching the gate" in said["sentence"]
    why = next(e["text"] for e in said["evidence"] if e["kind"] == "attention share")
    most = percent(narrow.table("tasks").image.max())
    assert f"looks at the image tokens without using them: cutting them off removes at most {most}" in why


def test_nothing_flips_names_no_best_layer() -> None:
    table = synthetic_run(None, "open", 60).table("patching")
    none = table.assign(
        **{c: table[c].where(table.measure != "flipped", 0.0) for c in ("mean", "low", "high")}
    )
    (said,) = patching_evidence(none)
    assert said["says"] == "distributed"
    assert said["text"].endswith("pairs whatever the layer") and "best" not in said["text"]
    (some,) = patching_evidence(synthetic_run(None, "narrow", 60).table("patching"))
    assert "pairs at the best layer, " in some["text"]


def test_agreement_is_claimed_only_where_something_else_speaks() -> None:
    one = synthetic_predictions("narrow").query("task == 'class'")
    alone = verdict(task_verdicts(one, 20, 200, 0), [], "<eoss>")
    assert alone["verdict"] == "narrow" and "agrees" not in alone["sentence"]
    tasks = task_verdicts(one, 20, 200, 0)
    for says, agrees in (("inconclusive", False), ("narrow", True)):
        said = verdict(tasks, [{"kind": "x", "says": says, "text": ""}], "<eoss>")
        assert ("agrees" in said["sentence"]) == agrees


def test_no_reason_is_given_that_a_task_contradicts() -> None:
    """“Without using them” cannot be said of image tokens that one of the tasks needs."""
    tasks = synthetic_run(None, "narrow", 60).table("tasks")
    tasks.loc[2, ["image", "verdict"]] = [0.8, "mixed"]
    further = attention_evidence(synthetic_run(None, "open", 60).table("attention"))
    said = verdict(tasks, further, "<eoss>")
    assert said["verdict"] == "narrow" and said["disagree"] == ["knockout, CIDEr-D", "attention share"]
    assert all("without using" not in e["text"] for e in said["evidence"])


def test_percent() -> None:
    assert [percent(x) for x in (0.123, -0.02, -0.001, float("nan"))] == [
        "12\u00a0%",
        "−2\u00a0%",
        "0\u00a0%",
        "n/a",
    ]
