"""The modality-gap card draws the tables' own numbers."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.modality_gap.section import compare, page


def run_of(clusters: bool = True) -> Run:
    generator = torch.Generator().manual_seed(0)
    spreads, histogram, heaps = [], [], []
    for layer in range(3):
        noise = torch.randn(2, 60, 8, generator=generator)
        noise[0, :, 0] += 4
        noise[1, :, layer] += 4
        s, h, c = compare(noise[0], noise[1])
        spreads += [{"layer": layer, **row} for row in s]
        histogram += [{"layer": layer, **row} for row in h]
        heaps += [{"layer": layer, **(c or {})}]
    run = Run.open(None, study="narrow-gate", settings={})
    run.save("modality_gap", pd.DataFrame(spreads))
    run.save("modality_gap_histogram", pd.DataFrame(histogram))
    run.save("modality_clusters", pd.DataFrame(heaps)[: 3 if clusters else 0])
    return run


@pytest.mark.parametrize("dark", [False, True])
def test_lines_are_the_tables(dark: bool) -> None:
    run = run_of()
    (found,) = page(run)
    drawn = {b.name: b.draw(dark) for b in found.blocks}  # type: ignore[union-attr]
    table = run.table("modality_gap")
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn["modality_gap"].axes[0].lines}
    for label, pair in (
        ("image and text, median", "image-text"),
        ("two image tokens, median", "image-image"),
    ):
        assert lines[label] == table[table.pair == pair]["median"].tolist()
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn["modality_clusters"].axes[0].lines}
    assert lines["homogeneity"] == run.table("modality_clusters").homogeneity.tolist()
    assert all(png(figure).startswith(b"\x89PNG") for figure in drawn.values())
    assert set(found.words) == {"modality gap", "homogeneity"}


def test_captions_name_the_layers() -> None:
    run = run_of()
    (found,) = page(run)
    gap, clusters = (b.caption for b in found.blocks)  # type: ignore[union-attr]
    assert "highest in layer 0" in gap  # where both heaps lie on one axis
    assert "3,600 pairs" in gap
    best = run.table("modality_clusters").set_index("layer").homogeneity
    assert f"Most in layer {best.idxmax()} ({best.max():.2f}" in clusters
    assert best.idxmin() == 0


def test_what_is_not_there_is_not_drawn() -> None:
    (one,) = page(run_of(clusters=False))
    assert [b.name for b in one.blocks] == ["modality_gap"]  # type: ignore[union-attr]
    assert set(one.words) == {"modality gap"}
