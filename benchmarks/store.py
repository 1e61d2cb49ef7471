"""A store of 1,000,000 rows of 512 floats, written and read, beside the disk's own rate and a plain numpy memmap.

Each measurement runs in a process of its own, so that its peak memory is its own. Memory is what the process allocates
(``RssAnon``); pages of mapped files belong to the machine, which takes them back when it needs them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from gatelens.activation_store.files import RowWriter, write_table
from gatelens.activation_store.layout import COLLECT, activation_file, index_file
from gatelens.activation_store.store import ActivationStore
from gatelens.atomic_files import written_whole
from gatelens.runs import Run

ROWS, WIDTH, SHARD, STEP = 1_000_000, 512, 65_536, 4096
SIDES = ("disk", "memmap", "store")
POINT = ("resid_post", 0)


def measure(rows: int = ROWS) -> dict[str, Any]:
    """MB/s and peak memory of each side, and of the store with a tenth of the rows."""
    found: dict[str, Any] = {"rows": rows, "width": WIDTH, "mb": rows * WIDTH * 2 / 1e6}
    place = Path(__file__).parents[1] / "build"  # on a real disk, where /tmp may be memory; git leaves it out
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        for side in SIDES:
            found[side] = _alone(side, rows, folder)
        found["store_of_a_tenth"] = _alone("store", rows // 10, folder)
    return found


def _alone(side: str, rows: int, folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.store", side, str(rows), tempfile.mkdtemp(dir=folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def blocks(rows: int) -> Any:
    """The rows to write, a block at a time: the same numbers again and again, as making them is not measured."""
    block = torch.randn(STEP, WIDTH, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    for start in range(0, rows, STEP):
        yield block[: min(STEP, rows - start)]


def disk(rows: int, folder: Path) -> tuple[Callable[[], None], Callable[[], None], None]:
    """Plain bytes in one file, as ``dd`` with ``conv=fsync`` does."""

    def write() -> None:
        with open(folder / "plain", "wb", buffering=0) as file:
            for block in blocks(rows):
                file.write(block.numpy().data)
            os.fsync(file.fileno())

    def read() -> None:
        with open(folder / "plain", "rb", buffering=0) as file:
            room = bytearray(STEP * WIDTH * 2)
            while file.readinto(room):
                pass

    return write, read, None


def memmap(rows: int, folder: Path) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """One numpy memmap of all rows."""

    def open_as(mode: Any) -> Any:
        return np.memmap(folder / "map", dtype=np.float16, mode=mode, shape=(rows, WIDTH))

    def write() -> None:
        held = open_as("w+")
        for i, block in enumerate(blocks(rows)):
            held[i * STEP : i * STEP + len(block)] = block.numpy()
        held.flush()

    def read() -> None:
        held = open_as("r")
        for start in range(0, rows, STEP):
            held[start : start + STEP].copy()

    def drawn() -> None:
        held, order = open_as("r"), np.random.default_rng(0).permutation(rows)
        for start in range(0, rows, STEP):
            _ = held[order[start : start + STEP]]

    return write, read, drawn


def store(rows: int, folder: Path) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
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
            run.save_batch(COLLECT, name, {"shard": pd.DataFrame({"rows": [n], "examples": [n // 64]})})

    def read() -> None:
        for _ in ActivationStore(path).iterate(STEP):
            pass

    def drawn() -> None:
        for _ in ActivationStore(path).iterate(STEP, shuffle=0):
            pass

    return write, read, drawn


def index_of(start: int, n: int) -> pd.DataFrame:
    """Who the rows are: 64 patches of an example."""
    number = (start + np.arange(n)) // 64
    place = (start + np.arange(n)) % 64
    table = {"example": [f"scene-{i}" for i in number], "number": number, "position": place + 1}
    table |= {"role": ["image"] * n, "row": place // 8, "col": place % 8}
    return pd.DataFrame(table).astype({"example": "category", "role": "category"})


def timed(work: Callable[[], None], megabytes: float) -> tuple[float, float]:
    """(MB/s, peak of what the process allocated beyond the start, in MiB)."""
    before, peak, ended = _anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    return megabytes / seconds, max(0.0, peak[0] - before) / 2**20


def _anonymous() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def main(side: str, rows: int, folder: str) -> None:
    """One side, on standard output."""
    list(blocks(STEP))  # torch's own first use
    found: dict[str, float] = {}
    works = {"disk": disk, "memmap": memmap, "store": store}[side](rows, Path(folder))
    for name, work in zip(("write", "read", "drawn"), works, strict=True):
        if work is not None:
            found[name], found[f"{name}_mib"] = timed(work, rows * WIDTH * 2 / 1e6)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
