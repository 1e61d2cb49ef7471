"""Section *finder*: the search for a gate that is told no names, beside the study's own.

The study asks about one token, the end of the image. :func:`gatelens.studies.find_gate` ranks every position of the
picture and behind it by what it does, and says how few of them carry the picture to the answer, wherever they stand.
Its answer is evidence for a narrow gate here only if it is this gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from gatelens.errors import DataError
from gatelens.plots.numbers import percent
from gatelens.runs import Run
from gatelens.studies.gate_finder import verdict as words
from gatelens.studies.gate_finder.result import GateSearch
from gatelens.studies.gate_finder.search import STEPS, Search
from gatelens.studies.gate_finder.setup import Setup, why_not
from gatelens.studies.narrow_gate.section import Context, Evidence, Piece, Section
from gatelens.studies.narrow_gate.verdict import DISTRIBUTED, INCONCLUSIVE, MIXED, NARROW

if TYPE_CHECKING:
    from gatelens.data import Example

NAME = "finder"
NARROW_SET = 4  # positions of a narrow gate, at most
UNIT = 24  # of the bar: a step of the search lasts about as long as so many batches under one knockout


def pieces(context: Context) -> list[Piece]:
    """One piece; none where the class examples cannot be searched."""
    if _why_not(context) is not None:
        return []
    units = UNIT * (STEPS + len(context.hows))
    return [Piece(f"shards/{NAME}-0000", "find the gate", lambda: search(context), units)]


def search(context: Context) -> pd.DataFrame:
    """Search, store what was found, and give its measures; an empty table where the model cannot be searched."""
    options = context.options(NAME)
    try:
        setup = Setup(context.model, _examples(context), context.seed, context.n_boot, context.size)
    except DataError as error:  # seen only when the model has read the prompts
        context.run.save_json(NAME, {"why_not": str(error).removeprefix("find_gate: ")})
        return pd.DataFrame()
    found = Search(setup, tuple(context.hows), context.bar, UNIT).run(
        context.settings["model"], options["n_pairs"], None, options["refine"], NARROW_SET, None
    )
    found.settings["gate"] = gate_places(setup)
    found.store(context.run, NAME)
    return found.measures


def gate_places(setup: Setup) -> list[int]:
    """The study's gate among the candidates; none where it is the answering position itself."""
    found = set(range(len(setup.places.all)))
    for batch in setup.batches():
        gate = batch.inputs.tokens.mask("gate")
        here = gate.gather(1, batch.columns.clamp_min(0)) | (batch.columns < 0)
        found &= set(here.all(0).nonzero()[:, 0].tolist())
    return sorted(found)


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """The search's tables are there; what remains is to say why, where there was none."""
    reason = _why_not(context)
    if reason is not None:
        context.run.save_json(NAME, {"why_not": reason})


def evidence(run: Run) -> list[Evidence]:
    """What the search says of the study's gate."""
    found = found_in(run)
    return [] if found is None else [finder_evidence(found)]


def found_in(run: Run) -> GateSearch | None:
    """The search of a run; None where it has none."""
    if not run.done(NAME) or "why_not" in run.json(NAME):
        return None
    return GateSearch.from_run(run, NAME)


def finder_evidence(found: GateSearch) -> Evidence:
    """The search's verdict in the study's words.

    A narrow set that holds the study's gate is narrow; one elsewhere is *mixed*: a gate, but not this one. Nothing
    found, or too wide an interval, is inconclusive.
    """
    said, total = found.verdict["verdict"], len(found.places)
    one = found.verdict["sets"][found.settings["how"][0]]
    if said == words.NARROW:
        who = words.named(found.places, one["places"])
        several = one["size"] > 1
        text = (
            f"of {total} positions, ranked by what they do and not by name, {one['size']} [{one['low']}, "
            f"{one['high']}] {'are' if several else 'is'} enough: {who} cut from all that comes after "
            f"take{'' if several else 's'} {percent(min(one['share'], 1.0))} of what the picture is worth"
        )
        gate = found.settings["gate"]
        says = NARROW if set(gate) & set(one["places"]) else MIXED
        if says == MIXED:
            asked = words.named(found.places, gate) if gate else "the answering position itself"
            text += f". A narrow gate, but at another token than the one this study cuts, which is {asked}"
    elif said == words.DISTRIBUTED:
        says = DISTRIBUTED
        size = f"{one['size']} [{one['low']}, {one['high']}]" if one["size"] else "more than were cut"
        text = (
            f"of {total} positions, ranked by what they do and not by name, the smallest set found to carry "
            f"{percent(found.settings['part'])} of what the picture is worth holds {size}"
        )
    else:
        says, text = INCONCLUSIVE, found.verdict["sentence"].removesuffix(".")
    if found.verdict["disagree"]:
        text += f"; of the search’s own measures, these do not agree: {', '.join(found.verdict['disagree'])}"
    return {"kind": "gate finder", "says": says, "text": text}


def _examples(context: Context) -> Sequence[Example]:
    tasks = context.examples("class")
    return tasks[0][1][: context.options(NAME)["n"]] if tasks else []


def _why_not(context: Context) -> str | None:
    if not context.examples("class"):
        return f"data {context.data.name!r} has no task class"
    reason = why_not(_examples(context))
    return None if reason is None else f"data {context.data.name!r} {reason}"


SECTION = Section(
    NAME,
    "which positions carry the picture, found by what they do and not by name",
    pieces,
    conclude,
    evidence,
    {"n": 96, "n_pairs": 48, "refine": 16},
)
