"""The sweep at Chameleon-7B's real size on a GPU: random weights in bfloat16, 1,024 image tokens.

``python -m benchmarks.gpu``; with ``--tiny`` a small model on the processor, to try the script.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import gatelens as gl

from .growth import counted_flops, least_flops
from .model import CHAMELEON_7B, TINY, Size, make_transformers
from .sweep import Bench, model_facts
from .timing import in_turn, machine, pair_ratios, ratio, synchronise, use_all_cores

NO_GPU = "no GPU here (torch.cuda.is_available() is False): the sweep at Chameleon-7B's size was not run"
MATRIX = 8192


def measure(size: Size = CHAMELEON_7B, repeats: int = 5, device: str = "cuda") -> dict[str, Any]:
    """Seconds, ratio to plain hooks, share of the card's matrix rate, peak memory."""
    if device == "cuda" and not torch.cuda.is_available():
        return {"skipped": NO_GPU}
    hf = make_transformers(size, dtype=torch.bfloat16, device=device)
    bench = Bench(size, hf=hf)
    peaks = {
        name: peak_bytes(work) for name, work in (("engine", bench.engine), ("plain", bench.transformer_lens))
    }
    times = in_turn({"engine": bench.engine, "transformer_lens": bench.transformer_lens}, repeats, warm_up=1)
    found = bench.agreement()
    with torch.no_grad():
        rounding = float(
            (hf(bench.ids, use_cache=False).logits - bench.plain.run_with_hooks(bench.ids)).abs().max()
        )
    flops = counted_flops(bench.engine)
    least = least_flops(size, bench.inputs, bench.model.cfg, bench.runs)
    rate = matrix_rate(device, MATRIX if size == CHAMELEON_7B else 256)
    reached = flops / times["engine"].median
    return {
        "model": model_facts(size, hf),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "runs": len(bench.runs),
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratio": ratio(times["transformer_lens"], times["engine"]),
        "pair_ratios": pair_ratios(times["transformer_lens"], times["engine"]),
        "flops": flops,
        "flops_over_least": flops / least,
        "tflops_per_s": reached / 1e12,
        "matrix_tflops_per_s": rate / 1e12,
        "share_of_matrix_rate": reached / rate,
        "least_share_of_matrix_rate": least / times["engine"].median / rate,
        "peak_gib": {name: value / 2**30 for name, value in peaks.items()},
        "weights_gib": sum(p.numel() * p.element_size() for p in hf.parameters()) / 2**30,
        "max_logit_difference": max(found["engine"], found["prefix"]),
        "rounding_of_bfloat16": rounding,
        "largest_effect_on_a_logit": found["effect"],
        "plan": gl.explain(bench.model, bench.inputs, {"run": bench.runs}).summary,
    }


def peak_bytes(work: Any) -> int:
    """The most the card holds during the work, weights among it; 0 without a card."""
    if not torch.cuda.is_available():
        work()
        return 0
    synchronise()
    torch.cuda.reset_peak_memory_stats()
    work()
    synchronise()
    return int(torch.cuda.max_memory_allocated())


def matrix_rate(device: str, n: int) -> float:
    """Operations a second of one large product in bfloat16: what the card gives when nothing else is due."""
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
    times = in_turn({"matrix": lambda: a @ b}, repeats=7, warm_up=3, inner=10)
    return 2 * n**3 / times["matrix"].median


def main(arguments: list[str]) -> None:
    use_all_cores()
    found = measure(TINY, repeats=2, device="cpu") if "--tiny" in arguments else measure()
    print(found["skipped"] if "skipped" in found else json.dumps({"machine": machine(), **found}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
