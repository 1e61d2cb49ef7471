"""How much of the machine's own matrix rate the sweep of 64 runs reaches, on one core and on all.

``python -m benchmarks --only rate``. The rate is that of one large product of matrices, which takes about as many
operations as the sweep and is timed in turn with it: what a busy machine takes from one it takes from the other.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import torch

from .growth import counted_flops
from .model import SMALL, Size
from .sweep import Bench, model_facts
from .timing import Times, in_turn

LIMIT = 0.5
MATRIX = 4096


def measure(size: Size = SMALL, repeats: int = 5, hf: Any = None) -> dict[str, Any]:
    """A row for each number of threads: times, rates, and the share of each repeat."""
    bench = Bench(size, hf=hf)
    flops = counted_flops(bench.engine)
    n = MATRIX if size == SMALL else 256
    a, b = (torch.randn(n, n, generator=torch.Generator().manual_seed(i)) for i in range(2))
    before = torch.get_num_threads()
    rows = []
    try:
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            times = in_turn({"sweep": bench.engine, "product": lambda: a @ b}, repeats)
            rows.append(_row(threads, flops, 2 * n**3, times))
    finally:
        torch.set_num_threads(before)
    return {
        "model": model_facts(size, bench.hf),
        "runs": len(bench.runs),
        "flops": flops,
        "product": n,
        "threads": rows,
        "limit": LIMIT,
        "passes": all(row["median_share"] >= LIMIT for row in rows),
    }


def _row(threads: int, flops: int, product_flops: int, times: dict[str, Times]) -> dict[str, Any]:
    pairs = zip(times["sweep"].seconds, times["product"].seconds, strict=True)
    shares = [(flops / ours) / (product_flops / its) for ours, its in pairs]
    return {
        "threads": threads,
        "times": {name: t.as_dict() for name, t in times.items()},
        "gflops_per_s": flops / times["sweep"].median / 1e9,
        "matrix_gflops_per_s": product_flops / times["product"].median / 1e9,
        "shares": shares,
        "least_share": min(shares),
        "median_share": statistics.median(shares),
    }
