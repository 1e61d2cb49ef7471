"""The progressive curves on the page: points where the table has them, the sentence as the numbers say."""

from __future__ import annotations

import pandas as pd
import pytest

from gatelens.errors import DataError
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.progressive import carriers, summarise
from gatelens.views.narrow_gate import progressive


def answers(how: str = "zero", width: int = 1, n: int = 40) -> pd.DataFrame:
    """The gate matters in the second of four starts only, the image never."""
    last = 4 * width - 1
    points = [("none", "none", -1, -1, 1.0), ("gate + image", "from", 0, last, 0.1)]
    for keys, from_, window in (
        ("gate", (0.1, 0.1, 1.0, 1.0), (1.0, 0.4, 1.0, 1.0)),
        ("image", (1.0,) * 4, (1.0,) * 4),
    ):
        points += [(keys, "from", i * width, last, m) for i, m in enumerate(from_)]
        points += [(keys, "window", i * width, (i + 1) * width - 1, m) for i, m in enumerate(window)]
    rows = [(how, "class", *p[:4], f"e{i}", float(i < round(p[4] * n))) for p in points for i in range(n)]
    return pd.DataFrame(rows, columns=["how", "task", "keys", "way", "layer", "last", "id", "score"])


def stored(scores: pd.DataFrame) -> Run:
    run = Run.open(None, study="narrow-gate", settings={})
    curve = summarise(scores, 100, 0)
    run.save_table("progressive", curve)
    run.save_table("progressive_layers", carriers(curve))
    return run


def test_lines_are_the_table() -> None:
    table = stored(answers()).table("progressive")
    for dark in (False, True):
        figure = progressive.progressive_curves(table, dark=dark)
        left, right = figure.axes
        lines = {str(line.get_label()): list(line.get_ydata()) for line in left.lines}
        assert lines["gate → text"] == [0.1, 0.1, 1.0, 1.0]
        assert lines["image → text"] == [1.0] * 4
        assert lines["unmodified"] == [1.0, 1.0]
        assert lines["floor: both cut in every layer"] == [0.1, 0.1]
        assert list(right.lines[0].get_ydata()) == [1.0, 0.4, 1.0, 1.0]
        assert png(figure).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="how='mask'"):
        progressive.progressive_curves(table, "mask")


def test_the_sentence_is_computed() -> None:
    (block,) = progressive.cards(stored(answers()))[0].blocks
    assert (
        "Class accuracy, gate → text: cutting every layer costs 0.90; layer 1 carries 90 % of it, and cutting from "
        "layer 2 on costs nothing measurable any more (at most 0.00, the upper end of its interval)."
        in block.caption
    )
    assert "image → text: cutting every layer costs nothing measurable (0.00 [0.00, 0.00])" in block.caption
    (wide,) = progressive.cards(stored(answers(width=8)))[0].blocks
    assert "layers 8–15 carry 90 % of it, and cutting from layer 16 on" in wide.caption
    assert "cut in 8 layers alone" in wide.caption


def test_a_figure_for_every_kind_of_knockout_and_none_without_the_table() -> None:
    run = stored(pd.concat([answers("zero"), answers("mask")]))
    (one,) = progressive.cards(run)
    assert [b.name for b in one.blocks] == ["progressive_zero", "progressive_mask"]
    assert all(png(b.draw(False)).startswith(b"\x89PNG") for b in one.blocks)
    assert progressive.cards(Run.open(None, study="narrow-gate", settings={})) == []
