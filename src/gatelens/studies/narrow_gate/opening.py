"""The first screen of a report: the two paths from picture to text, and what is left when one is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatelens.plots.opening import BarTable, Diagram, Opening
from gatelens.runs import Run
from gatelens.studies.gate_finder.planted import planted
from gatelens.studies.narrow_gate import knockout_table as rows
from gatelens.studies.narrow_gate.verdict import paths_of
from gatelens.studies.narrow_gate.words import first_words

LINK = "#knockouts"


def opening(run: Run, said: Mapping[str, Any]) -> Opening:
    """Diagram, bars and what was planted, of the tables of the first kind of knockout."""
    knockout, tasks, tokens = run.table("knockout"), run.table("tasks"), run.json("tokens")
    return Opening(
        [diagram(tasks, tokens, picture_of(run))], bars(knockout, tasks), planted(run, said), first_words(run)
    )


def diagram(tasks: Any, tokens: Mapping[str, Any], picture: str = "", title: str = "") -> Diagram:
    """The paths through the gate and past it."""
    gate = tokens["gate"]
    through, direct = paths_of(tasks)
    count = f"{tokens['n_image']} tokens"
    called = gate["string"] if len(gate["string"]) <= 14 else f"{gate['string'][:13]}…"
    return Diagram(
        through,
        direct,
        ("the image", count),
        (called, "the gate"),
        ("text", "the answer"),
        picture,
        LINK,
        title,
    )


def picture_of(run: Run) -> str:
    """The first picture of the report's examples; empty where there is none."""
    return next((e["picture"] for e in run.json("examples") if e["picture"]), "")


def bars(knockout: Any, tasks: Any) -> BarTable:
    """The knockout table's main rows as bars."""
    part = knockout[(knockout.how == knockout.how.iloc[0]) & (knockout.metric != rows.RESTRICTED)]
    random = next((row for row in part.row.unique() if row.startswith("random")), None)
    colors = {rows.NONE: "neutral", rows.GATE: "gate", rows.IMAGE: "image"}
    colors |= ({random: "faint"} if random else {}) | {rows.FLOOR: "faint"}
    names = {rows.NONE: "nothing cut", rows.FLOOR: "gate + image"}
    if random:
        names[random] = f"{random.split(' ')[0].removeprefix('random-')} random tokens"
    names |= {rows.GATE: "gate", rows.IMAGE: "image tokens"}
    return BarTable.from_means(
        part, colors, names=names, tops={m: 1.0 for m in part.metric if "accuracy" in m},
        chances=tasks.groupby("metric").chance.first().to_dict(), link=LINK,
        caption="Score with attention from text cut. Whiskers: 95 % interval. Dashed: without the picture.",
    )  # fmt: skip
