"""A gate search as a table, as text and as a piece of a notebook."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

import pandas as pd

from gatelens.plots.numbers import percent
from gatelens.plots.style import png

if TYPE_CHECKING:
    from gatelens.studies.gate_finder.result import GateSearch

SHOWN = 8
GATE_MARK = "◆"


def gate_table(found: GateSearch, most: int = SHOWN) -> pd.DataFrame:
    """The strongest positions, one a row, with every measure as ``mean [low, high]``.

    Ranked by the drop in log-probability under the first kind of knockout; positions of the found gate are marked.
    """
    measures = list(dict.fromkeys(found.measures.measure))
    gate = {p.number for p in found.gate}
    rows = []
    for place in found.ranking().head(most).place:
        one = found.places[place]
        row: dict[str, str] = {
            "": GATE_MARK if place in gate else "",
            "token": one.name,
            "position": str(one.position),
            "role": one.role,
        }
        cells = numbers(found, place)
        for measure in measures:
            mean, interval = cells.get(measure, ("", ""))
            row[heading(measure)] = f"{mean} [{interval}]" if mean else ""
        rows.append(row)
    return pd.DataFrame(rows)


def numbers(found: GateSearch, place: int) -> dict[str, tuple[str, str]]:
    """The measures of a place as ``(mean, "low, high")``; those it has."""
    mine = found.measures[found.measures.place == place]
    return {r.measure: (_number(r.mean), f"{_number(r.low)}, {_number(r.high)}") for r in mine.itertuples()}


def heading(measure: str) -> str:
    """What a measure is called above its column."""
    how = measure.split()[0]
    if how in ("zero", "mask"):
        return {"accuracy": f"{how}: accuracy lost", "log_prob": f"{how}: nats lost"}[measure.split()[1]]
    return {"flipped": "patched: flips", "target overlap": "patched: overlap gained"}.get(measure, measure)


def comparable(found: GateSearch) -> pd.DataFrame:
    """What two searches can be compared in: ``how, metric, row, mean, low, high, n``.

    The size of the smallest set that carries enough, the share that sets of 1, 2, 4, … positions take, and the
    accuracy lost with each position behind the picture, by its token.
    """
    share, half = percent(found.settings["part"]), found.settings["n"] - found.settings["n"] // 2
    rows: list[tuple[str, str, str, float, float, float, int]] = []
    for how, one in found.verdict["sets"].items():
        if one["size"] is not None:
            size = (float(one["size"]), float(one["low"]), float(one["high"]), half)
            rows.append((how, "positions of the smallest set", f"that takes {share}", *size))
        curve = found.curves[found.curves.how == how].sort_values("size")
        for r in curve.itertuples():
            if int(r.size).bit_count() == 1:
                name = f"{r.size} position{'s' if r.size > 1 else ''}"
                rows.append((how, "share taken by a set", name, r.share, r.low, r.high, half))
        lost = found.measures[found.measures.measure == f"{how} accuracy"]
        for r in lost.itertuples():
            if not found.places[r.place].in_picture:
                rows.append((how, "accuracy lost", found.places[r.place].name, r.mean, r.low, r.high, r.n))
    table = pd.DataFrame(rows, columns=["how", "metric", "row", "mean", "low", "high", "n"])
    return table.drop_duplicates(["how", "metric", "row"])


def as_text(found: GateSearch) -> str:
    """Headline, sentence, evidence and the strongest positions."""
    said = found.verdict
    table = gate_table(found).drop(columns=["role"])
    lines = [f"{found.model}: {said['headline']}", said["sentence"]]
    lines += [f"  {e['kind']}: {e['says']}. {_capital(e['text'])}." for e in said["evidence"]]
    shown = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(str(row[i])) for row in shown) for i in range(len(table.columns))]
    lines += ["", f"The strongest of {len(found.places)} positions (mean [95 % interval]):"]
    lines += ["  ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in shown]
    return "\n".join(lines)


def as_html(found: GateSearch) -> str:
    """The same as a piece of a page, with the figure; everything put into it is escaped."""
    said = found.verdict
    table = gate_table(found)
    head = "".join(
        f"<th style='text-align:left;padding:2px 8px'>{html.escape(c)}</th>" for c in table.columns
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left;padding:2px 8px'>{html.escape(str(c))}</td>" for c in row)
        + "</tr>"
        for row in table.to_numpy().tolist()
    )
    evidence = "".join(
        f"<li><b>{html.escape(e['kind'])}</b>: {html.escape(e['says'])}. {html.escape(_capital(e['text']))}.</li>"
        for e in said["evidence"]
    )
    picture = base64.b64encode(png(found.figure(), dpi=110)).decode()
    return (
        f"<div><h3>{html.escape(found.model)}: {html.escape(said['headline'])}</h3>"
        f"<p>{html.escape(said['sentence'])}</p><ul>{evidence}</ul>"
        f"<img alt='{html.escape(said['headline'], quote=True)}' style='max-width:100%' "
        f"src='data:image/png;base64,{picture}'>"
        f"<p>The strongest of {len(found.places)} positions, mean [95 % interval]:</p>"
        f"<table><tr>{head}</tr>{body}</table></div>"
    )


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
