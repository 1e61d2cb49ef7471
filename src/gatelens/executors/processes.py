"""Workers that are processes of this machine. A worker ends when its driver does, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import torch

from gatelens.errors import WorkerError
from gatelens.executors.pool import Heard


@dataclass(frozen=True, eq=False)
class Process:
    """A worker: its process, and what it is spoken to by.

    Attributes:
        place: its number among those that run, which decides its GPU.
        known: keys of shared functions it was sent, the latest.
    """

    process: subprocess.Popen[bytes]
    connection: Connection
    place: int
    known: list[int]


class Processes:
    """``size`` processes, each with its share of torch's threads and, where there are several, of the GPUs."""

    def __init__(self, size: int) -> None:
        if os.name != "posix":
            raise WorkerError(
                f"workers= needs Linux or macOS, and this is {sys.platform}: leave it out, or give ray="
            )
        self.size = size
        self._threads = max(1, torch.get_num_threads() // size)
        self._running: list[Process] = []

    def start(self) -> Process:
        ours, theirs = Pipe()
        taken = {worker.place for worker in self._running}
        place = next(i for i in range(self.size + 1) if i not in taken)
        module = "gatelens.executors.process_worker"
        with theirs:
            process = subprocess.Popen(
                # -P and PYTHONPATH: exactly the places this process imports from, a script's own folder too
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(self._threads)],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(os.path.abspath(one) for one in sys.path),
                    "OMP_NUM_THREADS": str(self._threads),
                    **gpu_of(place, torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")),
                },
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the driver's: it ends its workers
            )
        self._running.append(Process(process, ours, place, []))
        return self._running[-1]

    def begin(self, worker: Process, key: int, shared: bytes, own: bytes) -> None:
        new = key not in worker.known
        worker.known[:] = [key]
        with suppress(OSError):  # it has just ended, which is heard next
            worker.connection.send((key, shared if new else b"", own))

    def hear(self, workers: Sequence[Process]) -> list[Heard]:
        ready: list[Any] = wait([worker.connection for worker in workers])
        return [self._heard(worker) for worker in workers if worker.connection in ready]

    def _heard(self, worker: Process) -> Heard:
        try:
            return Heard(worker, worker.connection.recv_bytes())
        except (EOFError, OSError):
            code = worker.process.wait()
            return Heard(worker, None, f"signal {-code}" if code < 0 else f"exit code {code}")

    def stop(self, worker: Process) -> None:
        worker.process.kill()
        worker.process.wait()
        worker.connection.close()
        if worker in self._running:
            self._running.remove(worker)

    def close(self) -> None:
        for worker in list(self._running):
            self.stop(worker)


def gpu_of(place: int, n: int, visible: str | None) -> dict[str, str]:
    """The environment that shows a worker its GPU alone, where there are several: they go round."""
    if n < 2:
        return {}
    names = visible.split(",") if visible else [str(i) for i in range(n)]
    return {"CUDA_VISIBLE_DEVICES": names[place % n]}
