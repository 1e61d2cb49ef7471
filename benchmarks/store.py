"""A store of 1,000,000 rows of 512 floats, written and read, beside the disk's own rate and a plain numpy memmap.

The sides are read in turn in one process, so that a slow moment of the machine is slow for all; opening is measured by
itself. Memory is what the process allocates (``RssAnon``) beyond its start; pages of mapped files are the machine's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from gatelens.activation_store.files import RowWriter, write_table
from gatelens.activation_store.layout import COLLECT, RECORD, activation_file, index_file
from gatelens.activation_store.records import record_of
from gatelens.activation_store.store import ActivationStore
from gatelens.atomic_files import written_whole
from gatelens.runs import Run

ROWS, WIDTH, SHARD, STEP = 1_000_000, 512, 65_536, 4096
REPEATS = 5  # of reading; writing is the disk's business
POINT = ("resid_post", 0)


class Side(NamedTuple):
    """What is measured of one way to keep rows: writing them, opening them, and what is done with them then."""

    write: Callable[[], None]
    opened: Callable[[], Any]
    works: dict[str, Callable[[Any], None]]


def measure(rows: int = ROWS) -> dict[str, Any]:
    """MB/s and peak memory of each side, and of the store with a tenth of the rows."""
    found = _alone(rows)
    return {
        "rows": rows,
        "width": WIDTH,
        "mb": rows * WIDTH * 2 / 1e6,
        **found,
        "store_of_a_tenth": _alone(rows // 10)["store"],
    }


def _alone(rows: int) -> dict[str, dict[str, float]]:
    """What each side did, in a process of its own."""
    place = Path(__file__).parents[1] / "build"  # on a real disk, where /tmp may be memory; git leaves it out
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        command = [sys.executable, "-m", "benchmarks.store", str(rows), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def blocks(rows: int) -> Any:
    """The rows to write, a block at a time: the same numbers again and again, as making them is not measured."""
    block = torch.randn(STEP, WIDTH, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    for start in range(0, rows, STEP):
        yield block[: min(STEP, rows - start)]


def disk(rows: int, folder: Path) -> Side:
    """Plain bytes in one file, as ``dd`` with ``conv=fsync`` does."""

    def write() -> None:
        with open(folder / "plain", "wb", buffering=0) as file:
            for block in blocks(rows):
                file.write(block.numpy().data)
            os.fsync(file.fileno())

    def read(file: Any) -> None:
        room = bytearray(STEP * WIDTH * 2)
        while file.readinto(room):
            pass

    return Side(write, lambda: open(folder / "plain", "rb", buffering=0), {"read": read})


def memmap(rows: int, folder: Path) -> Side:
    """One numpy memmap of all rows."""

    def open_as(mode: Any) -> Any:
        return np.memmap(folder / "map", dtype=np.float16, mode=mode, shape=(rows, WIDTH))

    def write() -> None:
        held = open_as("w+")
        for i, block in enumerate(blocks(rows)):
            held[i * STEP : i * STEP + len(block)] = block.numpy()
        held.flush()

    def read(held: Any) -> None:
        for start in range(0, rows, STEP):
            _ = held[start : start + STEP].copy()

    def drawn(held: Any) -> None:
        order = np.random.default_rng(0).permutation(rows)
        for start in range(0, rows, STEP):
            _ = held[order[start : start + STEP]]

    return Side(write, lambda: open_as("r"), {"read": read, "drawn": drawn})


def store(rows: int, folder: Path) -> Side:
    """The files and tables of ``gl.collect``, by its own writers, without a model."""
    path = folder / "acts"

    def write() -> None:
        settings = {"n": rows // 64, "at": "image", "points": ["resid_post.0"], "stored_dtype": "float16"}
        run = Run.open(path, study=COLLECT, settings=settings)
        for number, start in enumerate(range(0, rows, SHARD)):
            n, name = min(SHARD, rows - start), f"{number:05d}"
            with (
                written_whole(activation_file(path, POINT, name)) as temporary,
                open(temporary, "wb") as file,
            ):
                writer = RowWriter(file, torch.float16)
                for block in blocks(n):
                    writer.add(block)
                writer.finish()
            write_table(index_file(path, name), index_of(start, n))
            files = [index_file(path, name), activation_file(path, POINT, name)]
            run.save_batch(COLLECT, name, {RECORD: record_of(path, files, n, n // 64)})

    def read(held: Any) -> None:
        for _ in held.iterate(STEP):
            pass

    def drawn(held: Any) -> None:
        for _ in held.iterate(STEP, shuffle=0):
            pass

    def verify(held: Any) -> None:
        held.verify(progress=False)

    return Side(write, lambda: ActivationStore(path), {"read": read, "drawn": drawn, "verify": verify})


def index_of(start: int, n: int) -> pd.DataFrame:
    """Who the rows are: 64 patches of an example."""
    number = (start + np.arange(n)) // 64
    place = (start + np.arange(n)) % 64
    table = {"example": [f"scene-{i}" for i in number], "number": number, "position": place + 1}
    table |= {"role": ["image"] * n, "row": place // 8, "col": place % 8}
    return pd.DataFrame(table).astype({"example": "category", "role": "category"})


def timed(work: Callable[[], None], megabytes: float, start: float) -> tuple[float, float]:
    """(MB/s, the most that the process allocated beyond ``start``, in MiB)."""
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    return megabytes / seconds, max(0.0, peak[0] - start) / 2**20


def _anonymous() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def main(rows: int, folder: Path) -> None:
    """All sides, on standard output."""
    list(blocks(STEP))  # torch's own first use
    sides = {"disk": disk(rows, folder), "memmap": memmap(rows, folder), "store": store(rows, folder)}
    start, megabytes = _anonymous(), rows * WIDTH * 2 / 1e6
    found: dict[str, dict[str, float]] = {}
    for name, side in sides.items():
        rate, peak = timed(side.write, megabytes, start)
        found[name] = {"write": rate, "write_mib": peak}
    for work in ("read", "drawn", "verify"):
        tries: dict[str, list[tuple[float, ...]]] = {
            name: [] for name, side in sides.items() if work in side.works
        }
        for _ in range(REPEATS):
            for name, measured in tries.items():
                began = time.perf_counter()
                held = sides[name].opened()
                opening = time.perf_counter() - began
                measured.append((*timed(partial(sides[name].works[work], held), megabytes, start), opening))
        for name, measured in tries.items():
            rates, peaks, openings = zip(*measured, strict=True)
            found[name] |= {work: statistics.median(rates), f"{work}_mib": max(peaks)}
            found[name]["open_ms"] = 1e3 * statistics.median(openings)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
