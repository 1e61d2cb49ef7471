"""The first import of torch, transformers and TransformerLens: a line on what takes so long, and no garbage
collection meanwhile."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LINE = "gatelens: importing torch, transformers and TransformerLens; this takes some seconds once"
_AFTER = 1.0  # seconds


@contextmanager
def loading_libraries(quiet: bool = False) -> Iterator[None]:
    """Wraps the imports that load TransformerLens; does nothing once it is loaded.

    Whoever waits at a terminal or in a notebook is told so on stderr after a second, unless ``quiet``; a log or a
    pipe gets no line. The libraries create some million objects and free almost none, and Python's garbage
    collector walks through them again and again: without it the imports take a fifth less time.
    """
    if "transformer_lens" in sys.modules:
        yield
        return
    collected = gc.isenabled()
    timer = threading.Timer(_AFTER, print, [_LINE], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if not quiet and _watched():
        timer.start()
    gc.disable()
    try:
        yield
    finally:
        timer.cancel()
        if collected:
            gc.enable()


def _watched() -> bool:
    if hasattr(sys, "ps1") or "ipykernel" in sys.modules:
        return True
    return sys.stderr is not None and sys.stderr.isatty()
