"""Where ``find_gate`` errs: plants of another build than GateBench's, each kind at an edge of what it can tell.

    python -m benchmarks.finder_limits --split heldout --plants 10 [--out runs/limits] [--workers 2]

Each plant is checked by passes of plain transformers: only the declared positions are read, and each of them moves the
answer. A plant of which this does not hold is drawn again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gatelens.bench import METHODS, BenchResult, score
from gatelens.bench.checks import SPLITS, Refused
from gatelens.bench.circuits import ANSWER, GATHERED, HEARD, HELD, NOISE, POINTS, SHOWN, WRITTEN, Route, moved
from gatelens.bench.declared import FIRST_GATE, N_WORDS, Asked, Declared, Slot
from gatelens.bench.neurons import Product, Steps
from gatelens.bench.pictures import N_PATCHES, VALUES
from gatelens.bench.plants import Plant, make
from gatelens.bench.shells import D_MODEL, NAMES, WORDS
from gatelens.bench.wiring import Wiring

TRIES = 20
LEAST, STAYS, MOVES = 0.4, 0.95, 0.02  # accuracy; answers that stay; nats that each position moves on average
LAST, SOURCE = frozenset({"last a"}), frozenset({"source"})
A = slice(0, VALUES)  # of what is shown and gathered, the part of the attribute asked for


@dataclass(frozen=True)
class Built:
    """A plant as it is built: the kind of each slot that has one, what is written, how often a patch votes right."""

    carriers: dict[Slot, str]
    wiring: Wiring
    decoys: dict[Slot, str]
    right: float = 0.85
    every_patch: bool = False  # all unmarked image tokens are read too


def weak_route(share: float, rng: np.random.Generator) -> Built:
    """Two gates hold the same; the second brings this share of the first one's log-odds."""
    one, other = _slots(rng, 2)
    routes = [
        _gathers("gate 1", "gate 2"),
        Route(3, 0, LAST, frozenset({"gate 1"}), _moved(GATHERED, ANSWER)),
        Route(3, 1, LAST, frozenset({"gate 2"}), _moved(GATHERED, ANSWER, share)),
    ]
    return Built({one: "gate 1", other: "gate 2"}, Wiring(routes), {})


def gate_and_picture(share: float, rng: np.random.Generator) -> Built:
    """A gate brings this share of the log-odds, and all image tokens the rest, a small part each."""
    (one,) = _slots(rng, 1, picture=False)
    routes = [
        _gathers("gate 1"),
        Route(3, 0, LAST, frozenset({"gate 1"}), _moved(GATHERED, ANSWER, 2 * share)),
        # what is gathered is half of what is shown
        Route(3, 1, LAST, SOURCE, _moved(SHOWN, ANSWER, 1 - share)),
    ]
    return Built({one: "gate 1"}, Wiring(routes), {}, every_patch=True)


def thin_votes(n: int, rng: np.random.Generator) -> Built:
    """Image tokens are read directly, and vote right in half of the cases."""
    chosen = rng.permutation(N_PATCHES)[:n]
    route = Route(3, 0, LAST, frozenset({"vote"}), _moved(SHOWN, ANSWER))
    return Built({Slot(True, int(i)): "vote" for i in chosen}, Wiring([route]), {}, right=0.5)


def some_of(n: int, rng: np.random.Generator) -> Built:
    """Of ``n`` words more than half are enough, and fewer say nothing: neurons make a step of what they hold."""
    held = [(GATHERED.start + i, 1, HELD.start + i, 1.0) for i in range(VALUES)]
    said = [(HEARD.start + i, 1, ANSWER.start + i, WRITTEN) for i in range(VALUES)]
    steps = [Steps(0, frozenset({"gate 1"}), held, 0.5, 0.2), Steps(3, LAST, said, 0.5, 0.5 / n)]
    read = Route(3, 0, LAST, frozenset({"gate 1"}), _moved(HELD, HEARD))
    carriers = dict.fromkeys(_slots(rng, n, picture=False), "gate 1")
    return Built(carriers, Wiring([_gathers("gate 1"), read], steps), {})


def noisy_gate(noise: float, rng: np.random.Generator) -> Built:
    """One gate, read together with the noise of its stream; others gather the same and are not read."""
    slots = _slots(rng, 4)
    read, written = _moved(GATHERED, ANSWER)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    width = NOISE.stop - NOISE.start
    read[NOISE] = noise * torch.randn(width, read.shape[1], generator=generator) / width**0.5
    routes = [_gathers("gate 1", "bystander"), Route(3, 0, LAST, frozenset({"gate 1"}), (read, written))]
    return Built({slots[0]: "gate 1"}, Wiring(routes), dict.fromkeys(slots[1:], "bystander"))


def late_copy(rng: np.random.Generator) -> Built:
    """A gate is read in the second layer; then another position copies it, and is not read."""
    one, other = _slots(rng, 2)
    routes = [
        _gathers("gate 1"),
        Route(1, 0, LAST, frozenset({"gate 1"}), _moved(GATHERED, ANSWER)),
        Route(2, 0, frozenset({"relay"}), frozenset({"gate 1"}), moved(_all(GATHERED), _all(GATHERED), 1.0)),
    ]
    return Built({one: "gate 1"}, Wiring(routes), {other: "relay"})


def one_each(rng: np.random.Generator) -> Built:
    """Of four positions each tells one class from all others."""
    kinds = [f"gate {i + 1}" for i in range(VALUES)]
    reads = [
        Route(3, i, LAST, frozenset({kind}), moved([GATHERED.start + i], [ANSWER.start + i]))
        for i, kind in enumerate(kinds)
    ]
    carriers = dict(zip(_slots(rng, VALUES), kinds, strict=True))
    return Built(carriers, Wiring([_gathers(*kinds), *reads]), {})


def switch(size: float, rng: np.random.Generator) -> Built:
    """A gate says which class, and a bit of an image token, independent of the class, scales that up or down."""
    (one,) = _slots(rng, 1, picture=False)
    bit, written = torch.zeros(D_MODEL, 1), torch.zeros(D_MODEL, 1)
    bit[[SHOWN.start + VALUES + value for value in range(VALUES)], 0] = torch.tensor([1.0, -1.0] * 2)
    written[POINTS, 0] = WRITTEN
    routes = [
        _gathers("gate 1"),
        Route(2, 0, LAST, frozenset({"gate 1"}), _moved(GATHERED, HEARD)),
        Route(2, 1, LAST, frozenset({"vote"}), (bit, written)),
        Route(2, 2, LAST, frozenset({"gate 1"}), _moved(GATHERED, ANSWER, 0.6)),
    ]
    products = [Product(2, (HEARD.start + i, POINTS), ANSWER.start + i, size) for i in range(VALUES)]
    token = Slot(True, int(rng.integers(N_PATCHES)))
    return Built({one: "gate 1", token: "vote"}, Wiring(routes, products=products), {}, right=0.97)


KINDS: dict[str, Callable[[np.random.Generator], Built]] = {
    **{f"second route, {s:.0%} of the first": partial(weak_route, s) for s in (0.05, 0.1, 0.2, 0.3)},
    **{f"gate {s:.0%}, the rest all image tokens": partial(gate_and_picture, s) for s in (0.5, 0.8)},
    **{f"{n} image tokens, half vote right": partial(thin_votes, n) for n in (9, 17)},
    **{f"{n // 2 + 1} of {n} words are enough": partial(some_of, n) for n in (5, 9)},
    **{f"a gate with noise {s:g}": partial(noisy_gate, s) for s in (0.5, 1.5, 4)},
    "a gate, copied after it is read": late_copy,
    "a position for each class": one_each,
    "an image token says how strongly": partial(switch, 0.1),
    "an image token turns the answer round": partial(switch, 0.5),
}


def limit(kind: str, split: str, number: int) -> Plant:
    """A plant of a kind, its truth measured.

    Raises:
        Refused: none of several plants does what was declared.
    """
    for attempt in range(TRIES):
        rng = np.random.default_rng([SPLITS[split], 23, list(KINDS).index(kind), number, attempt])
        built = KINDS[kind](rng)
        words = tuple(str(word) for word in rng.permutation(WORDS)[:N_WORDS])
        names = tuple(str(name) for name in rng.permutation(NAMES)[:VALUES])
        asked = Asked(("a",), names, "last a", built.carriers)
        layers = (0, max(route.layer for route in built.wiring.routes))
        declared = Declared(kind, "llava", words, (asked,), built.decoys, layers, built.right, "")
        plant = make(declared, f"{split} {number} {kind}", int(rng.integers(2**31)), 64, built.wiring)
        if built.every_patch:
            (question,) = plant.questions
            tokens = {p for p in question.candidates[:N_PATCHES] if p not in question.carriers}
            plant = replace(
                plant, questions=(replace(question, carriers=tuple(sorted({*question.carriers, *tokens}))),)
            )
        if holds(plant):
            return plant
    raise Refused(f"{kind!r}, number {number} of {split}: none of {TRIES} plants does what was declared")


def holds(plant: Plant) -> bool:
    """Whether the carriers are read and nothing else, by plain passes.

    Answers must stay where all other streams come from another picture, and each carrier must move the log-odds beside
    all other carriers or beside a random half of them.
    """
    (question,) = plant.questions
    runs, examples = plant.plain(question), question.data.examples()
    rows = torch.arange(len(examples))
    labels = torch.tensor([plant.shell.words[str(e.label)] for e in examples])
    rng = np.random.default_rng(5)
    partner = torch.tensor([int(rng.choice(np.flatnonzero((labels != one).numpy()))) for one in labels])
    carriers = set(question.carriers)

    def kept(own: set[int]) -> Tensor:
        """Logits with the streams of all other candidates another picture's."""
        return runs.resampled(set(question.candidates) - own, partner, own=own)

    def odds(own: set[int]) -> Tensor:
        logits = kept(own)
        return logits[rows, labels] - logits[rows, labels[partner]]

    def moves(carrier: int) -> bool:
        others = carriers - {carrier}
        halves = [set(rng.permutation(sorted(others))[: len(others) // 2].tolist()) for _ in range(4)]
        changes = (odds(some | {carrier}) - odds(some) for some in (others, *halves))
        return any(float(change.abs().mean()) > MOVES for change in changes)

    said = runs.logits().argmax(-1)
    right, stays = (float((said == one).float().mean()) for one in (labels, kept(carriers).argmax(-1)))
    return right > LEAST and stays > STAYS and all(map(moves, question.carriers))


def table(result: BenchResult) -> pd.DataFrame:
    """One row a kind: what is there and what is found, means over plants."""
    found = result.found[["plant", "positions", "low", "high"]].assign(found=result.found.positions.map(len))
    cases = result.cases.assign(found=found.found, least=found.low, most=found.high)
    kinds = cases.kind
    columns = ["size", "found", "least", "most", "f1", "exact", "covered", "precision"]
    return cases.groupby(kinds, sort=False)[columns].mean().round(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=list(SPLITS), default="dev")
    parser.add_argument("--plants", type=int, default=3, help="of each kind")
    parser.add_argument("--kind", help="only kinds whose name has this in it")
    parser.add_argument("--out")
    parser.add_argument("--workers", type=int)
    asked = parser.parse_args()
    kinds = [kind for kind in KINDS if (asked.kind or "") in kind]
    makes = {
        f"{list(KINDS).index(kind):02d}-{number:03d}": partial(limit, kind, asked.split, number)
        for number in range(asked.plants)
        for kind in kinds
    }
    result = score(METHODS["find_gate"], makes, out=asked.out, workers=asked.workers)
    shown = table(result).reindex(kinds)
    head = f"{asked.plants} plants of {asked.split} a kind; sizes, and the interval from least to most"
    print(f"{head}\n\n{shown.to_string()}")


def _slots(rng: np.random.Generator, n: int, picture: bool = True) -> list[Slot]:
    """Different places: words, or also patches that come after enough others to gather from."""
    patches = [Slot(True, i) for i in range(FIRST_GATE, N_PATCHES)] if picture else []
    places = patches + [Slot(False, i) for i in range(N_WORDS)]
    return [places[i] for i in rng.permutation(len(places))[:n]]


def _gathers(*kinds: str) -> Route:
    return Route(0, 0, frozenset(kinds), SOURCE, moved(_all(SHOWN), _all(GATHERED)))


def _moved(source: slice, target: slice, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """The value of a route that copies what is held of the attribute asked for."""
    return moved(_all(source)[A], _all(target)[A], size * WRITTEN)


def _all(part: slice) -> range:
    return range(part.start, part.stop)


if __name__ == "__main__":
    main()
