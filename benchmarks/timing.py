"""Times and what surrounds them: pairs are measured in turn in one process, so that both meet the same machine."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of several repeats of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "median_s": self.median,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "repeats": len(self.seconds),
            "seconds": [round(s, 6) for s in self.seconds],
        }


def in_turn(
    works: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1, inner: int = 1
) -> dict[str, Times]:
    """Time each of the works, one after the other, ``repeats`` times over.

    ``inner``: how often a work is done for one number, for works of a few milliseconds. ``warm_up`` rounds are
    not counted. The order turns round from repeat to repeat: what comes after a heavy work meets a warm cache.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(warm_up):
        for work in works.values():
            work()
    for turn in range(repeats):
        names = list(works)[:: 1 if turn % 2 == 0 else -1]
        for name in names:
            gc.collect()
            synchronise()
            start = time.perf_counter()
            for _ in range(inner):
                works[name]()
            synchronise()
            found[name].append((time.perf_counter() - start) / inner)
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}


def ratio(above: Times, below: Times) -> float:
    """Of the medians."""
    return above.median / below.median


def pair_ratios(above: Times, below: Times) -> list[float]:
    """Repeat by repeat: how far the ratio of the medians can be trusted."""
    return [a / b for a, b in zip(above.seconds, below.seconds, strict=True)]


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def use_all_cores() -> None:
    """As many threads as cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import transformer_lens
    import transformers

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "transformer_lens": getattr(transformer_lens, "__version__", None) or _version("transformer-lens"),
        "gatelens": _version("gatelens"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
