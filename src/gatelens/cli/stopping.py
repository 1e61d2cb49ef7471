"""What a signal does to a command: it ends with one line and the exit code 128 + signal; a second one kills at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is unknown to Windows


@dataclass
class Stop:
    """The signal that came, if one did."""

    number: int | None = None

    @property
    def exit_code(self) -> int:
        """As a shell counts it: 130 for Ctrl-C, 143 for ``kill``, 129 for a closed terminal."""
        return 128 + (self.number or 0)


@contextmanager
def listening() -> Iterator[Stop]:
    """Within the block the first signal raises SystemExit, so that what is half done is taken back; from then on a
    signal has its own effect, also while the process is ending. A signal that is ignored, as under ``nohup``, stays so.
    """
    stop = Stop()
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}

    def end(number: int, frame: FrameType | None) -> None:
        stop.number = number
        for one in before:
            signal.signal(one, signal.SIG_DFL)
        raise SystemExit(stop.exit_code)

    for number in before:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        if stop.number is None:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def going_on(out: Path | None) -> Iterator[None]:
    """Whatever ends the block is noted to leave a run in ``out``, which the same command goes on with."""
    try:
        yield
    except BaseException as error:
        if out is None:
            error.add_note("nothing is kept without --out")
        else:
            error.add_note(f"the same command resumes in {out}")
        raise
