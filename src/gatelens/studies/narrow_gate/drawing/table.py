"""The table of section *drawing*: shares of drawings that show what was asked, or what was before them."""

from __future__ import annotations

import pandas as pd

from gatelens.data import scenes
from gatelens.measures.stats import summary

NONE, NO_PICTURE = "none", "no picture before"
# measure: (what is compared, with what); "colour" by pixels unless the measure says that it is read
MEASURES = {
    "class asked": ("read_class", "asked_class"),
    "shape asked": ("read_shape", "asked_shape"),
    "colour asked": ("pixel_color", "asked_color"),
    "colour asked, read": ("read_color", "asked_color"),
    "class of the picture": ("read_class", "picture_class"),
    "shape of the picture": ("read_shape", "picture_shape"),
    "colour of the picture": ("pixel_color", "picture_color"),
    "colour of the picture, read": ("read_color", "picture_color"),
    "background of the picture": ("pixel_background", "picture_background"),
    "colour of the target": ("pixel_color", "target_color"),
    "says colour of the picture": ("said_color", "picture_color"),
    "says colour of the target": ("said_color", "target_color"),
}
ONLY_WHERE_ASKED = ("colour asked", "colour asked, read")


def summarise(drawings: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """``prompt, row, measure, mean, low, high, n`` of the lines of ``drawings``; shares with their 95 % intervals."""
    return summary(hits(drawings), ["prompt", "row", "measure"], "hit", None, n_boot=n_boot, seed=seed)


def hits(drawings: pd.DataFrame) -> pd.DataFrame:
    """``prompt, row, case, measure, hit``: whether a drawing shows what a measure asks for.

    A measure is left out where it means nothing: the colour asked where none was, an answer where none was taken.
    """
    parts = []
    for (prompt, _), part in drawings.groupby(["prompt", "row"], sort=False):
        for measure, (left, right) in MEASURES.items():
            if measure in ONLY_WHERE_ASKED and prompt != "colour asked":
                continue
            if measure.startswith("says") and not part[left].astype(bool).all():
                continue
            parts.append(
                part[["prompt", "row", "case"]].assign(measure=measure, hit=part[left] == part[right])
            )
    return pd.concat(parts, ignore_index=True)


def chance(measure: str) -> float:
    """What a drawing that knows nothing of it reaches, on the emoji scenes."""
    number = {"class": scenes.CLASSES, "shape": scenes.SHAPES, "colour": scenes.COLORS, "background": (1, 2)}
    return 1 / len(number[measure.removeprefix("says ").split()[0]])
