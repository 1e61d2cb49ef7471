"""The knockout table on the page: a table and bars a kind of knockout."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.plots import card
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import Palette, styled
from gatelens.runs import Run
from gatelens.studies.narrow_gate.knockout_table import FLOOR

METHOD = {}

_ASIDE = "among the class names"  # stands in the table; a panel of its own would only crowd the figure


def cards(run: Run) -> list[card.Card]:
    """The table of every kind of knockout.

    Raises:
        OutputError: the run has no finished knockout table.
    """
    table = run.table("knockout")
    used = {f"knockout {how}" for how in table.how} | {kind(m) for m in table.metric}
    longest = run.manifest["settings"]["max_new_tokens"]
    words = {term: text.format(**longest) for term, text in METHOD.items() if term in used}
    hows = list(dict.fromkeys(table.how))
    blocks: list[card.Block] = []
    for how in hows:
        blocks.append(_table(table, how, f"Knockout {how}" if len(hows) > 1 else ""))
        name = "knockout" if len(hows) == 1 else f"knockout_{how}"
        caption = (
            "What the model still gets right when the text can no longer read the named tokens: a short bar "
            "means that those tokens carried the picture to the text. Whiskers: 95 % bootstrap interval over "
            "examples. The last row is a control that cuts every path at once."
        )
        blocks.append(card.Chart(name, lambda dark, how=how: knockout_bars(table, how, dark), caption))  # type: ignore[misc]
    return [card.Card("What is left when a path is cut", blocks, words)]


def _table(table: pd.DataFrame, how: str, title: str) -> card.Table:
    part = table[table.how == how]
    metrics = list(dict.fromkeys(part.metric))
    heads = ["attention cut", *(f"{m}\nn = {int(part[part.metric == m].n.max())}" for m in metrics)]
    rows: list[list[Any]] = []
    for name in dict.fromkeys(part.row):
        mine = part[part.row == name].set_index("metric")
        repeats = int(mine.repeats.max())
        cells: list[Any] = [(name, f"mean of {repeats} draws" if repeats > 1 else "")]
        for metric in metrics:
            found = mine.loc[metric] if metric in mine.index else None
            cells.append(
                "–"
                if found is None
                else (f"{found['mean']:.2f}", f"{found['low']:.2f} – {found['high']:.2f}")
            )
        rows.append(cells)
    return card.Table(heads, rows, controls=(FLOOR,), title=title)


def knockout_bars(table: pd.DataFrame, how: str | None = None, dark: bool = False) -> Figure:
    """One panel a metric, one bar a row of the knockout table, whiskers the 95 % bootstrap interval.

    Args:
        table: ``how, row, metric, mean, low, high, n`` as a study's ``knockout`` table.
        how: which kind of knockout; None is the first.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no such ``how``.
    """
    kinds = list(dict.fromkeys(table.how))
    how = how or (kinds[0] if kinds else "none")
    part = table[table.how == how]
    if part.empty:
        raise DataError(
            f"the knockout table has no rows with how={how!r} (it has: {', '.join(kinds) or 'none'})"
        )
    metrics = [m for m in dict.fromkeys(part.metric) if not m.endswith(_ASIDE)]
    names = list(dict.fromkeys(part.row))
    with styled(dark) as p:
        figure = Figure(figsize=(2.9 * len(metrics) + 1.5, 0.42 * len(names) + 1.0), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            one = part[part.metric == metric].set_index("row").reindex(names)
            y = range(len(names))
            colors = [_row_color(name, p) for name in names]
            axes.barh(y, one["mean"], color=colors, height=0.66)
            whiskers = [(one["mean"] - one.low).clip(lower=0), (one.high - one["mean"]).clip(lower=0)]
            axes.errorbar(one["mean"], y, xerr=whiskers, fmt="none", ecolor=p.ink, elinewidth=1, capsize=2.5)
            top = 1.0 if "accuracy" in metric else max(float(one.high.max()), 0.05)
            for i, row in enumerate(one.itertuples()):
                axes.text(
                    row.high + 0.03 * top, i, f"{row.mean:.2f}", va="center", fontsize=8.5, color=p.soft
                )
            axes.set_xlim(0, 1.22 * top)
            axes.set_title(f"{metric}  (n = {int(one.n.max())})")
            axes.tick_params(left=False)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
    return figure


def _row_color(name: str, p: Palette) -> str:
    if name == "none":
        return p.neutral
    return {"gate → text": p.gate, "image → text": p.image}.get(name, p.faint)
