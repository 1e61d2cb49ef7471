"""Workers that are actors on a Ray cluster, one model each; lost ones are replaced where the cluster has room."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gatelens.errors import WorkerError
from gatelens.executors.pool import Heard
from gatelens.executors.worker import Worker
from gatelens.hub_errors import one_line

# HTTP/2, which gRPC speaks, begins with this line and a frame of settings, and is answered by such a frame
SETTINGS = b"\x04"
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5)


@dataclass(eq=False)
class Actor:
    """A worker: the actor, and what it is asked for."""

    handle: Any
    pending: Any


class RayWorker:
    """What runs in an actor."""

    def __init__(self, threads: int) -> None:
        self._worker = Worker(threads)

    def ready(self) -> bytes:
        """See :meth:`gatelens.executors.worker.Worker.ready`."""
        return self._worker.ready()

    def reply(self, key: int, shared: list[Any], own: bytes) -> bytes:
        """See :meth:`gatelens.executors.worker.Worker.reply`; ``shared`` holds a reference, which Ray leaves alone."""
        import ray

        return self._worker.reply(key, lambda: ray.get(shared[0]), own)


class OnRay:
    """Actors on a cluster: with a GPU each where it has any, else with a CPU.

    Args:
        address: of the cluster, or "auto": the one this machine belongs to. A session that is connected stays so.
        size: actors at most; None: as many as the cluster has room for, also when nodes join.
    """

    def __init__(self, address: str, size: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise WorkerError("ray= needs Ray: pip install 'gatelens[ray]'") from error
        self._ray, self._size = ray, size
        self._shared: tuple[int, Any] = (-1, None)
        self._actors: list[Actor] = []
        self._connected = not ray.is_initialized()
        if self._connected:
            self._connect(address)
        else:
            _check_session(address, ray.get_runtime_context().gcs_address)
        resources = ray.cluster_resources()
        self._needs = {"num_cpus": 1, "num_gpus": int(resources.get("GPU", 0) >= 1)}
        if not self.size:
            self.close()
            raise WorkerError(
                f"the Ray cluster at {address!r} has no CPU or GPU for a worker: start nodes with some"
            )

    def _connect(self, address: str) -> None:
        try:
            _reach(address)
            with _own_signals():
                self._ray.init(
                    address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False
                )
        except Exception as error:  # Ray raises many kinds
            raise WorkerError(
                f"cannot connect to a Ray cluster at {address!r} ({one_line(error)}): start one with ray start --head, "
                "of the same Ray and Python, and give its address as HOST:PORT, or 'auto' on its own machines"
            ) from error

    @property
    def size(self) -> int:
        resources = self._ray.cluster_resources()
        room = int(resources.get("GPU" if self._needs["num_gpus"] else "CPU", 0))
        return room if self._size is None else min(self._size, room)

    def start(self) -> Actor:
        made = self._ray.remote(max_restarts=0, **self._needs)(RayWorker)
        handle = made.remote(self._needs["num_cpus"])
        self._actors.append(Actor(handle, handle.ready.remote()))
        return self._actors[-1]

    def begin(self, worker: Actor, key: int, shared: bytes, own: bytes) -> None:
        if self._shared[0] != key:
            self._shared = (key, self._ray.put(shared))
        worker.pending = worker.handle.reply.remote(key, [self._shared[1]], own)

    def hear(self, workers: Sequence[Actor]) -> list[Heard]:
        pending = [worker.pending for worker in workers]
        self._ray.wait(pending, num_returns=1)
        ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        return [self._heard(worker) for worker in workers if worker.pending in ready]

    def _heard(self, worker: Actor) -> Heard:
        try:
            return Heard(worker, self._ray.get(worker.pending))
        except Exception as error:  # the actor or its node is lost, or it could not be made there
            return Heard(worker, None, one_line(error))

    def stop(self, worker: Actor) -> None:
        if worker in self._actors:
            self._actors.remove(worker)
            self._ray.kill(worker.handle)

    def close(self) -> None:
        for worker in list(self._actors):
            self.stop(worker)
        if self._connected:
            self._ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT, or what does speaks no gRPC; Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    with socket.create_connection((host, int(port)), timeout=10) as there:
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            there.sendall(GREETING)
            if there.recv(9, socket.MSG_WAITALL)[3:4] != SETTINGS:
                raise OSError("what listens there is not Ray")


def _check_session(address: str, connected: str) -> None:
    """Raise WorkerError where the session is on another cluster. Ports tell: a host has many names."""
    port = address.rpartition(":")[2]
    if port.isdigit() and "/" not in address and port != connected.rpartition(":")[2]:
        raise WorkerError(
            f"this process is connected to the Ray cluster at {connected}, not to {address!r}: give ray='auto' to use "
            "it, or end it with ray.shutdown()"
        )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Handlers of signals stay those of this program, where Ray would put its own."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if os.name == "posix"]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
