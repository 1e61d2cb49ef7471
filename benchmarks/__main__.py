"""``python -m benchmarks``: measure everything, print one table, write results.json and README.md beside it."""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# before anything reads them: nothing here is fetched, and progress bars would stand in the table
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from transformers.utils import logging

from . import (
    attribution,
    examples,
    explore,
    forward,
    generate,
    gpu,
    growth,
    maps,
    memory,
    rate,
    report,
    rivals,
    store,
    sweep,
    views,
    workers,
)
from .model import SMALL, TINY, make_transformers
from .timing import machine, use_all_cores

PARTS = (
    "sweep",
    "examples",
    "rate",
    "maps",
    "attribution",
    "generate",
    "forward",
    "memory",
    "growth",
    "explore",
    "views",
    "store",
    "workers",
    "rivals",
    "gpu",
)


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    words.add_argument(
        "--only", help=f"some of {','.join(PARTS)}; the files beside this one are then left alone"
    )
    words.add_argument(
        "--repeats", type=int, default=5, help="repeats of every measurement, at least (default 5)"
    )
    words.add_argument(
        "--tiny", action="store_true", help="a tiny model, to try the scripts; writes no files"
    )
    words.add_argument(
        "--venvs", type=Path, default=rivals.VENVS, help="where the rivals' environments are kept"
    )
    words.add_argument(
        "--out", type=Path, help="folder for results.json and README.md (default: beside this file)"
    )
    given = words.parse_args()
    chosen = given.only.split(",") if given.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        words.error(f"no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    out = given.out or (None if given.only or given.tiny else Path(__file__).parent)

    logging.disable_progress_bar()
    use_all_cores()
    size, n = (TINY if given.tiny else SMALL), given.repeats
    hf = make_transformers(size)
    work: dict[str, Callable[[], Any]] = {
        "sweep": lambda: sweep.measure(size, n, hf),
        "examples": lambda: examples.measure(size, hf, 9 if given.tiny else examples.EXAMPLES),
        "rate": lambda: rate.measure(size, n, hf),
        "maps": lambda: maps.measure(size, n, hf),
        "attribution": lambda: attribution.measure(size, n, hf),
        "generate": lambda: generate.measure(size, max(n, 7) if n > 2 else n, hf),
        "forward": lambda: forward.measure(size, 3 * n, hf),
        "memory": lambda: memory.measure(size, n),
        "growth": lambda: growth.measure(size, n),
        "explore": lambda: explore.measure(n=4 if given.tiny else 40),
        "views": lambda: views.measure(2 if given.tiny else n),
        "store": lambda: store.measure(40_000 if given.tiny else store.ROWS),
        "workers": lambda: workers.measure(*((16, 2, 10_000) if given.tiny else ())),
        "rivals": lambda: rivals.measure(size, n, hf, given.venvs),
        "gpu": lambda: gpu.measure(TINY, n, "cpu") if given.tiny else gpu.measure(),
    }
    results: dict[str, Any] = {"machine": machine(), "model": sweep.model_facts(size, hf)}
    for name in chosen:
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        try:
            results[name] = work[name]()
        except Exception as error:  # a part that breaks is a line of the table; the others still count
            traceback.print_exc()
            failed = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            results[name] = [] if name == "rivals" else [failed] if name == "maps" else failed
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if name != "growth" and results[name]:
            print(report.plain_text(report.HEAD, report.summary({name: results[name]})), flush=True)
    print("\n" + report.plain_text(report.HEAD, report.summary(results)))
    if results.get("growth") and "error" not in results["growth"]:
        print("\n" + report.plain_text(report.GROWTH_HEAD, report.growth_rows(results["growth"])))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "README.md").write_text(report.readme(results))
        print(f"\nwritten: {out / 'results.json'}, {out / 'README.md'}")


if __name__ == "__main__":
    main()
