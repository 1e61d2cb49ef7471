"""Vectors go from round to round bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gatelens.runs import Run
from gatelens.studies.vectors import as_table, at_layer, vectors_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_vectors_of_several_batches_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        {name: torch.randn(n, 3, 5, generator=generator).to(dtype) for name in ("gate", "last", "row break")}
        for n in (4, 1, 2)
    ]
    parts[0]["gate"][0, 0, :2] = torch.tensor([float("nan"), -0.0], dtype=dtype)
    del parts[1]["row break"]
    run = Run.open(tmp_path, study="s", settings={})
    for i, part in enumerate(parts):
        run.save_batch("section", str(i), {"stream": as_table(part)})
    tables = [run.batch("section", str(i))["stream"] for i in range(len(parts))]
    for layer in range(3):
        found = vectors_of(at_layer(tables, layer))
        assert list(found) == ["gate", "last"]  # one batch has no row break
        for name, vectors in found.items():
            wanted = torch.cat([part[name][:, layer] for part in parts])
            assert vectors.dtype == dtype
            assert torch.equal(vectors.view(torch.uint8), wanted.contiguous().view(torch.uint8))
