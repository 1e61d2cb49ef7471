"""The paper's central table next to a small run of it, cell by cell: agrees, differs, or not comparable and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gatelens.model import HookedVLM
from gatelens.studies.narrow_gate import knockout_table as table
from gatelens.studies.narrow_gate.reference import Reference, reference_for
from gatelens.studies.narrow_gate.study import narrow_gate
from gatelens.studies.presets import preset

AGREES, DIFFERS, NOT_COMPARABLE = "agrees", "differs", "not comparable"
PUBLISHED_N = 2000  # examples of a task in the paper
_ROUNDING = 0.005  # of a number printed with two digits
# column of the paper -> data set, and kind of task
COLUMNS = {
    "VQAv2 (VQA accuracy)": ("vqav2", "vqa"),
    "Flickr30k (CIDEr)": ("flickr30k", "caption"),
    "MS-COCO (CIDEr)": ("coco", "caption"),
    "ImageNet (overlap with the classes)": ("imagenet", "class"),
}


def paper_table(
    model: HookedVLM, name: str, n: int, data: str | None, out: Path | None, progress: bool
) -> dict[str, Any]:
    """``source``, ``note`` and ``cells``; without cells where no table of this model is known.

    The run keeps to the paper's prompts, decoding and knockout, on ``n`` examples of each task; in ``out`` it goes on
    where it stopped.
    """
    reference = reference_for(name)
    if reference is None:
        return {"source": "no paper's table is known for this model", "note": "", "cells": []}
    asked = preset("paper").arguments(data=data, limit=n, sections=["knockouts"])
    run = narrow_gate(model, out=out, progress=progress, **asked)
    sets = [part.split(":")[0].strip() for part in str(asked["data"]).split(",")]
    return {
        "source": f"{reference.model}: {reference.source}",
        "note": reference.note,
        "cells": compared(reference, run.table("knockout"), sets),
    }


def compared(reference: Reference, knockout: pd.DataFrame, data: list[str]) -> list[dict[str, Any]]:
    """A cell for each published number.

    Args:
        reference: the published table.
        knockout: ``how, row, metric, mean, low, high, n`` as the study's table.
        data: names of the data sets that were run.
    """
    part = knockout[knockout.how == "zero"].set_index(["row", "metric"])
    random = next((row for row in knockout.row.unique() if row.startswith("random")), "")
    rows = dict(
        zip((name for name, _ in reference.rows), (table.NONE, table.GATE, table.IMAGE, random), strict=True)
    )
    cells = []
    for name, numbers in reference.rows:
        for column, published in zip(reference.columns, numbers, strict=True):
            found = _measured(part, rows[name], column, data)
            verdict, reason = judge(column, published, found)
            shown = {key: None if found is None else found[key] for key in ("mean", "low", "high", "n")}
            cells.append(
                {
                    "row": name,
                    "column": column,
                    "published": published,
                    **shown,
                    "verdict": verdict,
                    "reason": reason,
                }
            )
    return cells


def _measured(part: pd.DataFrame, row: str, column: str, data: list[str]) -> dict[str, Any] | None:
    """``mean, low, high, n`` of one cell; None where it was not measured."""
    name, kind = COLUMNS[column]
    captions = [one for one in data if one in ("flickr30k", "coco")]
    metrics = [table.METRICS[kind], f"{table.METRICS[kind]} ({name})"]
    alone = kind != "caption" or len(captions) < 2
    for metric in metrics if alone else metrics[1:]:
        if name in data and (row, metric) in part.index:
            cell = part.loc[(row, metric)]
            return {
                "mean": float(cell["mean"]),
                "low": float(cell.low),
                "high": float(cell.high),
                "n": int(cell.n),
            }
    return None


def judge(column: str, published: float, found: Mapping[str, Any] | None) -> tuple[str, str]:
    """What a published number says of a measured one: they agree where their 95 % intervals meet."""
    if column.startswith("ImageNet"):
        return NOT_COMPARABLE, "the paper's column is the neighbours' overlap, ours class accuracy"
    if found is None:
        return NOT_COMPARABLE, "its data set was not run"
    if "CIDEr" in column and found["n"] < PUBLISHED_N:
        return NOT_COMPARABLE, f"CIDEr weighs words by the captions drawn: {found['n']} and not {PUBLISHED_N}"
    # of captions the paper gives no spread: its last digit is all that is known
    spread = 0.0 if "CIDEr" in column else 1.96 * math.sqrt(published * (1 - published) / PUBLISHED_N)
    low, high = published - spread - _ROUNDING, published + spread + _ROUNDING
    if found["low"] <= high and found["high"] >= low:
        return AGREES, ""
    return (
        DIFFERS,
        f"95 % intervals apart: [{found['low']:.2f}, {found['high']:.2f}], [{low:.2f}, {high:.2f}]",
    )
