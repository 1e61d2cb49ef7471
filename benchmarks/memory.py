"""Peak memory of the cross-modal attention measure beside a plain forward pass, each in a process of its own.

Measured is resident memory: what the process holds at its highest during the pass, less what it held just
before. The kernel's own high-water mark (VmHWM) sees every buffer, also those inside fused kernels, which a
count of torch's tensors does not. So that memory freed while loading is not found again in the allocator's
pockets, the process starts with glibc told to give large blocks back at once.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gatelens import HookedVLM, VLMInputs
from gatelens.engine.attention_rows import look
from gatelens.families import family_of, token_map
from gatelens.measures.attention import AttentionShare
from gatelens.studies.narrow_gate.knockout_table import QUERIES

from .model import SMALL, TINY, Size, make_ids, make_transformers, with_tokens
from .plain import make_plain, run_plain
from .timing import use_all_cores

LIMIT = 1.3
WHAT = ("transformers", "gatelens", "gatelens_last", "measure", "transformer_lens_measure")
_GLIBC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def measure(size: Size = SMALL, repeats: int = 5) -> dict[str, Any]:
    """Median of the peaks over fresh processes, the kinds in turn.

    The measure gives the logits of the last position alone; so it is held against a forward pass that does
    too (``gatelens_last``), which needs less than one with the logits of every position (``gatelens``).
    """
    if not Path("/proc/self/clear_refs").exists():
        return {"error": "peak memory is read from /proc, which this system has not: run it on Linux"}
    found: dict[str, list[int]] = {name: [] for name in WHAT}
    for _ in range(repeats):
        for name in WHAT:
            found[name].append(in_process("benchmarks.memory", name, size))
    median = {name: statistics.median(values) for name, values in found.items()}
    return {
        "extra_mib": {name: round(value / 2**20, 1) for name, value in median.items()},
        "each_mib": {name: [round(v / 2**20, 1) for v in values] for name, values in found.items()},
        "repeats": repeats,
        "ratio": median["measure"] / median["gatelens_last"],
        "ratio_to_all_logits": median["measure"] / median["gatelens"],
        "ratio_to_transformers": median["measure"] / median["transformers"],
        "ratio_transformer_lens": median["transformer_lens_measure"] / median["gatelens"],
        "limit": LIMIT,
        "passes": median["measure"] / median["gatelens_last"] <= LIMIT,
        "how": "VmHWM during the pass less VmRSS before it, each in a fresh process",
    }


def in_process(module: str, name: str, size: Size) -> int:
    """What a benchmark's module prints as extra bytes of one of its works, in a process of its own."""
    command = [sys.executable, "-m", module, name, "tiny" if size == TINY else "small"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **_GLIBC},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of '{name}' failed: {done.stderr.strip().splitlines()[-1]}")
    return int(json.loads(done.stdout.strip().splitlines()[-1])["extra"])


def work_of(name: str, size: Size) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(the pass, the same on a few tokens, so that threads and libraries are there before it counts)."""
    hf = make_transformers(size, attention="eager" if name == "transformer_lens_measure" else "sdpa")
    sizes = (size, with_tokens(size, 8))
    if name == "transformers":
        ids = [make_ids(s) for s in sizes]
        return lambda: hf(ids[0], use_cache=False), lambda: hf(ids[1], use_cache=False)
    if name == "transformer_lens_measure":
        bridge = make_plain(hf)
        layout = family_of(type(hf).__name__).layout(hf.config, None)
        found = [(make_ids(s), token_map(layout, make_ids(s))) for s in sizes]

        def plainly(ids: Any, tokens: Any) -> Any:
            return run_plain(bridge, ids, AttentionShare(size.n_layers).hooks(tokens, QUERIES))

        return lambda: plainly(*found[0]), lambda: plainly(*found[1])
    model = HookedVLM.from_module(hf)
    inputs = [model.inputs(make_ids(s)) for s in sizes]
    if name == "gatelens_last":
        last = [{**i.tensors, "logits_to_keep": 1} for i in inputs]
        return lambda: model.forward_step(last[0]), lambda: model.forward_step(last[1])
    if name == "gatelens":
        return lambda: model(inputs[0]), lambda: model(inputs[1])
    return lambda: attention_share(model, inputs[0]), lambda: attention_share(model, inputs[1])


def attention_share(model: HookedVLM, inputs: VLMInputs) -> AttentionShare:
    """The measure as the narrow-gate study takes it, for one batch."""
    share = AttentionShare(int(model.cfg.n_layers))
    with share.looking(inputs.tokens, QUERIES) as see:
        look(model, inputs, QUERIES, see)
    return share


def extra_bytes(work: Callable[[], Any]) -> int:
    """The highest resident memory while the work runs, less what was resident before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark so far
    before = _status("VmRSS")
    held = work()
    peak = _status("VmHWM")
    del held
    return peak - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main(name: str, size: str) -> None:
    """One measurement, on standard output."""
    use_all_cores()
    with torch.no_grad():
        whole, few = work_of(name, TINY if size == "tiny" else SMALL)
        few()
        print(json.dumps({"extra": extra_bytes(whole)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
