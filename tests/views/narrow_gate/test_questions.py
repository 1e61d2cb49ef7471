"""The kinds of question on the page: bars and cells are the table's numbers, the caption names each kind once."""

from __future__ import annotations

import pandas as pd
import pytest

from gatelens.errors import DataError
from gatelens.plots import card
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE
from gatelens.studies.narrow_gate.questions import shares, summarise
from gatelens.views.narrow_gate import questions

MEANS = {
    "count": {NONE: 1.0, GATE: 0.2, IMAGE: 1.0, FLOOR: 0.2},
    "relation": {NONE: 0.8, GATE: 0.8, IMAGE: 0.1, FLOOR: 0.1},
    "side": {NONE: 0.3, GATE: 0.25, IMAGE: 0.3, FLOOR: 0.25},
}


def stored(means: dict[str, dict[str, float]], hows: tuple[str, ...] = ("zero",), n: int = 40) -> Run:
    rows = [
        (how, "vqa", kind, row, f"{kind}{i}", float(i < round(mean * n)), ["yes" if i < n / 5 else f"no {i}"])
        for how in hows
        for kind, by_row in means.items()
        for row, mean in by_row.items()
        for i in range(n)
    ]
    answers = pd.DataFrame(rows, columns=["how", "task", "kind", "row", "id", "score", "answers"])
    run = Run.open(None, study="narrow-gate", settings={})
    table = summarise(answers, 100, 0)
    run.save_table("question_kinds", table)
    run.save_table("question_kinds_shares", shares(answers, table, 100, 0))
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
    (one,) = questions.cards(stored(MEANS))
    figure, table = one.blocks
    assert isinstance(figure, card.Chart)
    assert isinstance(table, card.Table)
    assert "The gate carries most of what the picture is worth to count." in figure.caption
    assert (
        "The image tokens themselves carry most of what the picture is worth to relation." in figure.caption
    )
    assert "Nothing can be said of side." in figure.caption
    assert "Neither" not in figure.caption
    rows = {row[0][0]: row for row in table.rows}
    assert [cell[0] for cell in rows["count"][1:5]] == ["1.00", "0.20", "1.00", "0.20"]
    assert rows["count"][5] == "0.20"  # the blind guess
    # the floor of 0.1 is below the blind guess: (0.8 − 0.1) / (0.8 − 0.2)
    assert [cell[0] for cell in rows["relation"][6:8]] == ["0\u00a0%", "117\u00a0%"]
    assert rows["side"][6:] == ["–", "–", "inconclusive"]
    assert table.caption.startswith("Side: the unmodified VQA accuracy 0.30 is too near the floor")
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_many_kinds_and_both_knockouts() -> None:
    many = {f"a_kind_with_a_long_name {i}": MEANS["count"] for i in range(20)}
    (one,) = questions.cards(stored(many, ("zero", "mask"), 5))
    assert [b.name for b in one.blocks if isinstance(b, card.Chart)] == [
        "question_kinds_zero",
        "question_kinds_mask",
    ]
    assert "The figure shows the 8 kinds with the most questions, the table all 20." in one.blocks[0].caption
    (axes,) = one.blocks[0].draw(False).axes
    assert len(axes.get_xticklabels()) == 8
    assert [len(b.rows) for b in one.blocks if isinstance(b, card.Table)] == [20, 20]
    assert questions.cards(Run.open(None, study="narrow-gate", settings={})) == []
