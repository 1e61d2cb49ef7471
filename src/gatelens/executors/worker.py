"""What a worker does with a unit, in a process or on Ray: it holds models and functions, and gives a reply as bytes."""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from gatelens.errors import GatelensError
from gatelens.executors.sending import ModelSource, unpacked
from gatelens.hub_errors import one_line
from gatelens.model import HookedVLM
from gatelens.runs.manifest import versions

MODELS = 2  # held at once: a map's own, and the one its activations come from
# the first word of a reply: what follows are (tables, seconds), (error,), (line, traceback)
TABLES, ERROR, FAULT = "tables", "error", "fault"


class Worker:
    """Measures units with models that it loads once.

    Args:
        threads: of torch.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._models: list[tuple[ModelSource, HookedVLM]] = []
        self._function: tuple[int, Any] | None = None

    def ready(self) -> bytes:
        """The first reply: the versions of what would measure here."""
        return pickle.dumps(versions())

    def reply(self, key: int, shared: Callable[[], bytes], own: bytes) -> bytes:
        """Measure a unit.

        Args:
            key: tells one shared function from the next.
            shared: gives that function, asked for when the worker does not hold it.
            own: the unit's arguments.
        """
        try:
            return pickle.dumps((TABLES, *self._measured(key, shared, own)))
        except GatelensError as error:
            return pickle.dumps((ERROR, _sendable(error)))
        except Exception as error:  # of the unit's own code; the driver tries again and names the unit
            return pickle.dumps((FAULT, one_line(error), traceback.format_exc()))

    def _measured(self, key: int, shared: Callable[[], bytes], own: bytes) -> tuple[Any, float]:
        if self._function is None or self._function[0] != key:
            self._function = None  # what the last units held goes before the next is loaded
            self._function = (key, unpacked(shared(), self._model))
        arguments = unpacked(own, self._model)
        started = time.perf_counter()
        tables = self._function[1](*arguments, lambda steps: None)
        return dict(tables), time.perf_counter() - started

    def _model(self, source: ModelSource) -> HookedVLM:
        for known, model in self._models:
            if known == source:
                return model
        self._models = self._models[1 - MODELS :]
        self._models.append((source, source.load()))
        return self._models[-1][1]


def _sendable(error: GatelensError) -> GatelensError:
    """The error, or its words in one that can be pickled."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # an error class with arguments of its own
        return GatelensError(str(error))
