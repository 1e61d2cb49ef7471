"""The steering card: the dose curve, the table of doses and the captions are what the run holds."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from gatelens.measures.stats import wilson_interval
from gatelens.plots.card import Chart, Pictures, Table
from gatelens.plots.style import palette, png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.steering.page import cards, dose_curve

COLUMNS = ["pair", "layer", "dose", "direction", "measure", "mean", "low", "high", "n"]


def table() -> pd.DataFrame:
    rows = [
        ("all", 2, 0.0, "none", "success", 0.0, 0.0, 0.0, 40),
        ("all", 2, 0.0, "none", "VQA accuracy", 0.8, 0.7, 0.9, 20),
    ]
    for dose, success, right in ((1.0, 0.9, 0.75), (2.0, 0.7, 0.5)):
        rows += [
            ("all", 2, dose, "class means", "success", success, success - 0.1, success + 0.1, 40),
            ("cat-dog", 2, dose, "class means", "success", 0.123, 0.0, 1.0, 5),
            ("all", 2, dose, "class means", "VQA accuracy", right, right - 0.1, right + 0.1, 20),
            ("all", 2, dose, "random", "success", 0.01, 0.0, 0.02, 40),
            ("all", 2, dose, "another pair", "success", 0.02, 0.0, 0.04, 40),
        ]
    rows.append(("all", 5, 1.0, "class means, last position", "success", 0.95, 0.9, 1.0, 40))
    return pd.DataFrame(rows, columns=COLUMNS)


def layers() -> pd.DataFrame:
    rows = [("gate", 0, 0.0, False), ("gate", 2, 0.9, True), ("last", 0, 0.0, False), ("last", 2, 0.6, True)]
    return pd.DataFrame(rows, columns=["place", "layer", "success", "chosen"]).assign(n=40)


@pytest.fixture
def run() -> Run:
    run = Run.open(None, study="narrow-gate", settings={})
    run.save("steering", table())
    run.save("steering_layers", layers())
    return run


def test_dose_curve_shows_the_table() -> None:
    left, right = dose_curve(table(), layers()).axes
    lines = {str(line.get_label()): line for line in right.lines}
    turned = lines["answers changed to the target class"]
    assert list(turned.get_xdata()) == [0, 1, 2] and list(turned.get_ydata()) == [0.0, 0.9, 0.7]
    assert turned.get_color() == palette(False).gate
    cost = lines["other questions right"]
    assert list(cost.get_ydata()) == [0.8, 0.75, 0.5] and cost.get_color() == palette(False).image
    assert list(lines["the same, random direction"].get_ydata()) == [0.0, 0.01, 0.01]
    assert "rest of the caption kept" not in lines  # not measured
    corners = left.collections[1].get_paths()[0].vertices  # the band at the gate
    for layer, turned in ((0, 0), (2, 36)):
        assert {y for x, y in corners.tolist() if x == layer} == set(wilson_interval(turned, 40))
    ring = left.lines[-1]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2], [0.9])
    assert png(dose_curve(table(), layers(), dark=True)).startswith(b"\x89PNG")


def test_card(run: Run) -> None:
    (card,) = cards(run)
    figure, doses = card.blocks
    assert isinstance(figure, Chart) and isinstance(doses, Table)
    assert list(doses.header) == [
        "added at the gate",
        "target class\nn = 40",
        "other questions right\nn = 20",
    ]
    rows = {row[0]: row[1:] for row in doses.rows}
    assert list(rows) == [
        "unsteered",
        *(f"{d} × {n}" for d in ("class means", "random", "another pair") for n in (1, 2)),
        "class means, last position × 1",
    ]
    assert rows["class means × 2"] == [("0.70", "0.60 – 0.80"), ("0.50", "0.40 – 0.60")]
    assert rows["random × 1"][1] == "–"
    assert "class means × 1" not in doses.controls and "random × 1" in doses.controls
    assert re.search(r'at="gate", layers=\[2\], scale=1.0\)', doses.caption)


def test_captions_stand_under_their_dose(run: Run) -> None:
    example = {"id": "x", "pair": ["cat", "dog"], "picture": "data:image/png;base64,AA"}
    run.save("steering_examples", [{**example, "captions": [[0.0, "a cat"], [1.0, "a dog"]]}])
    pictures = cards(run)[0].blocks[2]
    assert isinstance(pictures, Pictures)
    assert list(pictures.header) == ["direction", "unsteered", "dose 1"]
    assert pictures.rows == [("cat → dog", [("data:image/png;base64,AA", "a cat"), ("", "a dog")])]


def test_nothing_to_show_where_nothing_was_answered_rightly() -> None:
    run = Run.open(None, study="narrow-gate", settings={})
    run.save("steering", table()[:0])
    run.save("steering_layers", layers())
    assert cards(run) == []
