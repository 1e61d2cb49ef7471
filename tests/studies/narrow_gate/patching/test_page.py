"""The patching cards: what the figures show is what the tables hold."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from gatelens.plots.style import palette, png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.patching.attributes import depths
from gatelens.studies.narrow_gate.patching.page import (
    ANY,
    CUMULATIVE,
    _classes_caption,
    cards,
    class_bars,
    class_map,
    patching_curve,
)

COLUMNS = ["layer", "measure", "mean", "low", "high", "n"]


def table() -> pd.DataFrame:
    rows = [
        (layer, measure, mean, mean - 0.05, mean + 0.05, 30)
        for layer, values in enumerate(((0.1, 0.9, 0.2, 0.3), (0.8, 0.15, 0.7, 0.6)), start=-1)
        for measure, mean in zip(("target", "base", "flipped", "success"), values, strict=True)
    ]
    rows += [(4, m, 0.5, 0.4, 0.6, 30) for m in ("target", "base", "flipped", "success")]
    return pd.DataFrame(rows, columns=COLUMNS)


def classes() -> pd.DataFrame:
    rows = [
        ("cat", "dog", 1, "success", 0.25, 0.0, 0.5, 4),
        ("fox", "cat", 1, "success", 1.0, 0.6, 1.0, 6),
        ("cat", ANY, 1, "success", 0.25, 0.0, 0.5, 4),
        ("fox", ANY, 1, "success", 1.0, 0.6, 1.0, 6),
        (ANY, "cat", 1, "success", 1.0, 0.6, 1.0, 6),
        (ANY, "dog", 1, "success", 0.25, 0.0, 0.5, 4),
    ]
    return pd.DataFrame(rows, columns=["base_class", "target_class", *COLUMNS])


def attributes() -> pd.DataFrame:
    means = {"class": (0.0, 0.8, 0.3), "color": (0.0, 0.5, 0.9), "side": (0.02, 0.0, 0.05)}
    rows = [
        (name, layer, mean, max(0.0, mean - 0.1), mean + 0.1, 40)
        for name, values in means.items()
        for layer, mean in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["attribute", "layer", "mean", "low", "high", "n"])


def test_curve_shows_the_table() -> None:
    before = dict(mpl.rcParams)
    axes = patching_curve(table(), title=CUMULATIVE).axes[0]
    assert axes.get_title(loc="left") == CUMULATIVE
    lines = {line.get_label(): line for line in axes.lines}
    shown = lines["predictions of the target’s class"]
    assert list(shown.get_xdata()) == [0, 4] and list(shown.get_ydata()) == [0.6, 0.5]
    target = lines["overlap with the patched-in picture’s answer"]
    assert target.get_color() == palette(False).gate
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("dark", [False, True])
def test_map_shows_the_table_and_its_counts(dark: bool) -> None:
    figure = class_map(classes(), dark)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "fox"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["cat", "dog"]
    shown = axes.images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == [[True, False], [False, True]]
    assert (shown[0, 1], shown[1, 0]) == (0.25, 1.0)
    written = {t.get_text(): t.get_position() for t in axes.texts}
    assert written == {"0.25\nn = 4": (1, 0), "1.00\nn = 6": (0, 1)}
    full = axes.images[0].cmap(1.0)[:3]
    np.testing.assert_allclose(full, to_rgb(palette(dark).gate), atol=1e-6)
    assert png(figure).startswith(b"\x89PNG")


def test_classes_are_pooled_by_side() -> None:
    axes = class_bars(classes()).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights[:3] == [0.25, pytest.approx(np.nan, nan_ok=True), 1.0]  # asked about: cat, dog, fox
    assert heights[3:] == [1.0, 0.25, pytest.approx(np.nan, nan_ok=True)]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["cat\nn = 4, 6", "dog\nn = 4", "fox\nn = 6"]


def test_cards(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", study="narrow-gate", settings={})
    run.save("patching", table())
    run.save("patching_attention", table())
    assert [b.name for b in cards(run)[0].blocks] == ["patching", "patching_attention"]
    run.save("patching_classes", classes())
    charts = cards(run)[0].blocks
    # four and six pairs of two given classes are too few for a map of them
    assert [b.name for b in charts] == ["patching", "patching_attention", "patching_classes"]
    assert "4 to 6 pairs" in charts[2].caption and "layer 1" in charts[2].caption
    run.save("patching_classes", classes().assign(n=12))
    charts = cards(run)[0].blocks
    assert charts[3].name == "patching_class_pairs" and "too few" not in charts[2].caption
    run.save(
        "patching_classes", classes()[[True, False, True, False, False, True]]
    )  # a single pair makes no map
    assert len(cards(run)[0].blocks) == 2


def test_attributes_with_their_depths(tmp_path: Path) -> None:
    run = Run.open(None, study="narrow-gate", settings={})
    run.save("patching", table())
    run.save("patching_attention", table())
    run.save("patching_attributes", attributes())
    run.save("patching_depths", depths(attributes()))
    card = cards(run)[0]
    *_, chart, shown = card.blocks
    assert chart.name == "patching_attributes" and png(chart.draw(False)).startswith(b"\x89PNG")
    assert card.finding == "best layer: class 1, color 2, side none"
    assert [row[1] for row in shown.rows] == ["1", "2", "none"]
    assert [row[3] for row in shown.rows] == ["1", "1–2", "–"]


def test_no_best_layer_where_none_does_anything() -> None:
    said = _classes_caption(classes())
    assert "in layer 1 (the best)" in said
    none = _classes_caption(classes().assign(mean=0.0))
    assert "best" not in none and "none in any other layer" in none
