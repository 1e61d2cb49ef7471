"""The trade-off of compressed contexts: its arithmetic by hand, and what it says of the organisms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import gatelens as gl
from gatelens.data import Example, load
from gatelens.engine.compression import compress
from gatelens.errors import DataError, InterventionError
from gatelens.measures.mme import yes_or_no
from gatelens.measures.stats import wilson_interval
from gatelens.plots.page import render
from gatelens.studies.report import page_of
from gatelens.studies.whats_in_the_image.answers import (
    AFRESH,
    FULL,
    REPROMPT,
    answer_all,
    context_name,
    summarise,
)
from gatelens.studies.whats_in_the_image.questions import (
    by_picture,
    draw_questions,
    kind_of,
    question_of,
    scene_questions,
)
from gatelens.studies.whats_in_the_image.study import STUDY, whats_in_the_image
from study_helpers import TinyData, picture

PROMPT = "<image> it shows"


def asked() -> list[list[Example]]:
    questions = [
        ("what color ?", ("red",)),
        ("is it a dog ?", ("yes", "dog")),
        ("what color is the cat", ("no",)),
    ]
    return [
        [
            Example(picture(name, i), f"<image>{q}", answers, "vqa", name, meta={"kind": "any"})
            for q, answers in questions[: 3 - i]
        ]
        for i, name in enumerate(("red", "blue"))
    ]


def trade_off(
    model: Any, pictures: list[list[Example]], keeps: tuple[float, ...], n_boot: int = 50, **settings: Any
) -> pd.DataFrame:
    return summarise(answer_all(model, pictures, keeps, **settings), n_boot)


def test_names() -> None:
    assert [context_name(k) for k in (1.0, 0.05, 0.025, 0.0)] == [FULL, "K = 5 %", "K = 2.5 %", "query only"]


def test_scenes_are_those_of_the_data_set() -> None:
    mine, theirs = by_picture(scene_questions(6, seed=3)), load("emoji-scenes").examples("vqa", 6, seed=3)
    for of_scene, e in zip(mine, theirs, strict=True):
        first = of_scene[0]
        assert np.array_equal(np.asarray(first.image), np.asarray(e.image))
        assert first.prompt == e.prompt and first.answers == e.answers
        kinds = [kind_of(q) for q in of_scene]
        assert len(set(kinds)) == len(kinds) >= 5


def test_questions_go_to_their_picture() -> None:
    examples = TinyData(n=4).examples("vqa")
    twice = [*examples, *reversed(examples)]
    grouped = by_picture(twice)
    assert [same[0].id for same in grouped] == [e.id for e in examples]
    assert [len(same) for same in grouped] == [2, 2, 2, 2]
    assert question_of(grouped[0][0]) == "what color is the dog ?" and grouped[0][0].answers == ("dog",)
    with pytest.raises(DataError, match="give vqa examples"):
        by_picture(load("emoji-scenes").examples("draw", 1))


def test_easy_vqa_has_several_questions_a_picture() -> None:
    examples = load("easy-vqa").examples("vqa", 300)
    grouped = by_picture(examples)
    assert sum(map(len, grouped)) == 300
    assert len(grouped) == len({e.meta["picture"] for e in examples}) < 300


def test_every_context_answers_every_question(tiny_llava: Any) -> None:
    pictures = asked()
    settings = {"prompt": PROMPT, "describe_tokens": 4, "max_new_tokens": 3}
    table = answer_all(tiny_llava, pictures, (0.25, 0), **settings)
    assert list(dict.fromkeys(table.context)) == [AFRESH, FULL, "K = 25 %", "query only", REPROMPT]
    assert (table.groupby("context").size() == 5).all()
    inputs = tiny_llava.prepare([[same[0].image] for same in pictures], [PROMPT] * 2)
    for keep in (1.0, 0.25, 0.0):
        part = table[table.context == context_name(keep)]
        context = compress(tiny_llava, inputs, keep, max_new_tokens=4)
        want = context.answer(
            [[" " + question_of(e) for e in same] for same in pictures], max_new_tokens=3
        ).texts
        assert part.prediction.tolist() == [t.strip() for one in want for t in one]
        n, size = context.n_kept[0], context.nbytes[0]
        assert part.tokens.tolist() == [n] * 5 and part["nbytes"].tolist() == [size] * 5
        assert n == 3 + round(16 * keep)  # the beginning of the sequence and two words
    fresh = table[table.context == AFRESH]
    texts = tiny_llava.generate(
        tiny_llava.prepare(pictures[0][0].image, "<image>what color ?"), max_new_tokens=3
    )
    assert fresh.prediction.iloc[0] == texts.strip()
    assert (fresh.tokens == 17).all()  # the picture and what stands before it, without the question
    split = answer_all(tiny_llava, pictures, (0.25, 0), batch_size=1, others=False, **settings)
    both = table[~table.context.isin([AFRESH, REPROMPT])].reset_index(drop=True)
    columns = ["context", "picture", "question", "prediction", "score", "tokens"]
    pd.testing.assert_frame_equal(
        split[columns].sort_values(["context", "picture"], kind="stable", ignore_index=True),
        both[columns].sort_values(["context", "picture"], kind="stable", ignore_index=True),
    )


def synthetic(scores: dict[str, list[float]]) -> pd.DataFrame:
    """Three pictures with one, two and three questions."""
    pictures = ["a", "b", "b", "c", "c", "c"]
    return pd.DataFrame(
        [
            (name, 0.1, p, "", "", str(s), s, 7 + i % 2, 10)
            for name, values in scores.items()
            for i, (p, s) in enumerate(zip(pictures, values, strict=True))
        ],
        columns=[
            "context", "keep", "picture", "kind", "question", "prediction", "score", "tokens", "nbytes",
        ],
    )  # fmt: skip


def test_the_summary_by_hand() -> None:
    table = summarise(synthetic({FULL: [1, 1, 0, 1, 1, 1], "query only": [0, 1, 0, 1, 0, 1]}), 500)
    full, few = table.iloc[0], table.iloc[1]
    assert full.accuracy == pytest.approx(5 / 6) and few.accuracy == pytest.approx(3 / 6)
    assert (full.difference, full.difference_low, full.difference_high) == (0, 0, 0)
    assert few.difference == pytest.approx(-2 / 6) and few.same_answer == pytest.approx(4 / 6)
    assert -1 < few.difference_low < -0.5 < 0 < few.difference_high < 1  # three pictures say little
    assert (few.tokens, few["nbytes"], few.n_pictures, few.n_questions) == (7.5, 10, 3, 6)
    assert not [name for name in table.columns if "second" in name]  # a clock is not a result


def test_the_interval_of_the_difference_is_paired() -> None:
    """One question per picture, always right together: as little as 100 pictures allow, though both accuracies vary."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(100):
        s = float(rng.random() < 0.5)
        rows += [(name, 0.1, str(i), "", "", str(s), s, 1, 1) for name in (FULL, "K = 5 %")]
    table = summarise(pd.DataFrame(rows, columns=synthetic({}).columns), 300)
    assert table.difference_low.between(-0.04, 0).all() and table.difference_high.between(0, 0.04).all()
    assert (table.high - table.low > 0.1).all()


def test_pictures_with_several_questions_count_as_one() -> None:
    """Three questions per picture, all right or all wrong: 300 answers say as much as 100."""
    right = np.repeat(np.arange(100) % 2, 3)
    rows = [(FULL, 1.0, str(i // 3), "", "", "", float(r), 1, 1) for i, r in enumerate(right)]
    of_threes = pd.DataFrame(rows, columns=synthetic({}).columns)
    line = summarise(of_threes, 300).iloc[0]
    assert (line.low, line.high) == pytest.approx(wilson_interval(50, 100))
    uneven = summarise(of_threes.drop(index=[0, 1]), 2000).iloc[0]  # the first has one question left
    assert (uneven.low, uneven.high) == pytest.approx(wilson_interval(50, 100), abs=0.012)


def test_what_cannot_be_compared(tiny_llava: Any) -> None:
    with pytest.raises(DataError, match="each with at least one question"):
        answer_all(tiny_llava, [])
    with pytest.raises(DataError, match="each with at least one question"):
        answer_all(tiny_llava, [[]])
    with pytest.raises(InterventionError, match="no 'K = 100 %'"):
        summarise(synthetic({"query only": [0] * 6}))


@pytest.mark.organism
@pytest.mark.parametrize("name", ["gated", "open", "llava"])
def test_what_a_prompt_holds_without_its_picture(name: str) -> None:
    """Where text reaches the picture only through the gate, the kept gate is all a question needs."""
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    table = trade_off(
        model,
        by_picture(scene_questions(24, seed=5)),
        (0.5, 0.0),
        n_boot=400,
        describe_tokens=40,
        others=False,
    ).set_index("context")
    half, none = table.loc["K = 50 %"], table.loc["query only"]
    assert table.loc[FULL].accuracy > 0.5
    assert half.difference > -0.1
    if name == "gated":
        assert none.difference > -0.05 and none.difference_low > -0.15
    else:
        assert none.difference_high < -0.1
    assert none.tokens < 10 and none["nbytes"] == pytest.approx(
        table.loc[FULL]["nbytes"] * none.tokens / table.loc[FULL].tokens
    )


@pytest.mark.organism
def test_the_gate_is_what_is_kept() -> None:
    """Without the literal end-of-image token the gated organism's "query only" knows less."""
    model = gl.HookedVLM.from_pretrained("organism:gated")
    pictures = by_picture(scene_questions(24, seed=5))
    settings: dict[str, Any] = {"describe_tokens": 40, "others": False}
    kept = trade_off(model, pictures, (0.0,), n_boot=200, **settings).set_index("context")
    gone = trade_off(model, pictures, (0.0,), n_boot=200, always="system | query", **settings).set_index(
        "context"
    )
    assert gone.loc["query only"].accuracy < kept.loc["query only"].accuracy - 0.1
    assert gone.loc["query only"].tokens == kept.loc["query only"].tokens - 2


def test_scenes_with_the_same_pixels_are_asked_apart() -> None:
    scenes = by_picture(scene_questions(60))
    assert len(scenes) == 60
    assert len({same[0].image.tobytes() for same in scenes if same[0].image is not None}) < 60


def test_questions_drawn_are_those_of_so_many_pictures() -> None:
    data = TinyData(n=12)
    assert draw_questions(data, 0, 0) == []
    assert draw_questions(TinyData(tasks=("caption",)), 5, 0) == []
    assert len(by_picture(draw_questions(data, 5, 0))) == 5
    assert len(by_picture(draw_questions(load("emoji-scenes"), 3, 0))) == 3


def test_mme_in_pairs(tiny_llava: Any, tmp_path: Path) -> None:
    """A data set with MME's pairs is asked whole, scored by its rule, and shown beside the reported numbers."""

    class Paired(TinyData):
        def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
            if task != "vqa":
                return super().examples(task, limit, seed)
            return [
                Example(picture("dog", i), f"<image>is it {w} ?", (answer,), "vqa", f"{i}{w}", meta=meta)
                for i in range(4)
                for w, answer in (("dog", "yes"), ("cat", "no"))
                for meta in ({"category": ("existence", "color")[i % 2], "pair": f"{i}"},)
            ]

    run = whats_in_the_image(
        tiny_llava, Paired(n=3), tmp_path / "m", batch_size=6, max_new_tokens=5, n_boot=50, progress=False
    )
    table = run.table("mme")
    assert set(table.subset) == {"existence", "color", "all", "mean of subsets"}
    assert set(table[table.subset == "all"].n_questions) == {8}
    answers = run.table("answers").query("context == 'K = 100 %'")
    right = [yes_or_no(p) == w for p, w in zip(answers.prediction, 4 * ["yes", "no"], strict=True)]
    acc = table[(table.context == "K = 100 %") & (table.subset == "all")].acc.item()
    assert acc == pytest.approx(np.mean(right))
    assert acc == pytest.approx(run.table("trade_off").query("context == 'K = 100 %'").accuracy.item())
    html = render(page_of(STUDY, run))
    assert "84.83 / 70.60" in html
    assert "61.03 / 28.45" in html
