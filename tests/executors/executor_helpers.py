"""Units for tests of executors; importable in a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from gatelens.errors import InterventionError
from gatelens.executors import Unit


def square(log: Path, number: int, then: str, done: Any) -> dict[str, pd.DataFrame]:
    """A number squared, in a table; who does it and how often is in files of the folder ``log``.

    ``then``: ``once-killed`` and ``once-failing`` at the first attempt, ``failing`` and ``killed`` always, ``refused``
    for an error that a user can fix, ``slow`` takes half a minute, ``short`` a moment; ``held`` at the first attempt
    until there is a file ``go``, a minute at most.
    """
    attempts = len(list(log.glob(f"{number}-*")))
    while True:
        try:
            with open(log / f"{number}-{attempts}", "x") as file:
                file.write(str(os.getpid()))
            break
        except FileExistsError:  # another process has begun it at the same moment
            attempts += 1
    if then == "killed" or (then == "once-killed" and not attempts):
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "failing" or (then == "once-failing" and not attempts):
        raise RuntimeError(f"no square of {number}")
    if then == "refused":
        raise InterventionError("a row left with nothing")
    for _ in range(1200 if then == "held" and not attempts else 0):
        if not (log / "go").exists():
            time.sleep(0.05)
    if then in ("slow", "short"):
        time.sleep(30 if then == "slow" else 0.02)
    done(1)
    return {"squares": pd.DataFrame({"number": [number], "square": [number**2]})}


def units_of(log: Path, then: dict[int, str] | None = None, n: int = 6) -> list[Unit]:
    """Squares of the first numbers; what ``then`` says befalls some."""
    log.mkdir(exist_ok=True)
    return [Unit(f"{i:02d}", 1, partial(square, log, i, (then or {}).get(i, ""))) for i in range(n)]


def attempts_of(log: Path) -> dict[int, int]:
    """How often each number was begun."""
    names = [int(file.name.split("-")[0]) for file in log.glob("*-*")]
    return {number: names.count(number) for number in sorted(set(names))}


DRIVER = """
from pathlib import Path
from executor_helpers import units_of
from gatelens.executors import executing
from gatelens.runs import Run
from gatelens.units import measured
folder = Path({folder!r})
run = Run.open(folder / "run", study="toy", settings={{}})
with executing({where}) as executor:
    measured(run, "s", units_of(folder / "log", {then}), False, executor=executor)
"""


def driver(folder: Path, where: str, then: dict[int, str]) -> subprocess.Popen[bytes]:
    """A process that has the first six numbers squared by the workers of ``executing(WHERE)``."""
    program = DRIVER.format(folder=str(folder), where=where, then=then)
    path = os.pathsep.join(os.path.abspath(one) for one in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )


def begun(log: Path, numbers: Iterable[int]) -> dict[int, int]:
    """Waits until all these numbers are being squared: the process that does it, by number."""
    files = {number: log / f"{number}-0" for number in numbers}
    for _ in range(2400):
        if all(file.exists() and file.read_text() for file in files.values()):
            return {number: int(file.read_text()) for number, file in files.items()}
        time.sleep(0.05)
    raise AssertionError(f"not all of {sorted(files)} were begun")


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
