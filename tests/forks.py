"""Work in a fork of the test's process, which may be killed in the midst of it. A fork imports nothing anew."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch


def in_a_fork(work: Callable[[], Any], unit: tuple[Any, str], kill_at: int | None = None) -> int:
    """The exit status of a fork that does the work.

    Args:
        work: called without arguments.
        unit: a class and its method, called once for each unit of the work.
        kill_at: the fork is killed as its unit of this number begins, from 1. None leaves it alone.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent are not in the fork
        owner, name = unit
        plain, begun = getattr(owner, name), 0

        def counted(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal begun
            begun += 1
            if begun == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, *args, **options)

        setattr(owner, name, counted)
        work()
        status = 0
    finally:
        os._exit(status)
