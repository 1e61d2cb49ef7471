"""The code of docs/activation-store.md, run from top to bottom on fewer examples."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

PAGE = (Path(__file__).parents[2] / "docs" / "activation-store.md").read_text()
FEWER = {"limit=200": "limit=24", "num_latents=4096": "num_latents=256", "range(64)": "range(3)"}


def coder(d_in: int) -> None:
    """What the block of eai-sparsify leaves, where that is not installed: random weights in its layout."""
    torch.manual_seed(0)
    encoder = torch.randn(256, d_in)
    Path("coder").mkdir()
    said = {"activation": "topk", "k": 32, "d_in": d_in, "transcode": False, "skip_connection": False}
    Path("coder/cfg.json").write_text(json.dumps(said))
    weights = {"encoder.weight": encoder, "encoder.bias": torch.zeros(256), "b_dec": torch.zeros(d_in)}
    save_file({**weights, "W_dec": encoder.clone()}, "coder/sae.safetensors")


@pytest.mark.organism
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        if block.startswith("# eai-sparsify") and importlib.util.find_spec("sparsify") is None:
            coder(names["model"].cfg.d_model)
            continue
        for more, fewer in FEWER.items():
            block = block.replace(more, fewer)
        exec(compile(block, "docs/activation-store.md", "exec"), names)
    assert len(names["hits"].table) == 16
    assert torch.equal(names["activations"], names["store"].read(slice(0, len(names["activations"]))))
    if "loss" in names:  # the coder was trained, and is the one that was loaded
        x = names["store"].read(slice(0, 50)).float()
        trained = names["coder"](x).sae_out.detach()
        torch.testing.assert_close(names["sae"].reconstruct(x), trained, atol=1e-3, rtol=1e-3)
