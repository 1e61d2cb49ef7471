"""Where units of work are measured: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gatelens.errors import InputError, shown, whole_number
from gatelens.executors.in_process import InProcess
from gatelens.executors.on_ray import OnRay
from gatelens.executors.pool import Pool
from gatelens.executors.processes import Processes
from gatelens.executors.unit import Done, Executor, Fault, Measured, Tables, Unit

__all__ = [
    "Done",
    "Executor",
    "Fault",
    "InProcess",
    "Measured",
    "OnRay",
    "Pool",
    "Processes",
    "Tables",
    "Unit",
    "executing",
]


@contextmanager
def executing(workers: int | None = None, ray: str | None = None) -> Iterator[Executor]:
    """The executor that ``workers=`` and ``ray=`` name; its workers end with the block.

    Args:
        workers: processes of this machine, each with its share of torch's threads; on Ray, actors (None: one a GPU for
            a model on CUDA, else one a CPU). None without Ray is this process.
        ray: address of a running cluster, or "auto".

    Raises:
        InputError: no whole number of workers.
        WorkerError: no such cluster, or Ray is not installed.
    """
    number = None if workers is None else whole_number(workers)
    if workers is not None and (number is None or number < 1):
        raise InputError(f"workers={shown(workers)}: give a whole number, 1 or more")
    if ray is None and number is None:
        yield InProcess()
        return
    pool = Pool(Processes(number or 1) if ray is None else OnRay(ray, number))
    try:
        yield pool
    finally:
        pool.close()
