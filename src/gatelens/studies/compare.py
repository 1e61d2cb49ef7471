"""Two runs of a study side by side: verdicts, the tables cell by cell, and the settings that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from gatelens.errors import OutputError
from gatelens.measures.stats import IN_WORDS, independent_difference, mean_interval
from gatelens.plots.card import Block, Card, Cell, Table, Text
from gatelens.plots.numbers import cell, interval, number, signed, span
from gatelens.plots.page import Page, Verdict, render
from gatelens.runs import Run
from gatelens.studies.catalogue import study_of
from gatelens.studies.report import measured_sections, read_from
from gatelens.studies.section import CELL, CELLS
from gatelens.studies.study import verdict_of

Reader = Callable[[Run], pd.DataFrame]

SAME = 1e-6  # how far a mean of values kept in single precision may lie from that of the table
# why a difference is not paired
OTHERS = "the runs drew different examples"
NOT_KEPT = "a run kept no per-example values"
NOT_THE_SAME = "an example counts in only one run"
WEIGHTED = "some examples count more than once"


def compare(a: Run, b: Run) -> pd.DataFrame:
    """The tables of all sections joined: ``section, how, metric, row, mean_a, low_a, high_a, n_a, mean_b, …,
    difference, difference_low, difference_high, paired, apart, unpaired``. The study's own comparison (knockouts,
    compressed contexts, sizes of gates) comes first.

    ``difference`` is b − a with its 95 % interval: over the differences of the same example where both runs scored
    the same examples (``paired``), else from the intervals of the two means. ``apart``: it does not reach 0.
    ``unpaired``: why it is not paired, empty where it is.

    Args:
        a, b: runs of the same study.

    Raises:
        OutputError: the runs are of different studies, or have no finished table or no cell in common.

    Example:
        >>> table = gl.views.compare(run, run)
        >>> float(table.difference.abs().max())
        0.0
    """
    if a.study != b.study:
        raise OutputError(f"cannot compare a run of {a.study!r} with one of {b.study!r}")
    with read_from(a, b):
        return _joined(a, b)


def _joined(a: Run, b: Run) -> pd.DataFrame:
    study = study_of(a)
    own, *others = _parts(a, b)
    inner_b = study.inner(b)
    for name, inner in study.inner(a).items():
        if name in inner_b:
            first, *further = _parts(inner, inner_b[name])
            # what decides there stands in the place of this study's own, which knows no examples
            mine = first.assign(section=study.decides, row=f"{name}: " + first.row)
            own = pd.concat([own[~own.row.isin(mine.row)], mine], ignore_index=True)
            others += [part.assign(section=f"{name}: " + part.section) for part in further]
    parts = [own, *others]
    if all(part.empty for part in parts):
        raise OutputError(
            f"{a.label} and {b.label} share no cell: they differ in knockout (how), tasks or rows"
        )
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def _parts(a: Run, b: Run) -> list[pd.DataFrame]:
    """What two runs have in common: the study's own comparison, then a table a section."""
    study = study_of(a)
    parts = [_part(a, b, study.decides or study.name, study.comparable, study.answers, study.unpaired)]
    of_b = {s.name for s in measured_sections(study, b)}
    for section in measured_sections(study, a):
        if section.name in of_b:
            parts.append(_part(a, b, section.name, section.cells, section.values, section.unpaired))
    return parts


def _part(
    a: Run, b: Run, section: str, cells: Reader, values: Reader, unpaired: Mapping[str, str]
) -> pd.DataFrame:
    """What two runs have in common of one section."""
    keys = list(CELL)
    both = cells(a)[CELLS].merge(cells(b)[CELLS], on=keys, suffixes=("_a", "_b"))
    both.insert(0, "section", section)
    if both.empty:
        return both
    both["difference"] = both.mean_b - both.mean_a
    changes = _changes(a, b, values)
    found = [_interval(row, changes, unpaired.get(row["metric"], "")) for row in both.to_dict("records")]
    both[["difference_low", "difference_high", "unpaired"]] = found
    both["paired"] = both.unpaired == ""
    both["apart"] = (both.difference_low > 0) | (both.difference_high < 0)
    return both.astype({"difference_low": float, "difference_high": float})


def _changes(a: Run, b: Run, values: Reader) -> dict[tuple[str, ...], pd.DataFrame] | None:
    """Of each cell the values of both runs by example, NaN where one lacks it; None where the runs drew different
    examples."""
    known = a.settings.get("examples")
    if known is None or known != b.settings.get("examples"):
        return None
    by = [*CELL, "id", "span"]
    first, second = (values(run).groupby(by, sort=False).value.mean() for run in (a, b))
    both = pd.concat([first, second], axis=1, keys=["a", "b"]).reset_index()
    return dict(iter(both.groupby(list(CELL), sort=False)))


def _interval(
    row: dict[str, Any], changes: dict[tuple[str, ...], pd.DataFrame] | None, never: str
) -> tuple[float, float, str]:
    """``low, high`` of one cell's difference, and why it is not paired; ``never``: why no values can be kept."""
    values = None if changes is None else changes.get(tuple(row[key] for key in CELL))
    if changes is None:
        why = never or OTHERS
    elif values is None or values.a.isna().all() or values.b.isna().all():
        why = never or NOT_KEPT
    elif values.isna().any(axis=None):
        why = NOT_THE_SAME
    else:
        change = values.b - values.a
        if abs(float(change.mean()) - row["difference"]) < SAME:
            span = float(values.span.max())
            return *mean_interval(change, (-span, span) if math.isfinite(span) else None), ""
        why = WEIGHTED
    a, b = ((row[f"mean_{side}"], row[f"low_{side}"], row[f"high_{side}"]) for side in "ab")
    return *independent_difference(a, b), why


def setting_differences(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """``(setting, in a, in b)`` where they differ."""
    left, right = a.settings, b.settings
    return [(k, left.get(k), right.get(k)) for k in {**left, **right} if left.get(k) != right.get(k)]


def compare_text(a: Run, b: Run) -> str:
    """The comparison for a terminal: the study's own in full, of the other sections how much differs."""
    table = compare(a, b)
    lines = [f"A  {a.label}: {_headline(a)}", f"B  {b.label}: {_headline(b)}", ""]
    width = max(len(r) for r in table.row) + 2
    own = table[table.section == table.section.iloc[0]]
    for (how, metric), part in own.groupby(["how", "metric"], sort=False):
        lines.append(f"{metric} ({how})" if how else str(metric))
        lines.append(f"  {'':{width}}{'A':22}{'B':22}B − A")
        for r in part.itertuples():
            left, right = cell(r.mean_a, r.low_a, r.high_a), cell(r.mean_b, r.low_b, r.high_b)
            between = interval(r.difference_low, r.difference_high)
            difference = f"{signed(r.difference)} {between}{' *' if r.apart else ''}"
            lines.append(f"  {r.row:{width}}{left:22}{right:22}{difference}")
        lines.append("")
    for section, part in table[len(own) :].groupby("section", sort=False):
        lines.append(f"{section}: {_finding(part)} (see the page, --out)")
    lines.append(f"* {_star(table)}")
    different = setting_differences(a, b)
    lines += (
        [f"settings that differ: {', '.join(k for k, _, _ in different)}"] if different else ["same settings"]
    )
    return "\n".join(lines)


def compare_html(a: Run, b: Run) -> str:
    """The comparison as one HTML page that needs no network.

    Args:
        a, b: runs of the same study.

    Example:
        >>> gl.views.compare_html(run, run)[:15]
        '<!doctype html>'
    """
    table = compare(a, b)
    about = {section.name: section.about for section in study_of(a).sections}
    cards = [
        _card(section, part, about.get(section, "")) for section, part in table.groupby("section", sort=False)
    ]
    different = [[name, str(x), str(y)] for name, x, y in setting_differences(a, b)]
    settings: Block = Table(["setting", "A", "B"], different, code="AB") if different else Text("None.")
    cards.append(
        Card("Settings that differ", [settings], finding=", ".join(row[0] for row in different) or "none")
    )
    models = [run.settings.get("model", "?") for run in (a, b)]
    names = [f"{side} · {m} · {run.label}" for side, m, run in zip("AB", models, (a, b), strict=True)]
    verdicts = [
        Verdict.from_json(_in_short(run), study_of(run).tones, name)
        for name, run in zip(names, (a, b), strict=True)
    ]
    method = {"interval": f"Under each number, {IN_WORDS}", "*": f"{_star(table).capitalize()}."}
    return render(Page(" and ".join(models), ["two runs compared"], verdicts, cards, method))


def _in_short(run: Run) -> dict[str, Any]:
    """The verdict without its evidence; of a run from before there were answers, the first sentence."""
    said = verdict_of(run)
    return {"answer": f"{said['sentence'].split('. ')[0].removesuffix('.')}.", **said, "evidence": ()}


def _card(section: str, part: pd.DataFrame, about: str) -> Card:
    """One section, both runs side by side, a table a metric."""
    marked = "B − A with its 95 % interval; * where that excludes 0."
    if part.difference_low.isna().all():
        marked = "B − A has no interval here."
    blocks: list[Block] = [Text(f"{about[:1].upper()}{about[1:]}. {marked}" if about else marked)]
    blocks += [
        _table(how, metric, mine) for (how, metric), mine in part.groupby(["how", "metric"], sort=False)
    ]
    title = section.replace("_", " ").capitalize()
    return Card(title, blocks, name=section, finding=_finding(part))


def _finding(part: pd.DataFrame) -> str:
    why = "; ".join(part.unpaired[~part.paired].unique())
    if part.difference_low.isna().all():
        return f"{len(part)} differences, which have no interval: {why}"
    said = f"{int(part.paired.sum())} of them paired by example; the others not: {why}"
    if part.paired.all():
        said = "paired by example"
    elif not part.paired.any():
        said = f"unpaired, from the intervals of both means: {why}"
    return f"{int(part.apart.sum())} of {len(part)} intervals exclude 0 ({said})"


def _table(how: str, metric: str, part: pd.DataFrame) -> Table:
    is_knockout = how in ("zero", "mask")
    counts = [f"{side}\nn = {int(part[f'n_{side.lower()}'].max()):,}" for side in "AB"]
    rows: list[list[Cell]] = [
        [
            str(r.row),
            _written(r.mean_a, r.low_a, r.high_a),
            _written(r.mean_b, r.low_b, r.high_b),
            (
                f"{signed(r.difference)}{' *' if r.apart else ''}",
                span(r.difference_low, r.difference_high) if pd.notna(r.difference_low) else "",
            ),
        ]
        for r in part.itertuples()
    ]
    title = (
        f"{metric[0].upper()}{metric[1:]}{f', knockout {how}' if is_knockout else f', {how}' if how else ''}"
    )
    return Table(["row", *counts, "B − A"], rows, title=title)


def _written(mean: float, low: float, high: float) -> Cell:
    return (number(mean), span(low, high)) if pd.notna(low) else number(mean)


def _star(table: pd.DataFrame) -> str:
    """What marks a difference, and how its interval came about."""
    how = {
        (True,): "of the same examples, paired",
        (False,): "of different examples or of means alone, from both intervals",
    }.get(
        tuple(table.paired.unique()), "paired where the examples are the same, otherwise from both intervals"
    )
    return f"the 95 % interval of the difference ({how}) excludes 0"


def _headline(run: Run) -> str:
    return f"{verdict_of(run)['headline']} ({run.manifest['settings'].get('model', '?')})"
