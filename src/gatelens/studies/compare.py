"""Two runs of a study side by side: verdicts, the tables cell by cell, and the settings that differ."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gatelens.errors import OutputError
from gatelens.measures.stats import CHANGE, IN_WORDS, independent_difference, mean_interval
from gatelens.plots.card import Block, Card, Cell, Table, Text
from gatelens.plots.numbers import cell, interval, number, signed, span
from gatelens.plots.page import Page, Verdict, render
from gatelens.runs import Run
from gatelens.studies.catalogue import study_of
from gatelens.studies.report import read_from
from gatelens.studies.study import CELL, verdict_of


def compare(a: Run, b: Run) -> pd.DataFrame:
    """The knockout tables (compressed contexts, sizes of gates) joined: ``how, metric, row, mean_a, low_a, high_a,
    n_a, mean_b, …, difference, difference_low, difference_high, paired, apart``.

    ``difference`` is b − a with its 95 % interval: over the differences of the same example where both runs scored
    the same examples (``paired``), else from the intervals of the two means. ``apart``: it does not reach 0.

    Raises:
        OutputError: the runs are of different studies, or have no finished table or no cell in common.
    """
    if a.study != b.study:
        raise OutputError(f"cannot compare a run of {a.study!r} with one of {b.study!r}")
    with read_from(a, b):
        return _joined(a, b)


def _joined(a: Run, b: Run) -> pd.DataFrame:
    cells, keys, values = study_of(a).comparable, list(CELL), ["mean", "low", "high", "n"]
    both = cells(a)[keys + values].merge(cells(b)[keys + values], on=keys, suffixes=("_a", "_b"))
    if both.empty:
        raise OutputError(
            f"{a.label} and {b.label} have no cell in common: they differ in knockout (how), tasks or rows"
        )
    both["difference"] = both.mean_b - both.mean_a
    changes = _changes(a, b)
    found = [_interval(row, changes.get(tuple(row[key] for key in keys))) for row in both.to_dict("records")]
    both[["difference_low", "difference_high", "paired"]] = found
    both["apart"] = (both.difference_low > 0) | (both.difference_high < 0)
    return both.astype({"paired": bool})


def _changes(a: Run, b: Run) -> dict[tuple[str, ...], pd.DataFrame]:
    """Of each cell the values of both runs by example; none where the runs drew other examples."""
    known = a.settings.get("examples")
    if known is None or known != b.settings.get("examples"):
        return {}
    by = [*CELL, "id", "bounded"]
    first, second = (study_of(run).answers(run).groupby(by, sort=False).value.mean() for run in (a, b))
    both = pd.concat([first, second], axis=1, keys=["a", "b"]).reset_index()
    return {cell: part for cell, part in both.groupby(list(CELL), sort=False) if part.notna().all(axis=None)}


def _interval(row: dict[str, Any], values: pd.DataFrame | None) -> tuple[float, float, bool]:
    """``low, high, paired`` of one cell's difference."""
    if values is not None:
        change = values.b - values.a
        # not so where examples count for more than one, as pictures with several questions
        if abs(float(change.mean()) - row["difference"]) < 1e-9:
            bounds = CHANGE if values.bounded.all() else None
            return *mean_interval(change, bounds), True
    a, b = ((row[f"mean_{side}"], row[f"low_{side}"], row[f"high_{side}"]) for side in "ab")
    return *independent_difference(a, b), False


def setting_differences(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """``(setting, in a, in b)`` where they differ."""
    left, right = a.settings, b.settings
    return [(k, left.get(k), right.get(k)) for k in {**left, **right} if left.get(k) != right.get(k)]


def compare_text(a: Run, b: Run) -> str:
    """The comparison for a terminal."""
    table = compare(a, b)
    lines = [f"A  {a.label}: {_headline(a)}", f"B  {b.label}: {_headline(b)}", ""]
    width = max(len(r) for r in table.row) + 2
    for (how, metric), part in table.groupby(["how", "metric"], sort=False):
        lines.append(f"{metric} ({how})")
        lines.append(f"  {'':{width}}{'A':22}{'B':22}B − A")
        for r in part.itertuples():
            left, right = cell(r.mean_a, r.low_a, r.high_a), cell(r.mean_b, r.low_b, r.high_b)
            between = interval(r.difference_low, r.difference_high)
            difference = f"{signed(r.difference)} {between}{' *' if r.apart else ''}"
            lines.append(f"  {r.row:{width}}{left:22}{right:22}{difference}")
        lines.append("")
    lines.append(f"* {_star(table)}")
    different = setting_differences(a, b)
    lines += (
        [f"settings that differ: {', '.join(k for k, _, _ in different)}"] if different else ["same settings"]
    )
    return "\n".join(lines)


def compare_html(a: Run, b: Run) -> str:
    """The comparison as one HTML page that needs no network."""
    table = compare(a, b)
    cards = [_card(how, metric, part) for (how, metric), part in table.groupby(["how", "metric"], sort=False)]
    different = [[name, str(x), str(y)] for name, x, y in setting_differences(a, b)]
    settings: Block = Table(["setting", "A", "B"], different, code="AB") if different else Text("None.")
    cards.append(Card("Settings that differ", [settings]))
    models = [run.settings.get("model", "?") for run in (a, b)]
    names = [f"{side} · {m} · {run.label}" for side, m, run in zip("AB", models, (a, b), strict=True)]
    verdicts = [
        Verdict.from_json({**verdict_of(run), "evidence": ()}, study_of(run).tones, name)
        for name, run in zip(names, (a, b), strict=True)
    ]
    method = {"interval": f"Under each number, {IN_WORDS}", "*": f"{_star(table).capitalize()}."}
    return render(Page(" and ".join(models), ["two runs compared"], verdicts, cards, method))


def _card(how: str, metric: str, part: pd.DataFrame) -> Card:
    """One metric, both runs side by side."""
    is_knockout = how in ("zero", "mask")
    counts = [f"{side}\nn = {int(part[f'n_{side.lower()}'].max())}" for side in "AB"]
    rows: list[list[Cell]] = [
        [
            str(r.row),
            (number(r.mean_a), span(r.low_a, r.high_a)),
            (number(r.mean_b), span(r.low_b, r.high_b)),
            (
                f"{signed(r.difference)}{' *' if r.apart else ''}",
                span(r.difference_low, r.difference_high),
            ),
        ]
        for r in part.itertuples()
    ]
    title = f"{metric[0].upper()}{metric[1:]}, {'knockout ' if is_knockout else ''}{how}"
    return Card(title, [Table(["attention cut" if is_knockout else "context", *counts, "B − A"], rows)])


def _star(table: pd.DataFrame) -> str:
    """What marks a difference, and how its interval came about."""
    how = {
        (True,): "of the same examples, paired",
        (False,): "of other examples or of means alone, from both intervals",
    }.get(tuple(table.paired.unique()), "paired where the examples are the same, else from both intervals")
    return f"the 95 % interval of the difference ({how}) does not reach 0"


def _headline(run: Run) -> str:
    return f"{verdict_of(run)['headline']} ({run.manifest['settings'].get('model', '?')})"
