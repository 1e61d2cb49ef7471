"""Workers beside one: 400 pictures × 64 knockouts of ``organism:gated``, and what planning a million units costs.

Every worker has one thread of torch. Workers are started first, and all of them are there while each is timed in turn:
what is timed is a sweep without their start, which is given by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch

import gatelens as gl
from gatelens.executors import Executor, executing
from gatelens.runs import Run
from gatelens.units import Unit, numbered

from .timing import Times, in_turn, pair_ratios, ratio

EXAMPLES, UNITS, LIMIT = 400, 1_000_000, 1.8
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


def measure(n: int = EXAMPLES, repeats: int = 3, units: int = UNITS) -> dict[str, Any]:
    """Seconds of the sweep by one worker, by two, and by two on two nodes of Ray; and the plan."""
    found: dict[str, Any] = {"examples": n, "runs": 64, "limit": LIMIT, "plan": planned(units)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return found | _sweeps(n, repeats)
    finally:
        torch.set_num_threads(threads)


def _sweeps(n: int, repeats: int) -> dict[str, Any]:
    model, tables, starts = gl.HookedVLM.from_pretrained("organism:gated"), {}, {}
    with ExitStack() as stack:
        pools: dict[str, Executor] = {}
        for name, opened in {
            "one": partial(executing, 1),
            "two": partial(executing, 2),
            "ray": two_nodes,
        }.items():
            start = time.perf_counter()
            pools[name] = stack.enter_context(opened())
            sweep(model, 100, pools[name])  # units for all of them: each starts, and loads the model
            starts[name] = time.perf_counter() - start

        def work(name: str) -> Callable[[], None]:
            return lambda: tables.update({name: sweep(model, n, pools[name])})

        times = in_turn({name: work(name) for name in pools}, repeats)
    over = {name: ratio(times["one"], times[name]) for name in ("two", "ray")}
    return {
        "times": {name: t.as_dict() for name, t in times.items()},
        "start_s": starts,
        "ratio": over,
        "pairs": {name: spread(times["one"], times[name]) for name in over},
        "passes": over["two"] >= LIMIT,
        "equal": all(tables["one"].equals(tables[name]) for name in over),
    }


def spread(above: Times, below: Times) -> dict[str, float]:
    """The least and the most of the ratios, repeat by repeat."""
    ratios = pair_ratios(above, below)
    return {"least": min(ratios), "most": max(ratios)}


def sweep(model: Any, n: int, pool: Executor) -> pd.DataFrame:
    """64 knockouts of ``n`` pictures: windows of layers, what is read, and how it is cut."""
    windows = list(combinations_with_replacement(range(model.cfg.n_layers), 2))[:16]
    grid = {
        "layers": {f"{a} to {b}": (a, b) for a, b in windows},
        "keys": ["gate", "image"],
        "how": ["mask", "zero"],
    }
    with patch("gatelens.sweeps.executing", lambda workers, ray: nullcontext(pool)):
        return gl.sweep(
            model, "emoji-scenes", grid, gl.metrics.logit(lambda e: e.label), False, task="class", limit=n,
            make=lambda layers, keys, how: gl.knockout(
                "text - gate", keys, layers=range(layers[0], layers[1] + 1), how=how
            ),
        )  # fmt: skip


@contextmanager
def two_nodes() -> Iterator[Executor]:
    """Two workers on a Ray cluster of two nodes on this machine, with a CPU each."""
    here = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the head keeps the address 127.0.0.1
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(os.path.abspath(one) for one in sys.path),
    }
    with patch.dict(os.environ, here):
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        cluster.add_node(**NODE)
        try:
            with executing(ray=cluster.address) as pool:
                yield pool
        finally:
            cluster.shutdown()


def planned(units: int) -> dict[str, float]:
    """Seconds and MiB that planning so many units takes in a process of its own, before the first is measured."""
    command = [sys.executable, "-m", "benchmarks.workers", str(units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def nothing(part: list[int], examples: list[Any], done: Any) -> dict[str, pd.DataFrame]:
    """What a unit measures here: it is never called."""
    raise AssertionError


def main(n: int) -> None:
    """The plan, on standard output: units of one example each in a folder where a thousand of them are measured."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.open(Path(folder) / "run", study="plan", settings={})
        for i in range(1000):
            run.save_batch("s", numbered(i), {"values": pd.DataFrame({"value": [0.0]})})
        before, start = _allocated(), time.perf_counter()
        units = [Unit(numbered(i), 64, partial(nothing, [i], [None])) for i in range(n)]
        made = time.perf_counter()
        missing = run.missing("s", (unit.name for unit in units))
        left = [unit for unit in units if unit.name in missing]
        end = time.perf_counter()
        assert len(left) == n - 1000
        found = {"units": n, "seconds": end - start, "asked_s": end - made, "mib": _allocated() - before}
    print(json.dumps(found))


def _allocated() -> float:
    """MiB that this process has allocated now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


if __name__ == "__main__":
    main(int(sys.argv[1]))
