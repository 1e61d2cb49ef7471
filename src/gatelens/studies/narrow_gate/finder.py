"""Section *finder*: the search for a gate without using names, in addition to the study's own.

The study asks about one token, the end of the image. :func:`gatelens.studies.find_gate` ranks every position of the
picture and after it by what it does, and says how few of them carry the picture to the answer, wherever they stand.
A narrow set that it finds elsewhere is a candidate of its own: the verdict names it where the study's gate is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from gatelens.plots.card import Card
from gatelens.plots.numbers import percent
from gatelens.runs import Run
from gatelens.studies.gate_finder import search
from gatelens.studies.gate_finder import verdict as search_verdict
from gatelens.studies.gate_finder.cards import search_cards, search_line
from gatelens.studies.gate_finder.result import BY_EXAMPLE, FACTS, TABLES, SearchResult
from gatelens.studies.gate_finder.tables import UNPAIRED, comparable, comparable_values
from gatelens.studies.gate_finder.verdict import how_sure, named
from gatelens.studies.narrow_gate.verdict import (
    ANOTHER,
    DISTRIBUTED,
    FINDER,
    INCONCLUSIVE,
    NARROW,
    Candidate,
)
from gatelens.studies.options import Examples
from gatelens.studies.section import CELLS, Evidence, Measured, Setup

NAME = search.NAME
CALLED = {name: f"{NAME}_{name}" for name in ("places", BY_EXAMPLE, *TABLES)} | {
    FACTS: NAME
}  # in a run of this study


class FinderOptions(search.FinderOptions):
    """How finely the positions are searched."""

    n: Annotated[Examples, Field(description="Examples of the task class.")] = 96


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """The search's tables, under names that begin with the section's."""
    return {CALLED[name]: value for name, value in search.conclude(setup, measured).items()}


def search_of(run: Run) -> SearchResult | None:
    """The search of a run; None where it has none."""
    return SearchResult.from_run(run, CALLED) if run.has(NAME) else None


def evidence(run: Run) -> list[Evidence]:
    """What the search says of the study's gate."""
    result = search_of(run)
    return [] if result is None else [finder_evidence(result)]


def candidate(result: SearchResult | None) -> Candidate | None:
    """The narrow set that the search found where it is not the study's gate alone.

    The set must be what its patching says too: with it taken from another picture, the answer is that picture's.
    """
    if result is None or result.verdict["verdict"] != search_verdict.NARROW:
        return None
    found, gate = set(result.verdict["places"]), set(result.settings["gate"])
    turns = any(e["kind"] == "patching" and e["says"] == NARROW for e in result.verdict["evidence"])
    if not turns or found == gate:
        return None
    return Candidate(named(result.places, result.verdict["places"]), bool(found & gate), _text(result))


def finder_evidence(result: SearchResult) -> Evidence:
    """The search's verdict in the study's words.

    A narrow set that holds the study's gate is narrow, one elsewhere is another gate. Nothing at all, or too wide an
    interval, is inconclusive.
    """
    said, settings = result.verdict, result.settings
    text = _text(result)
    if said["verdict"] == search_verdict.NARROW:
        gate = settings["gate"]
        says = NARROW if set(gate) & set(said["places"]) else ANOTHER
        if says == ANOTHER:
            asked = named(result.places, gate) if gate else "the answering position itself"
            text += f". A narrow gate, but at another token than the one this study cuts, which is {asked}"
    else:
        says = DISTRIBUTED if said["verdict"] == search_verdict.DISTRIBUTED else INCONCLUSIVE
    if said["disagree"]:
        text += f"; of the search’s own measures, these do not agree: {', '.join(said['disagree'])}"
    return {"kind": FINDER, "says": says, "text": text, "line": search_line(result)}


def _text(result: SearchResult) -> str:
    """What was found, and how sure its size is."""
    said, settings = result.verdict, result.settings
    one = result.smallest
    opening = f"of {len(result.places)} positions, ranked by their effect and not by name,"
    number = f"{'at most ' if one['size'] != 1 else ''}{one['size']} [{one['low']}, {one['high']}]"
    size = number if one["size"] else "more than were cut"
    bound = how_sure(one)
    bound = bound[:1].lower() + bound[1:]
    if said["verdict"] == search_verdict.NARROW:
        several = one["size"] > 1
        return (
            f"{opening} {size} {'are' if several else 'is'} enough: {named(result.places, one['places'])}, kept alone "
            f"and taken away, carr{'y' if several else 'ies'} {percent(min(one['share'], 1.0))} of what the picture is "
            f"worth ({bound})"
        )
    if said["verdict"] == search_verdict.DISTRIBUTED:
        return (
            f"{opening} the smallest set found to carry {percent(settings['part'])} of what the picture is worth "
            f"holds {size} ({bound})"
        )
    return str(said["sentence"]).removesuffix(".")


def page(run: Run) -> list[Card]:
    """Figures and table of the search."""
    result = search_of(run)
    return search_cards(result, NAME, "Every position, ranked by its effect") if result else []


def compared(run: Run) -> pd.DataFrame:
    """Sizes of sets and shares, for the comparison of two runs."""
    result = search_of(run)
    return pd.DataFrame(columns=CELLS) if result is None else comparable(result)


def compared_values(run: Run) -> pd.DataFrame:
    """Accuracy lost and shares taken, by example."""
    result = search_of(run)
    return comparable_values(run, result.places if result else (), CALLED[BY_EXAMPLE])


SECTION = dataclasses.replace(
    search.SECTION, conclude=conclude, options=FinderOptions, evidence=evidence, page=page, cells=compared,
    values=compared_values, unpaired=UNPAIRED,
)  # fmt: skip
