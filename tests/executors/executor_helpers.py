"""Units for tests of executors; importable in a worker."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from gatelens.errors import InterventionError
from gatelens.executors import Unit


def square(log: Path, number: int, then: str, done: Any) -> dict[str, pd.DataFrame]:
    """A number squared, in a table; who does it and how often is in files of the folder ``log``.

    ``then``: ``once-killed`` and ``once-failing`` at the first attempt, ``failing`` and ``killed`` always, ``refused``
    for an error that a user can fix, ``slow`` takes half a minute.
    """
    attempts = len(list(log.glob(f"{number}-*")))
    (log / f"{number}-{attempts}").write_text(str(os.getpid()))
    if then == "killed" or (then == "once-killed" and not attempts):
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "failing" or (then == "once-failing" and not attempts):
        raise RuntimeError(f"no square of {number}")
    if then == "refused":
        raise InterventionError("a row left with nothing")
    if then == "slow":
        time.sleep(30)
    done(1)
    return {"squares": pd.DataFrame({"number": [number], "square": [number**2]})}


def units_of(log: Path, then: dict[int, str] | None = None, n: int = 6) -> list[Unit]:
    """Squares of the first numbers; what ``then`` says befalls some."""
    log.mkdir(exist_ok=True)
    return [Unit(f"{i:02d}", 1, partial(square, log, i, (then or {}).get(i, ""))) for i in range(n)]


def attempts_of(log: Path) -> dict[int, int]:
    """How often each number was begun."""
    names = [int(file.name.split("-")[0]) for file in log.iterdir()]
    return {number: names.count(number) for number in sorted(set(names))}


def running(pid: int) -> bool:
    """Whether a process runs (one that has ended and waits for its parent does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: Any, seconds: float = 20.0) -> bool:
    """Whether all these processes end within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(running(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False
