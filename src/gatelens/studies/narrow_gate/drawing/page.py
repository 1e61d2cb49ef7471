"""Drawing after a picture, on the page: the first drawings, shares and bars."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from gatelens.plots.bars import bars
from gatelens.plots.card import Block, Card, Chart, Pictures, Table, Text
from gatelens.plots.numbers import percent
from gatelens.plots.style import NotebookFigure, ReferenceLine
from gatelens.runs import Run
from gatelens.studies.narrow_gate.drawing.table import NO_PICTURE, NONE, chance

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
        "The drawn image tokens, and the row that draws the first, cannot read X in any layer or head (−∞ before the "
        "softmax). In the row marked zero, attention is set to 0 after it. Text: the request’s tokens after the gate "
        "cannot either. Image: the image tokens of the prompt’s picture with their start marker."
    ),
    "gate of another picture": (
        "The gate’s residual stream entering every layer is that of another picture, the target."
    ),
    "gate steered, random": (
        "The mean gate of pictures with the target’s colour, minus that of the prompt’s colour, is added in the middle "
        "layer. Random: a random direction of the same length."
    ),
    "asked, of the picture, of the target": (
        "Class and shape are the model’s own answers about its drawing. Colour and background are by pixels: the "
        "nearest of the possible ones. What is asked for always differs from the picture in class, colour and shape."
    ),
    "says": (
        "The model is asked for the plate’s colour in the prompt’s picture under the same edit. A cut row "
        "renormalises, so it may then read image tokens instead of the gate."
    ),
}


CAPTION = (
    "Share of drawings that show what is named above. Whiskers: 95 % interval over drawings. Dashed: chance."
)


def cards(run: Run) -> list[Card]:
    """Pictures, tables and bars."""
    table, drawn = run.table("drawing"), run.json("drawing_pictures")
    blocks: list[Block] = [
        Text(in_words(table)),
        Chart("drawing", partial(drawing_bars, table), CAPTION, _shown_numbers(table)),
        pictures(drawn),
        *(shares(table, prompt) for prompt in table.prompt.unique()),
        said(table),
    ]
    return [Card("Drawing after a picture", blocks, WORDS, short="Drawing", finding=_finding(table))]


def _finding(table: pd.DataFrame) -> str:
    """What a picture in the prompt does to drawing."""
    part = table[(table.prompt == "colour asked") & (table.measure == BROKEN)].groupby("row")["mean"].first()
    if not {NONE, NO_PICTURE} <= set(part.index):
        return ""
    return f"the class asked for is drawn in {percent(part[NONE])} (without a picture {percent(part[NO_PICTURE])})"


def _shown_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows."""
    return pd.concat(
        [table[(table.prompt == prompt) & (table.measure == measure)] for prompt, measure in PANELS]
    )


def in_words(table: pd.DataFrame) -> str:
    """What the numbers come to, in sentences; each comparison holds only where the 95 % intervals are apart."""
    part = table[table.prompt == "colour asked"].set_index(["row", "measure"])

    def share(row: str, measure: str) -> str:
        return percent(part.loc[(row, measure)]["mean"])

    def apart(a: str, b: str, measure: str) -> bool:
        x, y = part.loc[(a, measure)], part.loc[(b, measure)]
        return bool(x.high < y.low or y.high < x.low)

    text = (
        f"Asked in words alone, {share(NO_PICTURE, BROKEN)} of {int(part.n.max())} drawings show the class asked for. "
        f"After a picture of something else, {share(NONE, BROKEN)} show it"
    )
    text += ": the picture breaks drawing. " if apart(NONE, NO_PICTURE, BROKEN) else ". "
    text += f"That picture’s background is in {share(NONE, FOLLOWS)} of drawings"
    if not apart(NONE, NO_PICTURE, FOLLOWS):
        return f"{text}, as without it ({share(NO_PICTURE, FOLLOWS)}): no influence is seen."
    text += f" (without it {share(NO_PICTURE, FOLLOWS)})."
    for row, what in ((GATE_TEXT, "the gate"), (IMAGE_TEXT, "the image tokens")):
        text += f" With {what} cut it is in {share(row, FOLLOWS)}"
        text += "." if apart(row, NONE, FOLLOWS) else ", no different."
    if apart(ALL_TEXT, NONE, BROKEN):
        text += f" With both cut, {share(ALL_TEXT, BROKEN)} show the class asked for again."
    return text


def pictures(drawn: dict[str, Any]) -> Pictures:
    """The first drawings of the run under every row, not selected."""
    heads = ["", *(f"“{p['text']}”" for p in drawn["prompts"])]
    named = [
        ("the prompt’s picture", drawn["pictures"]),
        *((one["row"], one["drawn"]) for one in drawn["rows"]),
    ]
    rows = [(name, [(uri, "") for uri in uris]) for name, uris in named]
    return Pictures(heads, rows, "The first drawings of the run, not selected.")


def shares(table: pd.DataFrame, prompt: str) -> Table:
    """One way of asking: rows are interventions, columns what the drawings show."""
    part = table[(table.prompt == prompt) & table.measure.isin(IN_TABLE)]
    title = f"Drawings, {prompt} (n = {int(part.n.max())})"
    return _grid(part, f"Asked like “{EXAMPLE[prompt]}”", title=title, controls=(NO_PICTURE,))


def said(table: pd.DataFrame) -> Table:
    """What the model says of the picture under the same edits."""
    part = table[table.measure.isin(SAYS) & (table.prompt == table.prompt.iloc[0])]
    caption = (
        "The same edits while the model says the plate’s colour in the prompt’s picture. An edit that changes what is "
        "said but not what is drawn acts only on the path of words."
    )
    return _grid(part, caption, title="Said, not drawn")


def _grid(part: pd.DataFrame, caption: str, **options: Any) -> Table:
    corner = "what is cut or changed"
    return Table.from_means(part, columns="measure", corner=corner, count=False, caption=caption, **options)


def drawing_bars(table: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """One panel a measure, one bar an intervention, whiskers the 95 % interval, chance dashed."""
    titles, levels, parts = dict[str, str](), dict[str, float](), []
    for prompt, measure in PANELS:
        panel = f"{prompt}: {measure}"
        titles[panel] = f"{measure}\n“{EXAMPLE[prompt].replace(' on', chr(10) + 'on')}”"
        levels[panel] = chance(measure)
        parts.append(table[(table.prompt == prompt) & (table.measure == measure)].assign(panel=panel))
    return bars(
        pd.concat(parts),
        groups="row",
        panels="panel",
        colors={row: _color(row) for row in table["row"].unique()},
        references=[ReferenceLine(levels, "chance", "--")],
        titles=titles,
        top=1.04,
        dark=dark,
    )


def _color(name: str) -> str:
    if name in (NONE, NO_PICTURE):
        return "neutral"
    if name.startswith("gate + image"):
        return "third"
    if name.startswith("image"):
        return "image"
    return "faint" if name.startswith("random") else "gate"
