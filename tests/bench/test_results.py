"""The page and figures of a run, from tables written by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from gatelens.bench import BenchResult, Rule, write_results
from gatelens.bench.results import at_equal_cost, by_layout, by_size, page


@pytest.fixture
def result() -> BenchResult:
    """A finder that is right but on ``open``, one method that is cheaper and finds the first carrier, one dearer."""
    rows = []
    for kind, size in (("redundant", 2), ("redundant", 6), ("open", 20), ("random", 0)):
        carriers = list(range(1, size + 1))
        for method, passes, found in (
            ("find_gate", 5.0, [] if kind == "open" else carriers),
            ("cheap", 2.0, carriers[:1]),
            ("dear", 9.0, carriers),
        ):
            scores = [1.0 if p in found else 0.0 for p in range(1, 31)]
            said = found if method == "find_gate" else None
            rows.append(
                {
                    "method": method, "plant": f"{kind} {size}", "question": "a", "kind": kind, "family": "llava",
                    "layout": "spread" if size in (2, 6) else "", "carriers": carriers, "decoys": [40],
                    "candidates": list(range(1, 31)), "scores": scores, "positions": said,
                    "low": float("nan"), "high": float("nan"), "passes": passes, "seconds": 0.1,
                }
            )  # fmt: skip
    return BenchResult("dev", 4, 64, pd.DataFrame(rows), {"cheap": Rule(0.5, 0.1), "dear": Rule()})


def test_sizes_layouts_and_equal_cost_by_hand(result: BenchResult) -> None:
    cases = result.cases
    sizes = by_size(cases).set_index("method")
    assert list(sizes.columns) == ["none (1)", "1 to 4 (1)", "5 to 8 (1)", "more (1)"]
    assert sizes.loc["`cheap`", "1 to 4 (1)"].startswith("0.67 [")  # 2 · 1 / (2 + 1)
    assert sizes.loc["`cheap`", "5 to 8 (1)"].startswith("0.29 [")  # 2 · 1 / (6 + 1)
    assert sizes.loc["`find_gate`", "more (1)"].startswith("0.00 [")
    assert list(by_layout(cases).columns) == ["method", "spread (2)"]
    equal = at_equal_cost(cases).set_index("kind")
    assert set(equal["best other"]) == {"`cheap`"}  # the dear one is never at equal cost
    assert equal.loc["`open`", "not the best"] == "behind" and equal.loc["`redundant`", "not the best"] == ""


def test_the_page_and_its_figures_are_written(result: BenchResult, tmp_path: Path) -> None:
    files = write_results(result, tmp_path / "results")
    assert [file.name for file in files] == ["dev-f1-by-kind.png", "dev-f1-by-passes.png", "dev.md"]
    assert all(Image.open(file).size[0] > 600 for file in files[:2])
    text = files[2].read_text()
    assert text.startswith(page(result).split("\n\n## By size")[0])
    assert all(f"]({file.name})" in text and file.stat().st_size < 150_000 for file in files[:2])
    methods = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")][:3]
    assert methods == ["dear", "find_gate", "cheap"]  # the highest F1 first
    assert "| `cheap` | 0.50 | 0.1 |" in text and "| `find_gate` | 0." not in text.split("## Rules")[1]
