"""The code of docs/activation-store.md, run from top to bottom on fewer examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "activation-store.md").read_text()


@pytest.mark.organism
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block.replace("limit=200", "limit=24"), "docs/activation-store.md", "exec"), names)
    assert torch.equal(names["activations"], names["store"].read(slice(0, len(names["activations"]))))
