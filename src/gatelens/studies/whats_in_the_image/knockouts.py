"""Section *knockouts*: what is still named when the query rows, the generated rows or both cannot see the image.

Each path is cut in all layers and from one layer after another on. From that curve the window of layers in which most
is read is found, and each path is cut only there, and everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gatelens.data import Example
from gatelens.engine import generate_many
from gatelens.examples import prepare
from gatelens.model import HookedVLM
from gatelens.plots.bars import bars
from gatelens.plots.card import Block, Card, Cell, Chart, Table, Text
from gatelens.plots.curve import curves
from gatelens.plots.numbers import MISSING, number, percent, percent_span
from gatelens.plots.style import NotebookFigure, ReferenceLine, SeriesStyle, palette
from gatelens.plots.tidy import rows_with
from gatelens.runs import Run
from gatelens.studies.options import How, kinds_of_knockout
from gatelens.studies.section import Batch, Measured, Section, Setup, Tables
from gatelens.studies.whats_in_the_image.configurations import (
    ALL,
    BOTH,
    FROM,
    GENERATED,
    NONE,
    OUTSIDE,
    QUERY,
    WITHIN,
    Configuration,
    FirstToken,
    by_start,
    by_window,
    curve_starts,
    span,
)
from gatelens.studies.whats_in_the_image.pictures import objects_in, vocabulary_of
from gatelens.studies.whats_in_the_image.scores import (
    F1,
    PLACE,
    find_window,
    judge_of,
    scored,
    summarise,
    unmodified,
)
from gatelens.studies.whats_in_the_image.verdict import kept_shares, lost_share

SERIES = (
    SeriesStyle(GENERATED, color="image", marker="^"),
    SeriesStyle(QUERY, color="gate", marker="s"),
    SeriesStyle(BOTH, color="neutral", marker="o"),
)

WORDS = {
    "query tokens": (
        "All tokens of the prompt that are not image tokens, as in the paper. System text and the markers around the "
        "image are among them, an end-of-image token too."
    ),
    "image → generated": (
        "A knockout of X → Y: rows Y cannot read the image tokens in any layer or head, nor while generating. "
        "Generated: rows at generated positions. Both: query and generated rows."
    ),
    "knockout mask": (
        "Attention scores of the cut tokens are −∞ before the softmax, so the row renormalises, as in the paper’s code."
    ),
    "knockout zero": "Attention to the cut tokens is set to 0 after the softmax. The row is not renormalised.",
    "first token sees": (
        "The prompt’s last row writes the first new token. As in the paper’s code, it still sees the image when image "
        "→ generated is cut."
    ),
    "first token blocked": (
        "The prompt’s last row writes the first new token. It loses the image too when image → generated is cut; in "
        "the paper’s code it does not."
    ),
    "object F1": (
        "Objects named under the knockout against those of the unmodified description: 2 · common ÷ (named in one + "
        "named in the other). Mean over pictures whose unmodified description names an object. An object named twice "
        "counts once."
    ),
    "from layer l on": "The path is cut in layer l and all later ones; 0 is every layer.",
    "window": (
        "The quarter of the layers that holds most of the change of the image → both curve. It is found, not set by "
        "hand. The path is then cut only there, and everywhere else."
    ),
    "object precision": "The share of objects named that the unmodified description names too.",
    "object recall": "The share of the unmodified description’s objects that are still named.",
    "object F1 against truth": "The same F1 against the objects that are in the picture.",
    "judge offline": "Objects are found by a list of names and synonyms, singular or plural, the longest phrase first.",
    "judge": "Objects are listed and matched by the judge {judge}; its prompts and replies are kept with the run.",
}
FIRST = (
    "query tokens",
    "image → generated",
    "knockout mask",
    "knockout zero",
    "object F1",
)  # of the first screen
ALWAYS_SAID = {"query tokens", "image → generated", "from layer l on", "window"}


@dataclass(frozen=True)
class KnockoutBatch(Batch):
    """Pictures to be described under several configurations.

    Attributes:
        start: number of the first picture in the study.
        examples: pictures and prompts.
        configurations, hows: every configuration under every kind of knockout.
        first_token: whether the row that writes the first token is among the generated ones.
        max_new_tokens: the longest description.
    """

    start: int
    examples: Sequence[Example]
    configurations: Sequence[Configuration]
    hows: Sequence[How]
    first_token: FirstToken
    max_new_tokens: int


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """The curve; once that is measured, also the window found from it."""
    n_layers = setup.n_layers
    work = _batches(setup, "curve", by_start(n_layers, curve_starts(n_layers)))
    if all(batch.name in measured for batch in work):
        window = find_window(_predictions(setup, measured), _hows(setup)[0], n_layers)
        if window is not None:
            start, stop = int(str(window["start"])), int(str(window["stop"]))
            work += _batches(setup, f"window-{start}-{stop}", by_window(n_layers, start, stop))
    return work


def _batches(setup: Setup, name: str, configurations: Sequence[Configuration]) -> list[Batch]:
    """All pictures under these configurations, no batches where there are none."""
    options, hows = setup.options, _hows(setup)
    return [
        KnockoutBatch(
            f"{name}-{number:04d}", start, part, configurations, hows, options.first_token, options.longest,
            units=len(configurations) * len(hows),
        )
        for number, start, part in setup.batched_by_length(setup.drawn["pictures"])
        if configurations
    ]  # fmt: skip


def _hows(setup: Setup) -> tuple[How, ...]:
    """The kinds of knockout, the paper's first."""
    return kinds_of_knockout(setup.options.how, first="mask")


def measure(model: HookedVLM, batch: KnockoutBatch) -> Tables:
    """``texts``: the columns of ``PLACE``, ``id`` and the ``text`` written under every configuration."""
    n_layers = int(model.cfg.n_layers)
    places = [(how, c) for how in batch.hows for c in batch.configurations]
    runs = [c.specs(n_layers, how, batch.first_token) for how, c in places]
    inputs = prepare(model, batch.examples, batch.start)
    outcomes = generate_many(model, inputs, runs, batch.max_new_tokens)
    rows = [
        (how, c.name, c.path, c.scope, c.start, c.stop, e.id, text)
        for (how, c), outcome in zip(places, outcomes, strict=True)
        for e, text in zip(batch.examples, outcome.texts, strict=True)
    ]
    return {"texts": pd.DataFrame(rows, columns=[*PLACE, "id", "text"])}


def _predictions(setup: Setup, measured: Measured) -> pd.DataFrame:
    """All texts with their scores, those of the unmodified model first."""
    options, drawn = setup.options, setup.drawn["pictures"]
    written = setup.run.table("descriptions")
    descriptions = dict(zip(written.id, written.text, strict=True))
    texts = [unmodified(descriptions, _hows(setup)), measured.table("texts")]
    vocabulary = options.vocabulary or vocabulary_of(setup.data, drawn)
    judge = judge_of(options.judge, setup.run.path, vocabulary)
    truth = {e.id: objects_in(e) for e in drawn}
    return scored(pd.concat(texts, ignore_index=True), descriptions, truth, judge)


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``predictions``, ``knockout``, ``shares`` and ``window``."""
    n_boot, seed = setup.options.n_boot, setup.options.seed
    predictions = _predictions(setup, measured)
    return {
        "predictions": predictions,
        "knockout": summarise(predictions, n_boot, seed),
        "shares": kept_shares(predictions, n_boot, seed),
        "window": find_window(predictions, _hows(setup)[0], setup.n_layers),
    }


def page(run: Run) -> list[Card]:
    """Figures and tables of every kind of knockout."""
    table, window = run.table("knockout"), run.json("window")
    hows = list(table.how.unique())
    blocks: list[Block] = []
    for how in hows:
        blocks += _blocks(table[table.how == how], chance_of(run), window, how, only=len(hows) == 1)
    shares = run.table("shares")
    shares = shares[shares.n > 0] if len(shares) else shares
    if len(shares):
        blocks.append(_shares_lost(shares))
    if not blocks:
        blocks.append(
            Text(
                "No unmodified description names an object that the judge knows, so that nothing can be lost."
            )
        )
    title = "What is still named when a path is cut"
    return [Card(title, blocks, words_of(run), short="Knockouts", finding=_finding(table))]


def _shares_lost(shares: pd.DataFrame) -> Table:
    """The numbers of the verdict: what each path, cut in all layers, loses of what the picture is worth."""

    def lost(row: Mapping[str, Any], name: str) -> Cell:
        share, low, high = lost_share(row, name)
        return (percent(share), percent_span(low, high)) if pd.notna(low) else MISSING

    rows: list[list[Cell]] = [
        [f"knockout {r['how']}", number(r["floor"]), lost(r, "generated"), lost(r, "query"), str(r["n"])]
        for r in shares.to_dict("records")
    ]
    header = ["", "floor", f"lost:\n{GENERATED}", f"lost:\n{QUERY}", "n"]
    caption = (
        "Cut in all layers. The share of 1 minus “floor” that a cut loses; 1 is the unmodified description."
    )
    return Table(header, rows, title=f"Lost, of the {F1} that the picture is worth", caption=caption)


def words_of(run: Run) -> dict[str, str]:
    """The terms that the tables of a run use."""
    table, settings = run.table("knockout"), run.settings
    judge = "judge offline" if settings["judge"] == "offline" else "judge"
    used = ALWAYS_SAID | set(table.metric) | {f"knockout {how}" for how in table.how}
    used |= {f"first token {settings['first_token']}", judge}
    return {term: text.format(**settings) for term, text in WORDS.items() if term in used}


def _finding(table: pd.DataFrame) -> str:
    """F1 with each path cut in all layers."""
    means = table[(table.metric == F1) & (table.scope == ALL)].groupby("path", sort=False)["mean"].first()
    said = ", ".join(f"{path} cut {number(mean)}" for path, mean in means.items())
    return f"{F1}: {said}" if said else ""


def _blocks(
    table: pd.DataFrame, chance: float | None, window: Mapping[str, Any] | None, how: str, only: bool
) -> list[Block]:
    """Figures and tables of one kind of knockout; the curve's points are folded away."""
    name, title = ("knockout", "") if only else (f"knockout_{how}", f"Knockout {how}")
    blocks: list[Block] = []
    if F1 in set(table.metric):
        shaded = (
            "" if window is None else " Shaded: the window, where the curve of image → both changes most."
        )
        caption = (
            "Objects of the unmodified description still named when query rows, generated rows or both cannot see the "
            f"image. Where a curve is high, what it cuts is not needed.{shaded} Bands: 95 % intervals."
        )
        blocks.append(Chart(name, lambda dark: knockout_curves(table, chance, window, how, dark), caption))
    if window is not None and table.scope.isin([WITHIN, OUTSIDE]).any():
        layers = span(int(window["start"]), int(window["stop"]))
        caption = f"The same with a path cut only in layers {layers}, and in all layers but these."
        name = name.replace("knockout", "knockout_window")
        blocks.append(Chart(name, lambda dark: window_bars(table, chance, window, dark), caption))
    rows, points = table[table.scope != FROM], table[table.scope == FROM]
    corner, fold = "attention cut", "Every point of the curve"
    return [
        *blocks,
        Table.from_means(rows, corner=corner, title=title, controls=[NONE]),
        Table.from_means(points, corner=corner, count=False, fold=fold),
    ]


def chance_of(run: Run) -> float | None:
    """F1 of another picture's description; None where no unmodified description names an object."""
    predictions = run.table("predictions")
    unmodified_ones = predictions[(predictions.path == NONE) & predictions.f1.notna()]
    return float(unmodified_ones.chance.mean()) if len(unmodified_ones) else None


def _references(chance: float | None) -> list[ReferenceLine]:
    return [] if chance is None else [ReferenceLine(chance, "another picture’s description")]


def knockout_curves(
    table: pd.DataFrame, chance: float | None, window: Mapping[str, Any] | None, how: str, dark: bool = False
) -> NotebookFigure:
    """Object F1 when a path is cut from layer l on, with the window shaded and ``chance`` as a line.

    Raises:
        DataError: the table has no such ``how``.
    """
    part = rows_with(table[table.metric == F1], "how", how, "knockout table of F1")
    line = part[part.scope.isin([ALL, FROM])].rename(columns={"start": "layer"})
    figure = curves(
        line, SERIES, by="path", references=_references(chance), title="Cut from layer l to the last",
        xlabel="first layer of the cut, l  (0: all layers)", ylabel=F1, ylim=(-0.02, 1.13),
        dark=dark,
    )  # fmt: skip
    if window is not None:
        colors, axes = palette(dark), figure.axes[0]
        start, stop = int(window["start"]), int(window["stop"])
        axes.axvspan(start - 0.5, stop - 0.5, color=colors.faint, alpha=0.25, linewidth=0)
        middle, text = (start + stop - 1) / 2, f"layers {span(start, stop)}"
        axes.text(middle, 1.06, text, ha="center", fontsize=8.5, color=colors.soft)
    return figure


def window_bars(
    table: pd.DataFrame, chance: float | None, window: Mapping[str, Any], dark: bool = False
) -> NotebookFigure:
    """Object F1 when a path is cut only within the window, and everywhere else.

    Raises:
        DataError: nothing was cut in or around a window.
    """
    part = table[(table.metric == F1) & table.scope.isin([WITHIN, OUTSIDE])]
    layers = span(int(window["start"]), int(window["stop"]))
    labels = {WITHIN: f"only in\nlayers {layers}", OUTSIDE: f"in all but\nlayers {layers}"}
    return bars(
        part, groups="scope", by="path", series=SERIES, references=_references(chance), labels=labels,
        title="Cut there, or elsewhere", value_label=F1, top=1.08, values=True, horizontal=False, dark=dark,
    )  # fmt: skip


SECTION = Section(
    "knockouts",
    "the objects still named when generated rows, query rows or both cannot see the image",
    batches,
    measure,
    conclude,
    page=page,
    reads=("descriptions",),
)
