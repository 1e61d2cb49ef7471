"""The paper's table beside measured numbers: which cells agree, differ, or cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import paper_copies as copies
from gatelens.studies.narrow_gate.knockout_table import GATE, IMAGE, NONE
from gatelens.studies.narrow_gate.reference import TABLE_1
from gatelens.verification.paper import compared, judge, paper_table

VQA, FLICKR, COCO, IMAGENET = TABLE_1["facebook/chameleon-7b"].columns


@pytest.mark.parametrize(
    "column, published, low, high, n, verdict",
    [
        (VQA, 0.51, 0.45, 0.60, 100, "agrees"),
        (VQA, 0.51, 0.30, 0.49, 100, "agrees"),  # the paper's own interval is 0.483 to 0.537
        (VQA, 0.51, 0.30, 0.48, 100, "differs"),
        (VQA, 0.25, 0.29, 0.40, 100, "differs"),
        (COCO, 0.35, 0.30, 0.40, 100, "not comparable"),
        (COCO, 0.35, 0.30, 0.40, 2000, "agrees"),
        (COCO, 0.35, 0.36, 0.40, 2000, "differs"),
        (IMAGENET, 0.46, 0.40, 0.50, 2000, "not comparable"),
    ],
)
def test_a_cell(column: str, published: float, low: float, high: float, n: int, verdict: str) -> None:
    said, reason = judge(column, published, {"low": low, "high": high, "mean": (low + high) / 2, "n": n})
    assert said == verdict and bool(reason) == (verdict != "agrees")


def test_cells_are_those_of_the_same_row_and_data() -> None:
    rows = [NONE, GATE, IMAGE, "random-10 → text"]
    metrics = ["VQA accuracy", "CIDEr-D (flickr30k)", "CIDEr-D (coco)"]
    values = {(r, m): 0.1 * i + 0.01 * j for i, r in enumerate(rows) for j, m in enumerate(metrics)}
    knockout = pd.DataFrame(
        [
            {"how": how, "row": r, "metric": m, "mean": v + shift, "low": v, "high": v, "n": 50}
            for how, shift in (("zero", 0.0), ("mask", 9.0))
            for (r, m), v in values.items()
        ]
    )
    cells = compared(TABLE_1["facebook/chameleon-7b"], knockout, ["vqav2", "flickr30k", "coco"])
    found = {(c["row"], c["column"]): c["mean"] for c in cells}
    assert found[("[EOI]", VQA)] == values[(GATE, "VQA accuracy")]
    assert found[("image → text", COCO)] == values[(IMAGE, "CIDEr-D (coco)")]
    assert found[("random (10 image tokens)", FLICKR)] == values[(rows[3], "CIDEr-D (flickr30k)")]
    assert found[("none", IMAGENET)] is None
    other = compared(TABLE_1["facebook/chameleon-7b"], knockout, ["easy-vqa"])
    assert {c["mean"] for c in other} == {None}
    assert {c["verdict"] for c in other} == {"not comparable"}


def test_a_small_run_stands_beside_the_table(tiny_llava: Any, tmp_path: Path) -> None:
    folder = tmp_path / "vqav2"
    copies.write(folder / "validation.parquet", copies.vqav2())
    name = "/somewhere/facebook/chameleon-7b"
    table = paper_table(tiny_llava, name, 2, f"vqav2:{folder}", tmp_path / "paper", False)
    vqa = [cell for cell in table["cells"] if cell["column"] == VQA]
    assert [cell["row"] for cell in vqa] == ["none", "[EOI]", "image → text", "random (10 image tokens)"]
    assert {cell["n"] for cell in vqa} == {2} and {cell["mean"] for cell in vqa} == {0.0}
    assert table["source"].startswith("Chameleon-7B: Table 1")
    rest = [cell for cell in table["cells"] if cell["column"] != VQA]
    assert {cell["verdict"] for cell in rest} == {"not comparable"} and len(rest) == 12


def test_a_model_without_a_table(tiny_llava: Any) -> None:
    table = paper_table(tiny_llava, "organism:gated", 5, None, None, False)
    assert table["cells"] == [] and "no paper's table" in table["source"]
