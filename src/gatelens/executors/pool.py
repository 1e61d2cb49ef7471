"""Units measured by workers: which worker has which unit, what is tried again, and what is given up."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from gatelens.errors import WorkerError
from gatelens.executors.sending import ModelSource, packed
from gatelens.executors.unit import Done, Fault, Measured, Unit, shared_and_own
from gatelens.executors.worker import ERROR, TABLES
from gatelens.model import HookedVLM
from gatelens.runs.manifest import versions

ATTEMPTS = 3  # of a unit
GIVEN_UP = 20  # units: as many more would end no better
STARTS = 5  # workers in a row that ended before they were ready


class Heard(NamedTuple):
    """What came of a worker: its reply (the first is of :meth:`Worker.ready`), or why it is lost."""

    worker: Any
    reply: bytes | None
    lost: str = ""


class Place(Protocol):
    """Where workers run. A worker is whatever ``start`` gives."""

    @property
    def size(self) -> int:
        """How many workers there may be now."""
        ...

    def start(self) -> Any:
        """Begin to start a worker. Raises WorkerError where none can be."""
        ...

    def begin(self, worker: Any, key: int, shared: bytes, own: bytes) -> None:
        """Have a worker measure a unit; see :meth:`gatelens.executors.worker.Worker.reply`."""
        ...

    def hear(self, workers: Sequence[Any]) -> list[Heard]:
        """Wait until something comes of one of these workers."""
        ...

    def stop(self, worker: Any) -> None:
        """End a worker, whatever it does."""
        ...

    def close(self) -> None:
        """Leave nothing running."""
        ...


class Attempt(NamedTuple):
    """A unit and which attempt at it this is, from 1."""

    unit: Unit
    number: int


class Pool:
    """An executor that gives each free worker of a place the next unit.

    A unit whose worker is lost or whose own code fails is tried again after the others. An error that a user can fix is
    raised as in this process: trying again would not help.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._starting: list[Any] = []
        self._idle: list[Any] = []
        self._busy: dict[Any, Attempt] = {}
        self._ended_early = 0  # workers in a row
        self._key = 0

    def run(self, units: Iterable[Unit], done: Done) -> Iterator[Measured | Fault]:
        """The outcomes of units; see :class:`gatelens.executors.unit.Executor`.

        Raises:
            GatelensError: of a unit.
            WorkerError: workers end before they are ready, or too many units are given up.
        """
        left, send, given_up = _Left(units), _Sender(self), 0
        try:
            while True:
                while self._idle and left.more():
                    worker, attempt = self._idle.pop(), left.take()
                    self._busy[worker] = attempt  # before it is sent, so that an error ends the worker too
                    send(worker, attempt.unit)
                if not self._busy and not left.more():
                    return
                self._start(left)
                for heard in self._place.hear([*self._busy, *self._starting]):
                    result = self._taken(heard)
                    if isinstance(result, Measured):
                        done(result.unit.steps)
                    elif isinstance(result, Fault):
                        given_up += result.final
                        if not result.final:
                            left.again(Attempt(result.unit, result.attempt + 1))
                    if result is not None:
                        yield result
                if given_up >= GIVEN_UP:
                    return
        finally:
            for worker in list(self._busy):  # cut short: their results are no longer needed
                del self._busy[worker]
                self._place.stop(worker)

    def close(self) -> None:
        """End all workers, whatever they do."""
        for worker in [*self._starting, *self._idle, *self._busy]:
            self._place.stop(worker)
        self._starting, self._idle, self._busy = [], [], {}
        self._place.close()

    def _start(self, left: _Left) -> None:
        """Start workers while there are units that none is free for."""
        wanted = left.at_most(self._place.size) - len(self._starting) - len(self._idle)
        room = self._place.size - len(self._starting) - len(self._idle) - len(self._busy)
        for _ in range(min(wanted, room)):
            self._starting.append(self._place.start())

    def _taken(self, heard: Heard) -> Measured | Fault | None:
        """What a worker's reply or loss means."""
        worker = heard.worker
        if heard.reply is None:
            return self._lost(worker, heard.lost)
        self._ended_early = 0
        if worker in self._starting:
            check_versions(pickle.loads(heard.reply))
            self._starting.remove(worker)
            self._idle.append(worker)
            return None
        self._idle.append(worker)
        unit, number = self._busy.pop(worker)
        word, *said = pickle.loads(heard.reply)
        if word == TABLES:
            return Measured(unit, *said)
        if word == ERROR:
            raise said[0]
        return Fault(unit, number, number >= ATTEMPTS, *said)

    def _lost(self, worker: Any, why: str) -> Fault | None:
        self._place.stop(worker)
        if worker in self._busy:
            unit, number = self._busy.pop(worker)
            return Fault(unit, number, number >= ATTEMPTS, f"its worker ended ({why})")
        self._starting.remove(worker)
        self._ended_early += 1
        if self._ended_early >= STARTS:
            raise WorkerError(f"workers end before they are ready ({why}): see their output above")
        return None


def check_versions(there: Mapping[str, str]) -> None:
    """Raise WorkerError where a worker would compute with something else than this process."""
    here = versions()
    other = [
        f"{name} {there.get(name)} there, {here[name]} here" for name in here if there.get(name) != here[name]
    ]
    if other:
        raise WorkerError(
            f"a worker has other versions: {'; '.join(other)}; install the same there, or start again if gatelens was "
            "changed meanwhile"
        )


class _Left:
    """The units that are left: those not tried yet in order, then those that are tried again."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self._new = iter(units)
        self._ahead: deque[Attempt] = deque()
        self._again: deque[Attempt] = deque()

    def at_most(self, n: int) -> int:
        """How many are left, counted to ``n``."""
        while len(self._ahead) + len(self._again) < n:
            unit = next(self._new, None)
            if unit is None:
                break
            self._ahead.append(Attempt(unit, 1))
        return min(n, len(self._ahead) + len(self._again))

    def more(self) -> bool:
        return self.at_most(1) > 0

    def take(self) -> Attempt:
        return (self._ahead or self._again).popleft()

    def again(self, attempt: Attempt) -> None:
        self._again.append(attempt)


class _Sender:
    """Gives units of one call to workers; what they share is packed once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._sources: dict[int, ModelSource] = {}  # rebuilt for each call, as weights may change in between
        self._function: Callable[..., Any] | None = None
        self._shared = b""

    def __call__(self, worker: Any, unit: Unit) -> None:
        function, own = shared_and_own(unit)
        if function != self._function:
            self._shared = packed(function, self._source)
            self._function = function
            self._pool._key += 1
        self._pool._place.begin(worker, self._pool._key, self._shared, packed(own, self._source))

    def _source(self, model: HookedVLM) -> ModelSource:
        if id(model) not in self._sources:
            self._sources[id(model)] = ModelSource.of(model)
        return self._sources[id(model)]
