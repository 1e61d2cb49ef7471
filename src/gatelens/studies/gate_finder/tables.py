"""A gate search as tables: for a notebook, a terminal, and the comparison of two."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from gatelens.measures.stats import CHANGE
from gatelens.plots.card import Table
from gatelens.plots.numbers import cell, percent
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.gate_finder.figures import gate_figure
from gatelens.studies.gate_finder.places import Place
from gatelens.studies.gate_finder.result import BY_EXAMPLE, LOST, TAKEN, SearchResult
from gatelens.studies.section import VALUES, span_of

GATE_MARK = "◆"
SMALLEST = "positions of the smallest set found, an upper bound"
UNPAIRED = {SMALLEST: "the size of a set is a statement on all examples at once"}


def gate_table(result: SearchResult, most: int = 8) -> pd.DataFrame:
    """The strongest positions, one per row, with every measure as ``mean [low, high]``.

    Ranked by the drop in log-probability under the first kind of knockout; positions of the gate are marked.
    """
    top = result.ranking().head(most).set_index("place")
    table = top[["name", "position", "role"]].rename(columns={"name": "token"}).astype({"position": str})
    marks = [GATE_MARK if result.places[p] in result.gate else "" for p in top.index]
    table.insert(0, "", marks)
    for measure, part in result.measures.groupby("measure", sort=False):
        texts = pd.Series([cell(r.mean, r.low, r.high) for r in part.itertuples()], index=part.place)
        table[heading(str(measure))] = texts.reindex(top.index, fill_value="")
    return table.reset_index(drop=True)


def heading(measure: str) -> str:
    """What a measure is called above its column."""
    how, _, what = measure.partition(" ")
    if how in ("zero", "mask"):
        return f"{how}: {'accuracy' if what == 'accuracy' else 'nats'} lost"
    return {
        "flipped": "taken: flips",
        "target overlap": "taken: overlap gained",
        "kept": "kept: own answer",
    }.get(measure, measure)


def comparable(result: SearchResult) -> pd.DataFrame:
    """What two searches can be compared in: ``how, metric, row, mean, low, high, n``.

    The size of the smallest set found to carry enough (an upper bound), the share that sets of 1, 2, 4, … positions
    carry, and the accuracy lost with each position after the picture, by its token.
    """
    share, half = percent(result.settings["part"]), result.settings["n"] - result.settings["n"] // 2
    rows: list[tuple[Any, ...]] = []
    for how, one in result.verdict["sets"].items():
        if one["size"] is not None:
            size = (float(one[name]) for name in ("size", "low", "high"))
            rows.append(
                (
                    how,
                    SMALLEST,
                    f"that carries {share}",
                    *size,
                    half,
                )
            )
        curve = result.curves[result.curves.how == how].sort_values("size")
        for r in curve.itertuples():
            if int(r.size).bit_count() == 1:
                name = _size_name(r.size)
                rows.append((how, TAKEN, name, r.share, r.low, r.high, half))
        lost = result.measures[result.measures.measure == f"{how} accuracy"]
        for r in lost.itertuples():
            place = result.places[r.place]
            if not place.in_picture:
                rows.append((how, LOST, place.name, r.mean, r.low, r.high, r.n))
    table = pd.DataFrame(rows, columns=["how", "metric", "row", "mean", "low", "high", "n"])
    return table.drop_duplicates(["how", "metric", "row"])


def comparable_values(run: Run, places: Sequence[Place], name: str = BY_EXAMPLE) -> pd.DataFrame:
    """What the cells of :func:`comparable` are the means of, by example, as the table ``name`` of a run has them."""
    table = run.table(name) if run.has(name) else pd.DataFrame()
    if table.empty:
        return pd.DataFrame(columns=VALUES)
    after = {place.number: place.name for place in places if not place.in_picture}
    first = {
        name: number for number, name in sorted(after.items(), reverse=True)
    }  # of equal names one is compared
    table = table[(table.what == TAKEN) | table.number.isin(first.values())]
    names = {TAKEN: _size_name, LOST: after.__getitem__}
    rows = [names[what](number) for what, number in zip(table.what, table.number, strict=True)]
    spans = table.what.map({TAKEN: span_of(None), LOST: span_of(CHANGE)})
    return table.assign(metric=table.what, row=rows, value=table.value.astype(float), span=spans)[VALUES]


def _size_name(size: int) -> str:
    return f"{size} position{'s' if size > 1 else ''}"


def as_text(result: SearchResult) -> str:
    """Headline, sentence, evidence and the strongest positions."""
    said = result.verdict
    table = gate_table(result).drop(columns="role")
    evidence = [f"  {kind}: {text}" for kind, text in _evidence(result)]
    title = f"The strongest of {len(result.places)} positions (mean [95 % interval]):"
    shown = Table.from_frame(table, {column: column for column in table.columns}, title=title)
    return "\n".join([f"{result.model}: {said['headline']}", said["sentence"], *evidence, "", str(shown)])


def as_html(result: SearchResult) -> str:
    """The same as a piece of a page, with the figure; everything put into it is escaped."""
    said = {name: html.escape(result.verdict[name]) for name in ("headline", "sentence")}
    evidence = "".join(
        f"<li><b>{html.escape(k)}</b>: {html.escape(text)}</li>" for k, text in _evidence(result)
    )
    picture = base64.b64encode(png(gate_figure(result), dpi=110)).decode()
    table = gate_table(result).to_html(index=False, border=0, justify="left")
    return (
        f"<div><h3>{html.escape(result.model)}: {said['headline']}</h3><p>{said['sentence']}</p><ul>{evidence}</ul>"
        f"<img alt='{said['headline']}' style='max-width:100%' src='data:image/png;base64,{picture}'>"
        f"<p>The strongest of {len(result.places)} positions, mean [95 % interval]:</p>{table}</div>"
    )


def _evidence(result: SearchResult) -> list[tuple[str, str]]:
    """Each kind, and what it says with its numbers."""
    evidence = result.verdict["evidence"]
    return [(e["kind"], f"{e['says']}. {e['text'][:1].upper()}{e['text'][1:]}.") for e in evidence]
