"""Drawing after a picture, on the page: the first drawings, shares and bars."""

from __future__ import annotations

from typing import Any

import pandas as pd

from gatelens.plots import card
from gatelens.plots.numbers import percent
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import Palette, styled
from gatelens.runs import Run
from gatelens.studies.narrow_gate.drawing_table import NO_PICTURE, NONE, chance

BROKEN, FOLLOWS = "class asked", "background of the picture"
IN_TABLE = (
    "class asked",
    "shape asked",
    "colour asked",
    "colour of the picture",
    "background of the picture",
    "colour of the target",
)
PANELS = (
    ("colour asked", "class asked"),
    ("colour asked", "colour asked"),
    ("colour open", "colour of the picture"),
    ("colour open", "background of the picture"),
)
EXAMPLE = {"colour asked": "draw a fox on a red circle.", "colour open": "draw a fox on a circle."}
SAYS = ("says colour of the picture", "says colour of the target")
ALL_TEXT, GATE_TEXT, IMAGE_TEXT = (f"{keys} → text + drawing" for keys in ("gate + image", "gate", "image"))
WORDS = {
    "X → drawing, X → text + drawing": (
        "The drawn image tokens, and the row that draws the first one, cannot read X in any layer or head (−∞ before "
        "the softmax; in the row marked zero 0 after it, without renormalising); text: the request's tokens after the "
        "gate cannot either. Image means the image tokens of the prompt's picture with their start marker."
    ),
    "gate of another picture, steered, random": (
        "The gate's residual stream, entering every layer, is that of another picture (the target); or the mean gate "
        "of pictures with the target's colour minus that of pictures with the prompt's is added in the middle layer; "
        "or a random direction of the same length."
    ),
    "asked, of the picture, of the target": (
        "Class and shape are the model's own answers about the drawing, the likeliest of the possible ones. Colour is "
        "by pixels: the plate colour that most pixels lie near. Background: the same with the backgrounds of the "
        "pictures. Asked are always another class, colour and shape than the picture’s."
    ),
    "says": (
        "The model is asked for the plate's colour in the prompt's picture, under the same edit. A cut row "
        "renormalises, so that a model may then read the image tokens where it otherwise reads the gate."
    ),
}


def cards(run: Run) -> list[card.Card]:
    """Pictures, tables and bars, where the model drew."""
    if not run.done("drawing"):
        return []
    table, drawn = run.table("drawing"), run.json("drawing_pictures")
    blocks: list[card.Block] = [
        card.Chart("drawing", lambda dark: drawing_bars(table, dark), finding(table)),
        pictures(drawn),
        *(shares(table, prompt) for prompt in dict.fromkeys(table.prompt)),
        said(table),
    ]
    return [card.Card("Drawing after a picture", blocks, WORDS)]


def finding(table: pd.DataFrame) -> str:
    """What the numbers come to, in sentences; each comparison holds only where the 95 % intervals are apart."""
    part = table[table.prompt == "colour asked"].set_index(["row", "measure"])

    def share(row: str, measure: str) -> str:
        one = part.loc[(row, measure)]
        return f"{percent(one['mean'])} [{percent(one.low)}, {percent(one.high)}]"

    def apart(a: str, b: str, measure: str) -> bool:
        x, y = part.loc[(a, measure)], part.loc[(b, measure)]
        return bool(x.high < y.low or y.high < x.low)

    n = int(part.n.max())
    text = (
        f"Of {n} drawings asked for in words alone {share(NO_PICTURE, BROKEN)} show the class asked for; behind a "
        f"picture of something else {share(NONE, BROKEN)}"
    )
    text += ": the picture breaks drawing. " if apart(NONE, NO_PICTURE, BROKEN) else ". "
    text += f"{share(NONE, FOLLOWS)} have the background of that picture"
    if not apart(NONE, NO_PICTURE, FOLLOWS):
        return f"{text}, as without it ({share(NO_PICTURE, FOLLOWS)}): no influence is seen."
    text += f" (without it {share(NO_PICTURE, FOLLOWS)})"
    for row, what in ((GATE_TEXT, "the gate"), (IMAGE_TEXT, "the image tokens")):
        moved = apart(row, NONE, FOLLOWS)
        text += f"; with {what} cut off from text and drawing {share(row, FOLLOWS)}"
        text += "" if moved else ", no different"
    if apart(ALL_TEXT, NONE, BROKEN):
        text += f". With both cut off, {share(ALL_TEXT, BROKEN)} show the class asked for again"
    return text + ". Whiskers: 95 % bootstrap interval over drawings; dashed: chance."


def pictures(drawn: dict[str, Any]) -> card.Pictures:
    """The first drawings of the run under every row; nobody picked them."""
    heads = ["", *(f"“{p['text']}”" for p in drawn["prompts"])]
    rows: list[tuple[str, list[tuple[str, str]]]] = [
        ("the prompt’s picture", [(uri, "") for uri in drawn["pictures"]])
    ]
    rows += [(one["row"], [(uri, "") for uri in one["drawn"]]) for one in drawn["rows"]]
    return card.Pictures(heads, rows, "The first drawings of the run, not chosen.")


def shares(table: pd.DataFrame, prompt: str) -> card.Table:
    """One way of asking: rows are interventions, columns what the drawings show."""
    part = table[table.prompt == prompt]
    measures = [m for m in IN_TABLE if m in set(part.measure)]
    heads = ["what is cut or changed", *measures]
    rows = [
        [name, *(_cell(part, name, measure) for measure in measures)] for name in dict.fromkeys(part["row"])
    ]
    title = f"Drawings, {prompt} (n = {int(part.n.max())})"
    return card.Table(heads, rows, f"Asked like “{EXAMPLE[prompt]}”", title, (NO_PICTURE,))


def said(table: pd.DataFrame) -> card.Table:
    """What the model says of the picture under the same edits."""
    part = table[table.measure.isin(SAYS) & (table.prompt == table.prompt.iloc[0])]
    rows = [[name, *(_cell(part, name, m) for m in SAYS)] for name in dict.fromkeys(part["row"])]
    caption = (
        "The same edits while the model says the plate's colour in the prompt's picture: an edit that turns what is "
        "said but not what is drawn acts on the words' path alone."
    )
    return card.Table(["what is cut or changed", *SAYS], rows, caption, "Said, not drawn")


def _cell(part: pd.DataFrame, row: str, measure: str) -> str | tuple[str, str]:
    found = part[(part["row"] == row) & (part.measure == measure)]
    if found.empty:
        return "–"
    one = found.iloc[0]
    return f"{one['mean']:.2f}", f"{one.low:.2f} – {one.high:.2f}"


def drawing_bars(table: pd.DataFrame, dark: bool = False) -> Figure:
    """One panel a measure, one bar an intervention, whiskers the 95 % interval, chance dashed.

    Args:
        table: ``prompt, row, measure, mean, low, high, n`` as a study's ``drawing`` table.
        dark: draw on dark ground.
    """
    names = list(dict.fromkeys(table["row"]))
    with styled(dark) as p:
        figure = Figure(figsize=(9.6, 0.34 * len(names) + 1.4), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (prompt, measure) in zip(panels, PANELS, strict=True):
            part = table[(table.prompt == prompt) & (table.measure == measure)]
            one = part.set_index("row").reindex(names)
            y = range(len(names))
            axes.barh(y, one["mean"], color=[_color(name, p) for name in names], height=0.68)
            whiskers = [(one["mean"] - one.low).clip(lower=0), (one.high - one["mean"]).clip(lower=0)]
            axes.errorbar(one["mean"], y, xerr=whiskers, fmt="none", ecolor=p.ink, elinewidth=1, capsize=2)
            axes.axvline(chance(measure), color=p.soft, linewidth=1, linestyle="--")
            axes.set_xlim(0, 1.04)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_title(f"{measure}\n“{EXAMPLE[prompt].replace(' on', chr(10) + 'on')}”", fontsize=7.8)
            axes.tick_params(left=False)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
    return figure


def _color(name: str, p: Palette) -> str:
    if name in (NONE, NO_PICTURE):
        return p.neutral
    if name.startswith("gate + image"):
        return p.third
    if name.startswith("image"):
        return p.image
    return p.faint if name.startswith("random") else p.gate
