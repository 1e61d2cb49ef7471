"""Memory that ``gl.explain`` predicts beside the peak that is measured, each sweep in a process of its own.

``python -m benchmarks.footprint``; measured as in ``benchmarks/memory.py``, beside the weights.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
from typing import Any

import torch

import gatelens as gl

from .memory import extra_bytes, in_process
from .model import SMALL, TINY, Size, make_hooked, make_transformers
from .sweep import knockouts, words

CASES = (
    "64 knockouts, last row",
    "64 knockouts, every row",
    "8 knockouts, last row",
    "16 edits of the picture",
)


def runs_of(name: str, size: Size) -> dict[str, Any]:
    """The runs of a case."""
    if name.startswith("16"):  # long suffixes: what the runs hold is most of it
        half, ones = f"pos[{1 + size.n_image // 2}]", torch.ones(size.d_model)
        return {
            f"edit {i}": gl.steer(ones, at=half, site="resid_pre", layers=[1], scale=i + 1) for i in range(16)
        }
    return knockouts(size.n_layers, int(name.split()[0]) // 8)


def work(name: str, size: Size) -> tuple[Any, Any, int]:
    """(the sweep, a pass over a few tokens, bytes predicted beside the weights)."""
    model, inputs = make_hooked(make_transformers(size), size)
    runs, every = runs_of(name, size), name.endswith("every row")
    first, second = words(size)
    last = gl.metrics.logit_diff(first, second)
    metric = (lambda logits: logits[:, -1, first] - logits[:, -1, second]) if every else last
    held = gl.explain(model, inputs, {"run": runs}, every_position=every).footprint
    few = model.inputs(inputs.ids[:, -12:])

    def sweep() -> Any:
        return gl.sweep(model, inputs, {"run": runs}, metric, progress=False)

    return sweep, lambda: model(few), held.working


def measure(size: Size = SMALL, repeats: int = 3) -> dict[str, Any]:
    """By case: predicted, measured (median of fresh processes), their ratio."""
    rows = {}
    for name in CASES:
        found = [in_process("benchmarks.footprint", name, size) for _ in range(repeats)]
        due = work(name, size)[2]
        measured = statistics.median(found)
        rows[name] = {"predicted_mib": due / 2**20, "measured_mib": measured / 2**20, "ratio": due / measured}
        gc.collect()
    return rows


def main(name: str, size: str) -> None:
    """One measurement, on standard output."""
    with torch.no_grad():
        sweep, few, due = work(name, TINY if size == "tiny" else SMALL)
        few()
        print(json.dumps({"extra": extra_bytes(sweep), "predicted": due}))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(json.dumps(measure(), indent=1))
    else:
        main(*sys.argv[1:])
