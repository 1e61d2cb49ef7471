"""Kinds of question: further ones are drawn as told, and every number is the plain model's under plain knockouts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import gatelens as gl
import paper_copies as copies
from gatelens import data
from gatelens.errors import DataError
from gatelens.model import HookedVLM
from gatelens.plots import card
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies import narrow_gate
from gatelens.studies.narrow_gate import blind, questions
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE
from study_helpers import TinyData, picture

QUICK: dict[str, Any] = {"n_class": 0, "n_caption": 0, "n_boot": 100, "random_repeats": 1, "progress": False}
CUTS = {NONE: None, GATE: "gate", IMAGE: "boi | image | row_break", FLOOR: "gate | boi | image | row_break"}


@pytest.fixture(scope="module")
def model() -> HookedVLM:
    return HookedVLM.from_pretrained("organism:gated")


@pytest.fixture(scope="module")
def run(model: HookedVLM) -> Run:
    return narrow_gate(model, sections={"questions": {"n": 60, "n_per_kind": 8}}, n_vqa=30, **QUICK)


def test_kinds_are_filled_and_counted_once(run: Run) -> None:
    table = run.table("question_kinds")
    drawn = Counter(e.meta["kind"] for e in data.load("emoji-scenes").examples("vqa", 30, 0))
    assert drawn["relation"] < 8  # else nothing would have been drawn
    assert dict(zip(table.kind, table.n, strict=True)) == {
        kind: max(8, drawn[kind]) for kind in ("color", "count", "presence", "relation", "shape", "side")
    }
    assert set(table.row) == set(CUTS)
    # nothing that the other sections share is touched
    assert run.table("predictions").id.nunique() == 30


def test_numbers_are_those_of_the_model_under_plain_knockouts(run: Run, model: HookedVLM) -> None:
    """Each question by itself: exact answers of ``model.generate`` with one knockout."""
    first = data.load("emoji-scenes").examples("vqa", 30, 0)
    more = data.load("emoji-scenes").examples("vqa", 400, questions.SEED)
    wanted = [e for e in first if e.meta["kind"] == "relation"]
    wanted += [e for e in more if e.meta["kind"] == "relation"][: 8 - len(wanted)]
    table = run.table("question_kinds").query("kind == 'relation'").set_index("row")
    means = {}
    for row, keys in CUTS.items():
        right = []
        for e in wanted:
            cut = [] if keys is None else [gl.knockout(queries="text - gate", keys=keys, how="zero")]
            said = model.generate(model.prepare(images=[e.image], text=[e.prompt]), cut, max_new_tokens=8)
            right.append(said[0].strip() == e.answers[0])
        means[row] = np.mean(right)
        assert table.loc[row, "mean"] == pytest.approx(means[row]), row
    assert len(set(means.values())) > 1
    (chance,) = table.chance.unique()
    assert 0 <= chance <= 0.5


def test_a_finished_run_gives_one_entry_of_evidence(run: Run) -> None:
    entries = [e for e in run.json("verdict")["evidence"] if e["kind"] == "by kind of question"]
    assert entries == [{**e, "section": "questions"} for e in questions.evidence(run)]
    assert all(kind in entries[0]["text"] for kind in ("relation", "count"))


class Finite:
    """Questions of two kinds, one of them rare; ``n`` in all, in an order the seed sets."""

    name, tasks, classes = "finite", ("vqa",), ()

    def __init__(self, n: int) -> None:
        self.n, self.asked = n, []

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        self.asked.append(limit)
        order = np.random.default_rng(seed).permutation(self.n)[:limit]
        return [
            SimpleNamespace(
                image=picture("red", 0),
                prompt="<image>what",
                answers=("red",),
                label=None,
                id=f"q{i}",
                meta={"kind": "rare" if i % 10 == 0 else "usual", "other": str(i % 3)},
            )
            for i in order
        ]


def test_further_questions_come_from_the_rest_of_the_data() -> None:
    source = Finite(200)
    drawn = source.examples("vqa", 40, 0)
    rare = {e.id for e in drawn if e.meta["kind"] == "rare"}
    more = questions.further(source, "vqa", drawn, None, 8, 100, 0)
    assert {e.meta["kind"] for e in more} == {"rare"}
    ids = [e.id for e in more]
    assert len(ids) == len(set(ids)) == 8 - len(rare)
    assert not rare & set(ids)
    # there are 20 rare ones in all: asked for more, it gives all of them and stops
    everything = questions.further(source, "vqa", drawn, None, 25, 100, 0)
    assert Counter(e.meta["kind"] for e in everything)["rare"] == 20 - len(rare)
    assert len(questions.further(source, "vqa", drawn, None, 25, 3, 0)) == 3
    by = questions.further(source, "vqa", drawn, "other", 20, 100, 0)
    counts = Counter(e.meta["other"] for e in [*drawn, *by])
    assert min(counts.values()) == 20


def test_further_questions_are_not_sought_in_vain() -> None:
    source = Finite(10_000)
    drawn = source.examples("vqa", 40, 0)
    source.asked.clear()
    assert questions.further(source, "vqa", drawn, None, 2, 100, 0) == []  # both kinds have two
    assert questions.further(source, "vqa", drawn, None, 50, 0, 0) == []
    assert questions.further(source, "vqa", drawn, "absent", 50, 100, 0) == []
    assert source.asked == []
    questions.further(source, "vqa", drawn[:1], None, 50, 100, 0)
    assert max(source.asked) <= questions.LOOKED_AT * 50


def test_kinds_of_the_papers_data(tmp_path: Path) -> None:
    rows = copies.vqav2(60)
    for i, row in enumerate(rows):
        row["answer_type"] = "number" if i % 6 == 0 else "other"
        row["question_type"] = "how many" if i % 6 == 0 else "what color"
    rows[7]["question"] = None  # bad
    copies.write(tmp_path / "vqav2/data/validation-00000-of-00001.parquet", rows)
    source = data.load(f"vqav2:{tmp_path / 'vqav2'}", skip_bad=True)
    drawn = source.examples("vqa", 10)
    assert {blind.kind_of(e) for e in drawn} <= {"number", "other"}
    assert all(
        (blind.kind_of(e, "question_type") == "how many") == (blind.kind_of(e) == "number") for e in drawn
    )
    more = questions.further(source, "vqa", drawn, None, 10, 100, 0)
    counts = Counter(blind.kind_of(e) for e in [*drawn, *more])
    assert counts["number"] == 10  # all there are, though a bad row was left out on the way
    copies.write(tmp_path / "mme/data/test-00000-of-00001.parquet", copies.mme())
    mme = data.load(f"mme:{tmp_path / 'mme'}").examples("vqa")
    assert {blind.kind_of(e) for e in mme} == {"existence", "OCR", "code_reasoning"}


def made_up(means: dict[str, dict[str, float]], n: int = 40) -> pd.DataFrame:
    """Scores whose first examples are right, so each mean is met exactly; one in 40 is guessed without the picture."""
    rows = [
        ("zero", "vqa", kind, row, f"{kind}{i}", float(i < round(mean * n)), float(i == 0))
        for kind, by_row in means.items()
        for row, mean in by_row.items()
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["how", "task", "kind", "row", "id", "score", "blind"])


def concluded(answers: pd.DataFrame) -> Run:
    run = Run.open(None, study="narrow-gate", settings={})
    table = questions.summarise(answers, 200, 0)
    run.save("question_kinds", table)
    run.save("question_kinds_shares", questions.shares(answers, table, 200, 0))
    return run


def test_shares_by_hand() -> None:
    means = {
        "count": {NONE: 1.0, GATE: 0.2, IMAGE: 1.0, FLOOR: 0.2},
        "relation": {NONE: 0.8, GATE: 0.8, IMAGE: 0.1, FLOOR: 0.1},
        "side": {NONE: 0.3, GATE: 0.25, IMAGE: 0.3, FLOOR: 0.25},
    }
    run = concluded(made_up(means))
    shares = run.table("question_kinds_shares").set_index("kind")
    assert shares.chance.unique() == pytest.approx([1 / 40])
    assert (shares.loc["count", "gate"], shares.loc["count", "image"]) == (1.0, 0.0)
    assert (shares.loc["relation", "gate"], shares.loc["relation", "image"]) == pytest.approx((0.0, 1.0))
    assert dict(shares.verdict) == {"count": "narrow", "relation": "distributed", "side": "inconclusive"}
    assert questions.evidence(run)[0]["says"] == "mixed"
    without = concluded(made_up({k: v for k, v in means.items() if k != "relation"}))
    assert questions.evidence(without)[0]["says"] == "narrow"
    assert questions.evidence(concluded(made_up({"side": means["side"]})))[0]["says"] == "inconclusive"


def test_a_model_that_only_guesses_is_not_judged() -> None:
    """Right as often as the most frequent answer, and mute when cut: a share of that would be about nothing."""
    answers = made_up({"count": {NONE: 0.5, GATE: 0.0, IMAGE: 0.5, FLOOR: 0.0}})
    assert concluded(answers).table("question_kinds_shares").verdict.tolist() == ["narrow"]
    answers["blind"] = [float(int(i[5:]) < 20) for i in answers.id]
    judged = concluded(answers).table("question_kinds_shares").iloc[0]
    assert (judged.chance, judged.verdict) == (0.5, "inconclusive")


def test_absent_where_data_name_no_kinds(tiny_llava: HookedVLM) -> None:
    run = narrow_gate(
        tiny_llava, TinyData(tasks=("vqa",), n=4), sections=["questions"], vqa_tokens=2, **QUICK
    )
    assert not run.has("question_kinds") and run.json("absent")
    assert all(e["kind"] != "by kind of question" for e in run.json("verdict")["evidence"])


MEANS = {
    "count": {NONE: 1.0, GATE: 0.2, IMAGE: 1.0, FLOOR: 0.2},
    "relation": {NONE: 0.8, GATE: 0.8, IMAGE: 0.1, FLOOR: 0.1},
    "side": {NONE: 0.3, GATE: 0.25, IMAGE: 0.3, FLOOR: 0.25},
}


def stored(means: dict[str, dict[str, float]], hows: tuple[str, ...] = ("zero",), n: int = 40) -> Run:
    rows = [
        (how, "vqa", kind, row, f"{kind}{i}", float(i < round(mean * n)), float(i < n / 5))
        for how in hows
        for kind, by_row in means.items()
        for row, mean in by_row.items()
        for i in range(n)
    ]
    answers = pd.DataFrame(rows, columns=["how", "task", "kind", "row", "id", "score", "blind"])
    run = Run.open(None, study="narrow-gate", settings={})
    table = questions.summarise(answers, 100, 0)
    run.save("question_kinds", table)
    run.save("question_kinds_shares", questions.shares(answers, table, 100, 0))
    return run


def test_bars_are_the_table() -> None:
    table = stored(MEANS).table("question_kinds")
    for dark in (False, True):
        figure = questions.question_bars(table, dark=dark)
        (axes,) = figure.axes
        heights = [round(bar.get_height(), 6) for bar in axes.patches]
        assert heights == [MEANS[kind][row] for row in (NONE, GATE, IMAGE, FLOOR) for kind in MEANS]
        guesses = [path.vertices[0, 1] for path in axes.collections[-1].get_paths()]
        assert guesses == pytest.approx([0.2] * 3)
        assert [t.get_text() for t in axes.get_xticklabels()] == [f"{kind}\nn = 40" for kind in MEANS]
        assert png(figure).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="how='mask'"):
        questions.question_bars(table, "mask")


def test_table_and_caption() -> None:
    (one,) = questions.page(stored(MEANS))
    figure, table = one.blocks
    assert isinstance(figure, card.Chart)
    assert isinstance(table, card.Table)
    assert "The gate carries most for count." in figure.caption
    assert "The image tokens carry most for relation." in figure.caption
    assert one.finding == "the gate carries most in 1 of 2, the image tokens in 1 of 2 kinds"
    assert "Nothing can be said of side." in figure.caption
    assert "Neither" not in figure.caption
    rows = {row[0][0]: row for row in table.rows}
    assert [cell[0] for cell in rows["count"][1:5]] == ["1.00", "0.20", "1.00", "0.20"]
    assert rows["count"][5] == "0.20"  # the blind guess
    # the floor of 0.1 is below the blind guess: (0.8 − 0.1) / (0.8 − 0.2)
    assert [cell[0] for cell in rows["relation"][6:8]] == [
        "0\u00a0%",
        "117\u00a0%",
    ]
    assert rows["side"][6:] == ["–", "–", "inconclusive"]
    assert table.caption.startswith("Side: the unmodified VQA accuracy 0.30 is too near the floor")
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_many_kinds_and_both_knockouts() -> None:
    many = {f"a_kind_with_a_long_name {i}": MEANS["count"] for i in range(20)}
    (one,) = questions.page(stored(many, ("zero", "mask"), 5))
    assert [b.name for b in one.blocks if isinstance(b, card.Chart)] == [
        "question_kinds_zero",
        "question_kinds_mask",
    ]
    assert "The figure shows the 8 kinds with the most questions, the table all 20." in one.blocks[0].caption
    (axes,) = one.blocks[0].draw(False).axes
    assert len(axes.get_xticklabels()) == 8
    assert [len(b.rows) for b in one.blocks if isinstance(b, card.Table)] == [20, 20]
