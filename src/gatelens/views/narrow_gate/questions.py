"""The kinds of question on the page: what is left of each when a path is cut, and what that is worth."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd

from gatelens.errors import DataError
from gatelens.plots import card
from gatelens.plots.numbers import percent
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import styled
from gatelens.runs import Run
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE
from gatelens.studies.narrow_gate.verdict import DISTRIBUTED, INCONCLUSIVE, NARROW

ROWS = (NONE, GATE, IMAGE, FLOOR)
MOST_GROUPS = 8  # kinds in the figure; data with more show the most frequent ones
WORDS = {
    "kind of question": (
        "As the data name it (emoji-scenes: what is asked for; VQAv2: its answer type; MME: its subset). The answers "
        "are those of the knockout table; kinds with few questions there got further ones."
    ),
    "blind": (
        "VQA accuracy of always giving the one answer that fits most often to these questions. Where the unmodified "
        "model is no better, its answers say nothing about the picture. A floor below it is raised to it, so that a "
        "cut after which the model does worse than guessing removes more than 100 %."
    ),
    "removed": (
        "(unmodified − cut) / (unmodified − floor), in per cent with its paired bootstrap interval over the questions; "
        "the verdict of a kind follows the same rule as that of a task."
    ),
}


def cards(run: Run) -> list[card.Card]:
    """Bars and table of every kind of knockout, where the data name kinds of questions."""
    if not run.done("question_kinds"):
        return []
    table, shares = run.table("question_kinds"), run.table("question_kinds_shares")
    hows = list(dict.fromkeys(table.how))
    blocks: list[card.Block] = []
    for how in hows:
        name = "question_kinds" if len(hows) == 1 else f"question_kinds_{how}"
        mine = shares[shares.how == how]
        blocks.append(
            card.Chart(name, lambda dark, how=how: question_bars(table, how, dark), caption(mine))  # type: ignore[misc]
        )
        title = f"Knockout {how}" if len(hows) > 1 else ""
        blocks.append(shares_table(table[table.how == how], mine, title))
    return [card.Card("Which questions the gate is enough for", blocks, WORDS)]


def caption(shares: pd.DataFrame) -> str:
    """What the bars show, and the kinds by verdict."""
    text = (
        "VQA accuracy by kind of question when the text can no longer read the named tokens. Whiskers: 95 % bootstrap "
        "interval over questions; the dashed line is the best blind guess."
    )
    names = _names(shares)
    said = {
        NARROW: "The gate carries most of what the picture is worth to {}.",
        DISTRIBUTED: "The image tokens themselves carry most of what the picture is worth to {}.",
        "mixed": "Neither path alone explains {}.",
        INCONCLUSIVE: "Nothing can be said of {}.",
    }
    for verdict, sentence in said.items():
        found = [n for n, v in zip(names, shares.verdict, strict=True) if v == verdict]
        if found:
            text += " " + sentence.format(", ".join(found))
    if len(shares) > MOST_GROUPS:
        text += (
            f" The figure shows the {MOST_GROUPS} kinds with the most questions, the table all {len(shares)}."
        )
    return text


def shares_table(table: pd.DataFrame, shares: pd.DataFrame, title: str = "") -> card.Table:
    """A row a kind: the scores, the blind guess, what each cut removes, the verdict."""
    heads = ["kind of question", *ROWS, "blind", "gate cut\nremoves", "image cut\nremoves", "verdict"]
    rows: list[list[str | tuple[str, str]]] = []
    for name, one in zip(_names(shares), shares.to_dict("records"), strict=True):
        mine = table[(table.task == one["task"]) & (table.kind == one["kind"])].set_index("row")
        cells: list[str | tuple[str, str]] = [(name, f"n = {one['n']}")]
        for row in ROWS:
            found = mine.loc[row]
            cells.append((f"{found['mean']:.2f}", f"{found['low']:.2f} – {found['high']:.2f}"))
        cells.append(f"{one['chance']:.2f}")
        for cut in ("gate", "image"):
            known = one["verdict"] != INCONCLUSIVE
            low, high = percent(one[f"{cut}_low"]), percent(one[f"{cut}_high"])
            cells.append((percent(one[cut]), f"{low} to {high}") if known else "–")
        cells.append(one["verdict"])
        rows.append(cells)
    why = {
        f"{name}: {one['why']}"
        for name, one in zip(_names(shares), shares.to_dict("records"), strict=True)
        if one["verdict"] == INCONCLUSIVE
    }
    text = "" if not why else "; ".join(sorted(why)) + "."
    return card.Table(heads, rows, text[:1].upper() + text[1:], title)


def _names(shares: pd.DataFrame) -> list[str]:
    several = shares.task.nunique() > 1
    return [f"{k} ({t})" if several else str(k) for k, t in zip(shares.kind, shares.task, strict=True)]


def question_bars(table: pd.DataFrame, how: str | None = None, dark: bool = False) -> Figure:
    """A group of bars a kind of question, one a cut; the blind guess as a dashed line across the group.

    Args:
        table: ``how, task, kind, row, mean, low, high, n, chance`` as a study's ``question_kinds`` table.
        how: which kind of knockout; None is the first.
        dark: draw on dark ground.

    Raises:
        DataError: the table has no such ``how``.
    """
    hows = list(dict.fromkeys(table.how))
    how = how or (hows[0] if hows else "none")
    part = table[table.how == how]
    if part.empty:
        raise DataError(
            f"the table of question kinds has no rows with how={how!r} (it has: {', '.join(hows) or 'none'})"
        )
    groups = part[part.row == NONE].nlargest(MOST_GROUPS, "n").sort_index()
    places = list(zip(groups.task, groups.kind, strict=True))
    names = [
        "\n".join([*textwrap.wrap(n.replace("_", " "), 15), f"n = {int(c)}"])
        for n, c in zip(_names(groups), groups.n, strict=True)
    ]
    x, width = np.arange(len(groups)), 0.2
    with styled(dark) as p:
        figure = Figure(figsize=(max(5.5, 1.45 * len(groups) + 0.8), 3.9), layout="constrained")
        axes = figure.subplots()
        colors = {NONE: p.neutral, GATE: p.gate, IMAGE: p.image, FLOOR: p.faint}
        labels = {NONE: "unmodified", FLOOR: f"{FLOOR} (floor)"}
        for i, row in enumerate(ROWS):
            one = part[part.row == row].set_index(["task", "kind"]).loc[places]
            place = x + (i - (len(ROWS) - 1) / 2) * width
            label = labels.get(row, row)
            axes.bar(place, one["mean"], width * 0.92, color=colors[row], label=label)
            whiskers = [(one["mean"] - one.low).clip(lower=0), (one.high - one["mean"]).clip(lower=0)]
            axes.errorbar(
                place, one["mean"], yerr=whiskers, fmt="none", ecolor=p.ink, elinewidth=1, capsize=2
            )
        dashes = {"color": p.ink, "linewidth": 1.3, "linestyle": (0, (3, 2))}
        axes.hlines(groups.chance, x - 0.46, x + 0.46, label="blind guess", **dashes)
        axes.set_xticks(x, names)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_ylim(0, 1.05)
        axes.set_ylabel("VQA accuracy")
        axes.set_title("Answers by kind of question with a path cut")
        axes.tick_params(bottom=False)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=5, fontsize=8.5, labelcolor=p.ink, frameon=False)
    return figure
