"""What is written into the decoder of a declared plant: its heads and its neurons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gatelens.bench.circuits import (
    ANCHORED,
    ANSWER,
    GATHERED,
    HEARD,
    HELD,
    KIND_AT,
    NOISE,
    POINTS,
    SHOWN,
    WRITTEN,
    Route,
    moved,
)
from gatelens.bench.declared import Asked, Declared
from gatelens.bench.neurons import Product, Steps
from gatelens.bench.pictures import VALUES
from gatelens.bench.shells import D_MODEL, N_HEADS, N_LAYERS

_LAST = frozenset({"last a", "last b"})
_SOURCE = frozenset({"source"})
_HOLDS = 1.0  # what a gate that saturates writes for what it holds


@dataclass(frozen=True)
class Wiring:
    """What is written into a decoder: heads, and neurons that saturate or multiply."""

    routes: Sequence[Route]
    steps: Sequence[Steps] = ()
    products: Sequence[Product] = ()


def wiring_of(declared: Declared) -> Wiring:
    """What is written for a declared plant."""
    return Wiring(_routes(declared), _steps(declared), _products(declared))


def erased_by(route: Route) -> bool:
    """Whether a head takes away from the stream what it reads there."""
    return route.readers == route.keys


def _routes(declared: Declared) -> list[Route]:
    """The heads."""
    routes = list(_gathering(declared))
    for asked in declared.questions:
        routes += _reading(declared, asked, routes)
    sorts = set(declared.decoys.values())
    if "anchor" in sorts:
        value = moved([KIND_AT["anchor"]], [ANCHORED])
        routes.append(Route(declared.layers[-1], N_HEADS - 2, _LAST, frozenset({"anchor"}), value))
    if "decoy" in sorts:
        noise = range(NOISE.start, NOISE.start + 16)
        value = moved(noise, noise, 0.15)
        routes += [
            Route(layer, N_HEADS - 1, _LAST | {"other"}, frozenset({"decoy"}), value)
            for layer in range(N_LAYERS)
        ]
    return routes


def _steps(declared: Declared) -> list[Steps]:
    """The neurons that saturate, by layer."""
    last = frozenset({"last a"})
    if declared.kind == "saturated":
        gates = len(declared.questions[0].carriers)
        held = [(GATHERED.start + i, 1, HELD.start + i, _HOLDS) for i in range(VALUES)]
        said = [(HEARD.start + i, 1, ANSWER.start + i, WRITTEN) for i in range(VALUES)]
        return [
            Steps(declared.layers[0], frozenset({"gate 1"}), held, 0.5, 0.2),
            Steps(declared.layers[1], last, said, 0.5 / gates, 0.5),  # one gate of all is enough
        ]
    if declared.kind == "lookup":
        points = [(HEARD.start, sign, POINTS, float(sign)) for sign in (1, -1)]
        return [Steps(declared.layers[1], last, points, 0.4, 0.4)]
    return []


def _products(declared: Declared) -> list[Product]:
    """The neurons that multiply."""
    if declared.kind != "xor":
        return []
    return [Product(declared.layers[-1], (HEARD.start, HEARD.start + 1), ANSWER.start, WRITTEN)]


def _gathering(declared: Declared) -> Iterator[Route]:
    """What happens before the answering position reads."""
    kind, first = declared.kind, declared.layers[0]
    gates = {one for asked in declared.questions for one in asked.carriers.values() if one != "vote"}
    value = moved(_all(SHOWN), _all(GATHERED))
    apart = {"hops": gates, "lookup": {"gate 3"}, "layered": {"gate 2"}}.get(kind, set())
    gatherers = gates - apart | set(declared.decoys.values()) & {"bystander", "relay"}
    if gatherers:
        yield Route(first, 0, frozenset(gatherers), _SOURCE, value)
    if kind == "hops":
        passed = moved(_all(GATHERED), _all(GATHERED), 1.0)
        yield Route(declared.layers[1], 0, frozenset(gates), frozenset({"relay"}), passed)
    elif kind == "lookup":  # the third gate holds two more than the second
        turned = [GATHERED.start + (vote + 2) % VALUES for vote in range(VALUES)]
        yield Route(first, 1, frozenset({"gate 3"}), _SOURCE, moved(_all(SHOWN)[:VALUES], turned))
    elif kind == "layered":
        early = frozenset({"gate 1"})
        yield Route(declared.layers[1], 0, frozenset({"gate 2"}), _SOURCE, value)
        yield Route(declared.layers[1], 1, early, early, moved(_all(GATHERED), _all(GATHERED), -1.0))


def _reading(declared: Declared, asked: Asked, before: Sequence[Route]) -> Iterator[Route]:
    """What the last position reads for a question."""
    kind, reader, reads = declared.kind, frozenset({asked.last}), declared.layers[-1]
    kinds = frozenset(asked.carriers.values())
    start = 0 if asked.last == "last a" else VALUES
    shown, gathered, answer = (
        range(part.start + start, part.start + start + VALUES) for part in (SHOWN, GATHERED, ANSWER)
    )
    head = sum(route.layer == reads for route in before)
    if kind == "open":
        yield Route(reads, head, reader, _SOURCE, moved(shown, answer))
    elif kind == "votes":
        yield Route(reads, head, reader, kinds, moved(shown, answer))
    elif kind in ("bits", "layered"):
        for j, gate in enumerate(asked.carriers.values() if kind == "bits" else ("gate 1", "gate 2")):
            layer = declared.layers[1] if kind == "layered" and gate == "gate 1" else reads
            place = head + j if layer == reads else 2  # after what the layer in between does
            yield Route(layer, place, reader, frozenset({gate}), _bit(asked.asks[j], ANSWER.start + j))
    elif kind == "saturated":
        yield Route(reads, head, reader, kinds, moved(_all(HELD)[:VALUES], _all(HEARD)))
    elif kind == "xor":
        for j, bit in enumerate(("a0", "b0")):
            yield Route(
                reads, head + j, reader, frozenset({f"gate {j + 1}"}), _bit(bit, HEARD.start + j, 2.0)
            )
    elif kind == "lookup":
        pointer = _bit("b0", HEARD.start)
        yield Route(declared.layers[1], 0, reader, frozenset({"gate 1"}), pointer)
        two = {"gate 2": -1, "gate 3": 1}
        yield Route(reads, head, reader, frozenset(two), moved(gathered, answer), two)
    elif kind in ("backup", "joint"):
        votes = (shown, answer) if kind == "backup" else (_all(SHOWN)[VALUES:], _all(ANSWER)[VALUES:])
        yield Route(reads, head, reader, frozenset({"gate 1"}), moved(gathered, answer))
        yield Route(reads, head + 1, reader, frozenset({"vote"}), moved(*votes))
    elif kinds:
        yield Route(reads, head, reader, kinds, moved(gathered, answer))


def _bit(bit: str, target: int, size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The value of a route that reads one bit of what was gathered: 1 or -1, times what votes for it."""
    read, written = torch.zeros(D_MODEL, 1), torch.zeros(D_MODEL, 1)
    first = GATHERED.start + "ab".index(bit[0]) * VALUES
    for value in range(VALUES):
        read[first + value, 0] = 1.0 if value >> int(bit[1]) & 1 else -1.0
    written[target, 0] = size * WRITTEN
    return read, written


def _all(part: slice) -> range:
    return range(part.start, part.stop)
