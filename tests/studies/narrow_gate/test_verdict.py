"""The verdict: from known scores to the right words, and no words where the numbers carry none."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from benchmarks.verdicts import flips_err, standing_out, verdicts

from gatelens.plots.numbers import percent
from gatelens.studies.narrow_gate.verdict import (
    BEYOND,
    DISTRIBUTED,
    NARROW,
    PATCHED,
    PATCHED_INPUT,
    attention_evidence,
    gate_stands_out,
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
    assert "disagrees: attention share, patching the gate" in said["sentence"]
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


def scored(n: int = 40, task: str = "vqa", **means: float) -> pd.DataFrame:
    """Scores of 0 and 1 with given means; ``i * 7 % n`` keeps one row's ones apart from another's.

    Args:
        n: examples, no multiple of 7.
        task: of all of them.
        means: by row: none, gate, image, floor.
    """
    names = {
        "none": "none",
        "gate": "gate → text",
        "image": "image → text",
        "floor": "gate + image → text",
    }
    rows = []
    for step, (key, name) in enumerate(names.items()):
        ones = round(means[key] * n)
        rows += [(task, "zero", name, 0, f"{i}", float((i * 7 + step * 11) % n < ones)) for i in range(n)]
    return pd.DataFrame(rows, columns=["task", "how", "row", "repeat", "id", "score"])


def test_a_share_above_half_is_no_verdict_when_its_interval_is_not() -> None:
    for of, other, wanted in (("gate", "image", "narrow"), ("image", "gate", "distributed")):
        unsure = task_verdicts(scored(none=1, floor=0, **{of: 0.4, other: 1}), 1, 400, 0).iloc[0]
        assert unsure[of] == pytest.approx(0.6) and unsure[f"{of}_low"] < 0.5
        assert unsure.verdict == "mixed"
        sure = task_verdicts(scored(none=1, floor=0, **{of: 0.2, other: 1}), 1, 400, 0).iloc[0]
        assert sure[f"{of}_low"] > 0.5 and sure.verdict == wanted


def test_paths_that_differ_by_too_little_are_not_told_apart() -> None:
    """The gate takes surely more than half, the image tokens less, and the difference may be small."""
    row = task_verdicts(scored(n=300, none=1, floor=0, gate=0.38, image=0.6), 1, 400, 0).iloc[0]
    assert row.gate_low > 0.5 > row.image and row.gate - row.image < 0.25
    assert row.verdict == "mixed"


def test_a_worth_that_may_be_nothing_is_inconclusive() -> None:
    row = task_verdicts(scored(n=24, none=0.625, floor=0.5, gate=0.5, image=0.625), 1, 400, 0).iloc[0]
    assert row.worth == pytest.approx(0.125)  # more than the least, on the mean
    assert row.verdict == "inconclusive" and "too near the floor" in row.why


def test_every_draw_of_examples_counts_chance() -> None:
    """All examples score alike: with chance left out of a draw, its share would lie far below."""
    table = scored(task="class", none=1, floor=0, gate=0, image=1).assign(restricted=float("nan"))
    table.loc[table.row == "gate → text", "score"] = 0.4
    row = task_verdicts(table, 4, 50, 0).iloc[0]
    assert row.floor == 0.25 and row.gate == pytest.approx(0.6 / 0.75)
    assert 0.7 < row.gate_low < row.gate < row.gate_high < 0.9
    given = task_verdicts(table, 4, 50, 0, {"class": 0.5}).iloc[0]
    assert 1.1 < given.gate_low < 0.6 / 0.5 < given.gate_high < 1.4


def test_patching_tells_which_of_two_cuts_does_damage() -> None:
    """Both cuts remove all: by themselves the knockouts say that both paths are needed."""
    tasks = task_verdicts(scored(task="class", none=1, floor=0, gate=0, image=0), 4, 50, 0)
    said = {}
    says = ("narrow", "distributed", "mixed", "inconclusive")
    for both in product(says, says):
        kinds = zip((PATCHED, PATCHED_INPUT), both, strict=True)
        said[both] = verdict(
            tasks, [{"kind": kind, "says": one, "text": ""} for kind, one in kinds], "<eoss>"
        )
    assert {key: one["verdict"] for key, one in said.items()} == {
        key: key[1]
        if key[1] in ("narrow", "distributed") and {*key} != {"narrow", "distributed"}
        else "mixed"
        for key in said
    }
    assert verdict(tasks, [], "<eoss>")["verdict"] == "mixed"
    narrow, open_ = said["narrow", "narrow"], said["distributed", "distributed"]
    assert "cutting the image tokens too removes most, by damage" in narrow["sentence"]
    assert narrow["answer"].endswith("cutting the image tokens 100\u00a0%, by damage.")
    assert not narrow["disagree"]
    assert "the gate changes few answers" in open_["sentence"] and open_["headline"] == "distributed"
    clear = task_verdicts(scored(task="class", none=1, floor=0, gate=0, image=1), 4, 50, 0)
    spoken = verdict(clear, [{"kind": PATCHED_INPUT, "says": "distributed", "text": ""}], "<eoss>")
    assert spoken["verdict"] == "narrow" and "by damage" not in spoken["sentence"]  # one cut alone decides
    answers = task_verdicts(
        scored(task="vqa", none=1, floor=0, gate=0, image=0), 4, 50, 0
    )  # patching is of classes
    assert (
        verdict(answers, [{"kind": PATCHED_INPUT, "says": "narrow", "text": ""}], "<eoss>")["verdict"]
        == "mixed"
    )


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (["narrow", "mixed"], "narrow"),
        (["narrow", "mixed", "mixed"], "mixed"),
        (["narrow", "narrow", "mixed"], "narrow"),
        (["distributed", "mixed"], "distributed"),
        (["narrow", "narrow", "distributed"], "mixed"),
        (["narrow", "inconclusive", "inconclusive"], "narrow"),
        (["mixed"], "mixed"),
    ],
)
def test_half_of_the_tasks_decide_when_none_says_the_opposite(said: list[str], wanted: str) -> None:
    one = task_verdicts(scored(none=1, floor=0, gate=0, image=1), 1, 50, 0)
    tasks = pd.concat([one.assign(verdict=v, metric=f"task {i}") for i, v in enumerate(said)])
    assert verdict(tasks, [], "<eoss>")["verdict"] == wanted


@pytest.mark.parametrize(
    ("low", "high", "n", "wanted"),
    [
        (0.6, 0.9, 50, "narrow"),
        (0.4, 0.9, 50, "mixed"),
        (0.1, 0.3, 50, "mixed"),
        (0.0, 0.1, 50, "distributed"),
        (0.6, 0.9, 19, "inconclusive"),
        (0.6, 0.9, 20, "narrow"),
    ],
)
def test_flips_count_by_their_interval(low: float, high: float, n: int, wanted: str) -> None:
    columns = ["measure", "layer", "mean", "low", "high", "n"]
    rows = [
        ("flipped", -1, 1.0, 0.99, 1.0, n),  # all layers at once: no layer to name
        ("flipped", 2, 0.0, 0.0, 0.05, n),
        ("flipped", 3, (low + high) / 2, low, high, n),
        ("target overlap", 0, 1.0, 0.99, 1.0, n),
    ]
    (evidence,) = patching_evidence(pd.DataFrame(rows, columns=columns))
    assert evidence["says"] == wanted
    assert "best layer, 3" in evidence["text"]


def test_a_cut_that_leaves_less_than_no_picture_is_explained_in_place() -> None:
    said = verdict(
        task_verdicts(scored(n=100, none=1, floor=0.2, gate=0.1, image=1), 1, 200, 0), [], "<eoss>"
    )
    beyond = "112\u00a0%"
    assert f"removes {beyond} in VQA accuracy" in said["sentence"] and BEYOND in said["sentence"]
    assert beyond in said["evidence"][0]["text"]
    plain = verdict(
        task_verdicts(scored(n=100, none=1, floor=0.2, gate=0.2, image=1), 1, 200, 0), [], "<eoss>"
    )
    assert BEYOND not in plain["sentence"]


def test_the_floor_of_questions_is_what_the_question_alone_tells() -> None:
    """A gate that takes all the model knows of the picture takes all of it, however blindly it goes on guessing."""
    table = scored(n=100, none=0.9, floor=0.2, gate=0.4, image=0.9)
    low, blind = (task_verdicts(table, 1, 200, 0, chances).iloc[0] for chances in ({}, {"vqa": 0.4}))
    assert (low.chance, low.floor, blind.chance, blind.floor) == (0, 0.2, 0.4, 0.4)
    assert low.gate == pytest.approx(0.5 / 0.7) and blind.gate == pytest.approx(1.0)


def test_a_gate_stands_out_by_its_share_and_above_an_even_one() -> None:
    """A third of the attention is a lot among 66 positions, and next to nothing among four."""
    assert gate_stands_out(0.3, 66) and gate_stands_out(0.3, 1026)
    assert not gate_stands_out(0.29, 66) and not gate_stands_out(0.29, 1026)
    assert not gate_stands_out(0.34, 4) and not gate_stands_out(0.9, 5)
    few = pd.DataFrame(
        [(0, kind, i, share) for kind, i, share in (("gate", -1, 0.4), ("image", 0, 0.3), ("image", 1, 0.3))],
        columns=["layer", "kind", "index", "share"],
    )
    (said,) = attention_evidence(few)
    assert said["says"] == "distributed" and "1.2 times an even share" in said["text"]


def test_the_verdict_errs_as_rarely_as_the_report_says() -> None:
    """A share of the simulation that the report quotes: a truth on the bound, and one well above it."""
    rng = np.random.default_rng(1)
    bound = verdicts(50, 0.9, 0.06, 0.5, 0.0, 60, rng)
    assert (
        bound[DISTRIBUTED] == 0 and bound[NARROW] <= 6
    )  # 2 to 4 of 100, and six of 60 would be one in 1,000
    clear = verdicts(200, 0.9, 0.06, 0.7, 0.1, 20, rng)
    assert clear[NARROW] >= 19
    most, few = flips_err(48, 0.5)
    assert most < 0.031 and few < 1e-6
    assert standing_out(66, 3.0, 40, rng) == 0.0
