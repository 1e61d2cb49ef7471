"""Section *progressive*: from which layer on does the text no longer need the gate?

The paper's progressive knockout (Serra et al. 2025, arXiv 2412.06646): the path is cut from layer l to the last, for
one l after the other. Beside it the path is cut in a window of layers alone, which tells layers that carry the
picture from layers that merely come before those that do. The section gives no evidence of its own: from layer 0 on
it is the knockout table's row, so its curve can fall only where that row does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from gatelens.data import Example
from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.examples import Labels, prepare
from gatelens.interventions import knockout
from gatelens.measures.stats import CHANGE, summary
from gatelens.measures.windows import effect_of_starts, layer_windows, smallest_window
from gatelens.model import HookedVLM
from gatelens.plots.card import Block, Card, Cell, Chart, Table
from gatelens.plots.curve import curves
from gatelens.plots.numbers import MISSING, number, signed, span
from gatelens.plots.style import NotebookFigure, ReferenceLine, SeriesStyle
from gatelens.plots.tidy import rows_with
from gatelens.runs import Run
from gatelens.studies.narrow_gate import knockout_table as rows
from gatelens.studies.options import AtLeastOne, Examples, How, Options, kinds_of_knockout
from gatelens.studies.section import VALUES, Absent, Batch, Measured, Section, Setup, Tables, cells, span_of

FROM, WINDOW, UNCUT = "from", "window", "none"
KEYS = {"gate": "gate", "image": rows.IMAGE_SIDE}
BOTH = "gate + image"
WIDE, DEEP = 8, 24  # the paper's window, and the number of layers from which on it is the default
CARRIES = 0.9  # part of the whole effect that the layers named carry


WORDS = {
    "progressive knockout": (
        "“From layer l to the last”: the text cannot read the named tokens in layer l or any later one. “Window”: it "
        "cannot in layers l to l + w − 1 alone. From layer 0 on it is the row of the knockout table, on the first of "
        "its examples."
    ),
    "layers that carry the effect": (
        "A start layer adds what cutting from it on costs more than cutting from the next start on. The curve is "
        "first made monotone, so noise adds no negative part. Named are the fewest layers in a row that hold 90 % of "
        "the sum. Cutting all layers must cost something, with its paired interval above 0."
    ),
}


class ProgressiveOptions(Options):
    """Examples, and the layers cut at once."""

    n: Annotated[Examples, Field(description="Examples of the task class.")] = 200
    n_vqa: Annotated[Examples, Field(description="Questions.")] = 100
    window: Annotated[
        AtLeastOne | None,
        Field(description="Layers cut at once. Default: the paper's 8 from 24 layers on, else 1."),
    ] = None
    step: Annotated[
        AtLeastOne | None, Field(description="Layers between two starts. Default: the window.")
    ] = None


@dataclass(frozen=True)
class Point:
    """One run: ``keys`` hidden from the text in ``layers``; none of either is the unmodified model.

    ``layer`` is the first of them, −1 where nothing is cut.
    """

    keys: str
    way: str
    layer: int
    layers: range

    def specs(self, how: How) -> list[Any]:
        """Its interventions."""
        if not self.layers:
            return []
        keys = " | ".join(KEYS.values()) if self.keys == BOTH else KEYS[self.keys]
        return [knockout(queries=rows.QUERIES, keys=keys, layers=self.layers, how=how)]


@dataclass(frozen=True)
class Curve(Batch):
    """Examples of one task, answered at every point; ``start`` numbers the first."""

    task: str
    start: int
    examples: Sequence[Example]
    hows: Sequence[How]
    points: Sequence[Point]
    max_new_tokens: int


def points(n_layers: int, window: int | None = None, step: int | None = None) -> list[Point]:
    """Every run of the section: unmodified, both paths cut in all layers, then each path both ways.

    Raises:
        DataError: a window or step that does not fit.
    """
    width = (WIDE if n_layers >= DEEP else 1) if window is None else window
    stride = width if step is None else step
    if not (1 <= width <= n_layers and 1 <= stride <= n_layers):
        raise DataError(
            f"section 'progressive': window={window}, step={step} do not fit {n_layers} layers; use 1..{n_layers}"
        )
    every = [Point(UNCUT, UNCUT, -1, range(0)), Point(BOTH, FROM, 0, range(n_layers))]
    for keys in KEYS:
        every += [Point(keys, FROM, s, range(s, n_layers)) for s in range(0, n_layers, stride)]
        every += [Point(keys, WINDOW, span[0], span) for span in layer_windows(n_layers, width, stride)]
    return every


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """Batches of classes and questions, every point on each."""
    options, study = setup.section_options["progressive"], setup.options
    most = {"class": options.n, "vqa": options.n_vqa}
    tasks = [(task, drawn[: most[kind(task)]]) for task, drawn in setup.examples("class", "vqa")]
    if not any(drawn for _, drawn in tasks):
        raise Absent("the data has no classes and no questions")
    hows = kinds_of_knockout(study.how)
    wanted = points(setup.n_layers, options.window, options.step)
    units = len(hows) * len({(p.keys, p.layers) for p in wanted})
    return [
        Curve(f"{task}-{i:04d}", task, start, part, hows, wanted, study.longest(task), units=units)
        for task, drawn in tasks
        for i, start, part in setup.batched_by_length(drawn)
    ]


def measure(model: HookedVLM, batch: Curve) -> Tables:
    """``scores``: ``how, task, keys, way, layer, last, id, score`` of every point.

    Points that cut the same layers (the last window is also the last start; the unmodified model is the same under
    every kind of knockout) are one run.
    """
    asked = {
        (None if p.keys == UNCUT else how, p.keys, p.layers): p.specs(how)
        for how in batch.hows
        for p in batch.points
    }
    inputs, labels = prepare(model, batch.examples, batch.start), Labels(model, any_word=True)
    outcomes = rows.outcomes(model, inputs, batch.task, list(asked.values()), batch.max_new_tokens)
    scored = {
        key: rows.evaluate(model, batch.examples, batch.task, outcome, labels, ())
        for key, outcome in zip(asked, outcomes, strict=True)
    }
    parts = []
    for how in batch.hows:
        for p in batch.points:
            mine = scored[None if p.keys == UNCUT else how, p.keys, p.layers]
            last = p.layers[-1] if p.layers else -1
            place = {"keys": p.keys, "way": p.way, "layer": p.layer, "last": last}
            parts.append(pd.DataFrame({"how": how, "task": batch.task, **place, **mine[["id", "score"]]}))
    return {"scores": pd.concat(parts, ignore_index=True)}


def summarise(answers: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """The curves: ``how, task, metric, keys, way, layer, last, mean, low, high, drop, drop_low, drop_high, n``.

    ``layer … last`` are cut; ``drop`` is the unmodified score minus this one, its interval paired by example (95 %,
    as all).
    """
    place, asked = ["how", "task", "metric", "keys", "way", "layer", "last"], ["how", "task", "id"]
    clean = answers[answers["keys"] == UNCUT].set_index(asked).score.rename("clean")
    table = answers.assign(metric=answers.task.map(rows.metric_of)).join(clean, on=asked)
    table["drop"] = table.clean - table.score
    scores = summary(table, place, n_boot=n_boot, seed=seed)
    names = ("drop", "drop_low", "drop_high")
    drops = summary(table, place, "drop", bounds=CHANGE, n_boot=n_boot, seed=seed, names=names)
    return scores.drop(columns="n").merge(drops, on=place)


def carriers(curve: pd.DataFrame) -> pd.DataFrame:
    """Which layers carry the effect of each cut in the table ``progressive``, one row a ``how, task, keys``.

    ``how, task, metric, keys, drop, drop_low, drop_high, n`` of the cut in all layers; ``first … last``, the fewest
    layers in a row that carry 90 % of it (read off the starts, −1 where there is no effect); ``free_from``, the first
    start from which on no cut lowers the score measurably (its paired interval reaches 0; −1 where even the last start
    does), and ``free_most``, the largest upper end of those intervals.
    """
    lines = []
    cuts = curve[(curve.way == FROM) & curve["keys"].isin(KEYS)]
    for (how, task, metric, keys), part in cuts.groupby(["how", "task", "metric", "keys"], sort=False):
        part = part.sort_values("layer")
        whole = part.iloc[0]
        row: dict[str, Any] = {"how": how, "task": task, "metric": metric, "keys": keys}
        row |= {name: float(whole[name]) for name in ("drop", "drop_low", "drop_high")} | {"n": int(whole.n)}
        row |= {"first": -1, "last": -1}
        window = smallest_window(effect_of_starts(list(part["drop"])), CARRIES)
        if whole.drop_low > 0 and window is not None:
            starts = [*part.layer, int(whole["last"]) + 1]
            row |= {"first": int(starts[window.layers[0]]), "last": int(starts[window.layers[-1] + 1]) - 1}
        matters = (part.drop_low > 0).to_numpy()
        free = part[~np.logical_or.accumulate(matters[::-1])[::-1]]
        row["free_from"] = int(free.layer.iloc[0]) if len(free) else -1
        row["free_most"] = float(max(0.0, free.drop_high.max())) if len(free) else float("nan")
        lines.append(row)
    return pd.DataFrame(lines)


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``progressive_scores``, ``progressive`` and ``progressive_layers``."""
    answers = measured.table("scores")
    curve = summarise(answers, setup.options.n_boot, setup.options.seed)
    return {"progressive_scores": answers, "progressive": curve, "progressive_layers": carriers(curve)}


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """A curve's numbers, with a word for the run in which no layer is cut."""
    named = {column: ["uncut" if n < 0 else str(n) for n in table[column]] for column in ("layer", "last")}
    return table.assign(**named)


def page(run: Run) -> list[Card]:
    """The curves of every kind of knockout."""
    table, layers = run.table("progressive"), run.table("progressive_layers")
    charts: list[Block] = []
    for how, name, title in rows.kinds_shown(table, "progressive"):
        says = (f"{title}. " if title else "") + _caption(table[table.how == how])
        mine = table[table.how == how].drop(columns="how")
        charts.append(Chart(name, partial(progressive_curves, table, how), says, _numbers(mine)))
        charts.append(_layers_table(layers[layers.how == how]))
    return [Card("In which layers the path matters", charts, WORDS, short="Layers", finding=_finding(layers))]


def _finding(layers: pd.DataFrame) -> str:
    """The layers that carry most, of the first task."""
    first = layers[(layers.how == layers.how.iloc[0]) & (layers.metric == layers.metric.iloc[0])]
    said = [f"{r['keys']}: {_span(r)}" for r in first.to_dict("records") if r["first"] >= 0]
    return (
        f"90 % of the effect on {first.metric.iloc[0]} by {'; '.join(said)}"
        if said
        else "no cut costs anything"
    )


def _caption(table: pd.DataFrame) -> str:
    """What the curves show."""
    width = _width(table)
    window = "one layer" if width == 1 else f"{width} layers"
    return (
        "Left: text cannot read the gate (orange) or the image tokens (blue) from layer l to the last. Where a curve "
        f"is low, what text needs is read in layer l or later. Right: cut in {window} alone. Bands: 95 % intervals."
    )


def _layers_table(layers: pd.DataFrame) -> Table:
    """What cutting every layer costs, and the layers that carry it."""
    lines: list[list[Cell]] = []
    for r in layers.to_dict("records"):
        cost = (signed(-r["drop"]), span(-r["drop_high"], -r["drop_low"]))
        free = (
            MISSING
            if r["free_from"] < 0
            else (f"layer {r['free_from']}", f"costs at most {number(r['free_most'])}")
        )
        known = r["first"] >= 0
        carry = _span(r) if known else "nothing to carry"
        lines.append([(f"{r['keys']} → text", r["metric"]), cost, carry, free if known else MISSING])
    return Table(["path cut", "cost of cutting\nevery layer", "90 % of it in", "free from"], lines)


def _span(row: dict[str, Any]) -> str:
    one = row["first"] == row["last"]
    return f"layer {row['first']}" if one else f"layers {row['first']}–{row['last']}"


def _width(table: pd.DataFrame) -> int:
    windows = table[table.way == WINDOW]
    return int((windows["last"] - windows.layer + 1).max())


def progressive_curves(table: pd.DataFrame, how: str | None = None, dark: bool = False) -> NotebookFigure:
    """Score against the start layer, a row of panels a metric: cut to the last layer, and in a window.

    ``how`` None is the first kind of knockout in a study's ``progressive`` table.

    Raises:
        DataError: the table has no such ``how``.
    """
    part = rows_with(table, "how", how, "the progressive table")
    width = _width(part)
    alone = "layer l" if width == 1 else f"layers l to l + {width - 1}"
    unmodified, floor = (
        part[part["keys"] == keys].groupby("metric")["mean"].first().to_dict() for keys in (UNCUT, BOTH)
    )
    return curves(
        part[part["keys"].isin(KEYS)],
        [
            SeriesStyle("gate", "gate → text", "gate"),
            SeriesStyle("image", "image → text", "image", marker="s"),
        ],
        by="keys",
        rows="metric",
        columns="way",
        references=[
            ReferenceLine(unmodified, "unmodified", (1, (1, 1.5))),
            ReferenceLine(floor, "floor: both cut in every layer", (4, (4, 2))),
        ],
        titles={FROM: "cut from layer l to the last", WINDOW: f"cut in {alone} alone"},
        xlabel="layer l",
        dark=dark,
    )


def compared(run: Run) -> pd.DataFrame:
    """The points of the curves, for the comparison of two runs."""
    table = run.table("progressive")
    return cells(table, table.metric, _point_names(table))


def compared_values(run: Run) -> pd.DataFrame:
    """The scores of every example at each point."""
    table = run.table("progressive_scores")
    named = table.assign(metric=table.task.map(rows.metric_of), row=_point_names(table), value=table.score)
    return named.assign(span=[span_of(rows.bounds_of(task)) for task in table.task])[VALUES]


def _point_names(table: pd.DataFrame) -> pd.Series:
    """Such as ``gate → text, from layer 2 on``, ``gate → text, in layer 2 alone``, ``none``."""

    def named(keys: str, way: str, layer: int, last: int) -> str:
        if way == UNCUT:
            return UNCUT
        alone = f"in layer {layer} alone" if layer == last else f"in layers {layer}–{last} alone"
        return f"{keys} → text, {f'from layer {layer} on' if way == FROM else alone}"

    columns = (table[name] for name in ("keys", "way", "layer", "last"))
    return pd.Series([named(*place) for place in zip(*columns, strict=True)], table.index, dtype=object)


SECTION = Section(
    "progressive",
    "each path cut from layer l to the last: the paper’s progressive knockout",
    batches,
    measure,
    conclude,
    ProgressiveOptions,
    page=page,
    cells=compared,
    values=compared_values,
)
