"""Out of memory: the same work in halves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
Done = TypeVar("Done")


def halving(
    items: Sequence[T], work: Callable[[tuple[T, ...]], Done]
) -> Iterator[tuple[tuple[T, ...], Done]]:
    """(items, what ``work`` made of them), all at once or, when memory runs out, in smaller and smaller parts.

    The size that fitted is kept for the rest. Raises what ``work`` raises for a single item.
    """
    waiting, size = tuple(items), len(items)
    while waiting:
        some = waiting[:size]
        try:
            done = work(some)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if len(some) == 1 or not out_of_memory(error):
                raise
            size = (len(some) + 1) // 2
            warnings.warn(f"out of memory with {len(some)} at once: continuing with {size}", stacklevel=3)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        waiting = waiting[size:]
        yield some, done


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the GPU or in the CPU's allocator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "out of memory" in text or "DefaultCPUAllocator: can't allocate memory" in text
