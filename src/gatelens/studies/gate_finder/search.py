"""The search for a gate, a section of two studies: blocks before single positions, then sets.

The section proceeds in rounds: where the input varies; the unmodified model, and what blocks of the picture add; single
positions of the blocks that matter; the sets that the strongest of them make; the share that sets of growing size
carry; and the chosen set layer by layer. :func:`gatelens.studies.find_gate` says what each step is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from gatelens.examples import consecutive
from gatelens.measures.overlap import overlap_by_chance
from gatelens.model import HookedVLM
from gatelens.plots.card import Card
from gatelens.runs import Run
from gatelens.studies.gate_finder import measurements, spliced
from gatelens.studies.gate_finder.cards import search_cards
from gatelens.studies.gate_finder.carriers import PART, SCREEN, n_orders
from gatelens.studies.gate_finder.measurements import CACHE, PlacedPrompts
from gatelens.studies.gate_finder.result import BY_EXAMPLE, SearchResult
from gatelens.studies.gate_finder.sets import SearchState
from gatelens.studies.gate_finder.verdict import gate_verdict
from gatelens.studies.options import MOST, AtLeastOne, Count, CountsExamples, Examples, How, Options, Says
from gatelens.studies.section import Batch, Measured, Section, Setup, Tables

NAME = "finder"
OVERLAP_LAYERS = 8  # at which the overlap is measured, at most


class FinderOptions(Options):
    """How finely the positions are searched."""

    n: Annotated[
        int | None,
        Field(ge=0, le=MOST, description="Examples of the task class. Default: all that are drawn."),
        Says("a whole number, 0 or more"),
        CountsExamples(),
    ] = None
    n_pairs: Annotated[Examples, Field(description="Pairs of examples for patching by layer.")] = 48
    refine: Annotated[Count, Field(description="Blocks of the picture to split, at most.")] = 16
    block: Annotated[
        AtLeastOne | None,
        Field(description="Positions in a block. Default: the square root of the picture's."),
    ] = None
    narrow: Annotated[AtLeastOne, Field(description="Positions of a narrow gate, at most.")] = 4
    k: Annotated[
        AtLeastOne | None,
        Field(description="Neighbours of the overlap. Default: 30, or one less than a class has."),
    ] = None


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """All rounds that can be planned from what is measured.

    Raises:
        Absent: the data or the model's answers cannot be searched.
    """
    state = SearchState(NAME, setup, measured)
    work: list[Batch] = []
    for plan in (varying_inputs, first_look, single_places, small_sets, growing_sets, chosen_set):
        if all(batch.name in measured for batch in work):
            work += plan(state)
    return work


def measure(model: HookedVLM, batch: Any) -> Tables:
    """The tables of one batch, each of its own kind (:mod:`gatelens.studies.gate_finder.measurements`)."""
    return batch.measure(model)


# -- the rounds


def varying_inputs(state: SearchState) -> Iterator[Batch]:
    """Where the input varies."""
    reference = state.examples[state.halves[0][0]]
    for i, numbers in _parts(state):
        examples = [state.examples[n] for n in numbers]
        yield measurements.VaryingInputs(f"inputs-{i:02d}", numbers, examples, reference if i else None)


def first_look(state: SearchState) -> Iterator[Batch]:
    """The unmodified model, the whole picture cut, and what blocks of it and the words after it add."""
    setup, n_places = state.setup, len(state.layout.places)
    yield from _cut(state, "clean", state.hows[0], [()])
    for how in state.hows:
        yield from _cut(state, f"floor-{how}", how, [state.layout.picture])
    yield from _asked(state, "blocks", state.blocks_and_words, range(len(state.blocks_and_words)), SCREEN)
    for i, numbers in _parts(state):
        yield measurements.AttentionReceived(f"attention-{i:02d}", **_placed(state, numbers))
    steps = np.linspace(0, setup.n_layers - 1, min(setup.n_layers, OVERLAP_LAYERS))
    layers = sorted({round(x) for x in steps})
    placed = [PlacedPrompts(f"{i:02d}", **_placed(state, numbers)) for i, numbers in _parts(state)]
    group = max(1, CACHE // (len(state.examples) * n_places * int(setup.model.cfg.d_model)))
    for _, _, some in consecutive(layers, group):
        yield measurements.ClassOverlap(f"overlap-{some[0]:03d}", placed, tuple(some), state.k)


def single_places(state: SearchState) -> Iterator[Batch]:
    """Places of the blocks that matter, and all after the picture, one by one."""
    if state.singles:
        for how in state.hows:
            yield from _cut(state, f"singles-{how}", how, state.singles)
        yield from _spliced(state, "singles", [(), *state.singles])
        players, some = state.single_players
        yield from _asked(state, "again", players, some, n_orders(some), again=True)


def small_sets(state: SearchState) -> Iterator[Batch]:
    """All sets of the strongest places, on one half of the examples."""
    if state.small_sets:
        yield from _spliced(state, "small", [(), *state.small_sets], half=0)


def growing_sets(state: SearchState) -> Iterator[Batch]:
    """What sets of growing size carry, and leave when they are cut, on the other half of the examples."""
    yield from _spliced(state, "path", [(), *state.growing], half=1)
    for how in state.hows:
        yield from _cut(state, f"path-{how}", how, state.growing, half=1)


def chosen_set(state: SearchState) -> Iterator[Batch]:
    """The chosen set patched in all layers together and in each, and what passes around it when it alone reads on."""
    layers = [None, *range(state.setup.n_layers)]
    few = [n for n in range(len(state.examples)) if n in state.partners][: state.options.n_pairs]
    for i, numbers in _parts(state):
        held = _paired(state, [number for number in numbers if number in few])
        if held["numbers"]:
            del held["source_labels"]
            yield measurements.PatchedAnswers(
                f"layers-patched-{i:02d}",
                **held,
                sets=[state.chosen] * len(layers),
                layers=layers,
                units=len(layers),
            )
    others = [p for p in state.layout.picture if p not in state.chosen]
    how = state.hows[0]
    yield from _cut(state, f"around-{how}", how, [others], spare=tuple(state.chosen))


def _parts(state: SearchState, half: int | None = None) -> list[tuple[int, tuple[int, ...]]]:
    """``(number of the batch, numbers of its examples)`` of one half of the examples, or of all."""
    first, second = ([tuple(part) for _, _, part in state.setup.batched(one)] for one in state.halves)
    parts = list(enumerate([*first, *second]))
    return {None: parts, 0: parts[: len(first)], 1: parts[len(first) :]}[half]


def _placed(state: SearchState, numbers: Sequence[int]) -> dict[str, Any]:
    """What every batch of placed prompts holds."""
    return {
        "numbers": tuple(numbers),
        "examples": [state.examples[i] for i in numbers],
        "places": state.layout.places,
        "tokens": state.tokens,
        "labels": tuple(state.labels[list(numbers)].tolist()),
    }


def _cut(
    state: SearchState,
    step: str,
    how: How,
    sets: Sequence[Sequence[int]],
    half: int | None = None,
    spare: tuple[int, ...] = (),
) -> Iterator[Batch]:
    """Sets of places cut, in every example of a half, or in all."""
    for i, numbers in _parts(state, half):
        held = _placed(state, numbers)
        yield measurements.CutAnswers(
            f"{step}-{i:02d}", **held, how=how, sets=sets, spare=spare, units=len(sets)
        )


def _asked(
    state: SearchState,
    step: str,
    players: Sequence[Sequence[int]],
    some: Sequence[int],
    orders: int,
    again: bool = False,
) -> Iterator[Batch]:
    """What players add, in pairs of one half of the examples."""
    for i, numbers in _parts(state, 0):
        held = _paired(state, numbers, again)
        if held["numbers"]:
            asked = {
                "players": players,
                "some": tuple(some),
                "orders": orders,
                "seed": state.setup.options.seed,
            }
            yield spliced.AskedPlayers(
                f"{step}-asked-{i:02d}", **held, **asked, units=(2 + orders) * len(some)
            )


def _spliced(
    state: SearchState, step: str, sets: Sequence[Sequence[int]], half: int | None = None
) -> Iterator[Batch]:
    """Sets of places kept and taken, in pairs of a half of the examples, or of all."""
    for i, numbers in _parts(state, half):
        held = _paired(state, numbers)
        if held["numbers"]:
            yield spliced.SplicedAnswers(f"{step}-spliced-{i:02d}", **held, sets=sets, units=2 * len(sets))


def _paired(state: SearchState, numbers: Sequence[int], again: bool = False) -> dict[str, Any]:
    """What every batch of pairs holds: of the examples that have a partner."""
    partners = state.second_partners if again else state.partners
    numbers = [number for number in numbers if number in partners]
    held = _placed(state, numbers)
    held["sources"] = [state.examples[partners[number]] for number in numbers]
    held["source_labels"] = tuple(state.labels[[partners[number] for number in numbers]].tolist())
    return held


# -- what is made of it


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """The search's tables and its verdict: see :class:`~gatelens.studies.gate_finder.result.SearchResult`."""
    state = SearchState(NAME, setup, measured)
    layout, (curves, sets), (layers, confirmed) = state.layout, state.curves_and_sets, state.confirmed()
    told = setup.run.settings
    settings: dict[str, Any] = {
        **{name: told[name] for name in ("data", "weights", "examples", "n_boot") if name in told},
        "n": len(state.examples), "n_pairs": min(state.options.n_pairs, len(state.partners)), "how": list(state.hows),
        "seed": setup.options.seed, "narrow": state.limit, "k": state.k,
        "overlap_by_chance": overlap_by_chance(torch.tensor(state.labels)), "n_picture": len(layout.picture),
        "n_after": len(layout.after), "block": len(state.blocks[0]), "taken_apart": len(state.strongest),
        "part": PART, "asked": len(state.partners), **state.together(), **state.worth, **confirmed,
        "gate": list(layout.gate),
    }  # fmt: skip
    result = SearchResult(
        model=told["model"],
        prompt=state.examples[0].prompt,
        places=layout.places,
        measures=state.measures,
        blocks=state.block_table,
        curves=curves,
        layers=layers,
        settings=settings,
        verdict=gate_verdict(layout.places, state.measures, sets, settings),
    )
    return {**result.stored(), BY_EXAMPLE: state.by_example}


def page(run: Run) -> list[Card]:
    """The positions and what they carry."""
    return search_cards(SearchResult.from_run(run), "gate", "The positions and what they carry")


ABOUT = "which positions carry the picture, by their effect and not by name"
SECTION = Section(NAME, ABOUT, batches, measure, conclude, FinderOptions, page=page)
