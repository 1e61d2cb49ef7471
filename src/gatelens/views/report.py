"""The report page of a run: one HTML file that needs no network, rendered from the run's tables alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from gatelens.data.base import kind
from gatelens.errors import OutputError
from gatelens.runs import Run
from gatelens.studies.knockout_table import FLOOR
from gatelens.studies.narrow_gate import STUDY
from gatelens.studies.reference import reference_for
from gatelens.views import curves, page, wi_report
from gatelens.views.style import png
from gatelens.views.words import ALWAYS_SAID, METHOD


def write_report(run: Run) -> None:
    """Draw the figures of a run (``figures/*.png``) and write ``report.html`` beside its tables.

    Raises:
        OutputError: the run lacks a finished table, or is of a study without a report.
    """
    figures = wi_report.figures if run.manifest["study"] == wi_report.STUDY else _figures
    light = {name: png(draw(False)) for name, draw in figures(run).items()}
    for name, data in light.items():
        run.save_file(f"figures/{name}", ".png", data)
    run.save_file("report", ".html", render_report(run, light).encode())


def render_report(run: Run, light: Mapping[str, bytes] | None = None) -> str:
    """The report page as HTML. ``light``: the figures on light ground as PNG, where they are drawn already.

    Raises:
        OutputError: the run lacks a finished table, or is of a study without a report.
    """
    if run.manifest["study"] == wi_report.STUDY:
        return wi_report.render(run, light)
    figures = page.drawn(_figures(run), light)
    settings = run.manifest["settings"]
    tokens, table = run.json("tokens"), run.table("knockout")
    attention = patching = None
    if "attention" in figures:
        attention = {
            "figure": figures["attention"],
            "caption": _attention_caption(run.table("attention")),
        }
    if "patching" in figures:
        patching = {"figure": figures["patching"], "caption": _patching_caption(run.table("patching"))}
    return page.template("narrow_gate.html.j2").render(
        css=page.css(),
        settings=settings,
        created=run.manifest["created"][:10],
        verdict=run.json("verdict"),
        reference=reference_for(str(settings.get("model", ""))),
        knockout=[_block(table, how, figures[_figure_name(table, how)]) for how in dict.fromkeys(table.how)],
        attention=attention,
        patching=patching,
        tokens=tokens,
        examples=[_marked(e) for e in run.json("examples")],
        method=_method(table, settings),
        facts=page.facts(run),
    )


def _figures(run: Run) -> dict[str, Callable[[bool], Figure]]:
    if run.manifest["study"] != STUDY:
        raise OutputError(
            f"run {run.label} is of study {run.manifest['study']!r}, whose report is not known; known: {STUDY!r}, "
            f"{wi_report.STUDY!r}"
        )
    table = run.table("knockout")
    out: dict[str, Callable[[bool], Figure]] = {}
    for how in dict.fromkeys(table.how):
        out[_figure_name(table, how)] = lambda dark, how=how: curves.knockout_bars(table, how, dark)  # type: ignore[misc]
    out["attention"] = lambda dark: curves.attention_shares(run.table("attention"), dark)
    if run.done("patching"):
        out["patching"] = lambda dark: curves.patching_curve(run.table("patching"), dark)
    return out


def _figure_name(table: pd.DataFrame, how: str) -> str:
    return "knockout" if table.how.nunique() == 1 else f"knockout_{how}"


def _block(table: pd.DataFrame, how: str, figure: Markup) -> dict[str, Any]:
    part = table[table.how == how]
    metrics = list(dict.fromkeys(part.metric))
    rows = []
    for name in dict.fromkeys(part.row):
        mine = part[part.row == name].set_index("metric")
        cells = []
        for metric in metrics:
            found = mine.loc[metric] if metric in mine.index else None
            cells.append(None if found is None else {k: f"{found[k]:.2f}" for k in ("mean", "low", "high")})
        rows.append(
            {"name": name, "cells": cells, "repeats": int(mine.repeats.max()), "control": name == FLOOR}
        )
    return {
        "how": how,
        "metrics": [{"name": m, "n": int(part[part.metric == m].n.max())} for m in metrics],
        "rows": rows,
        "figure": figure,
        "caption": (
            "What the model still gets right when the text can no longer read the named tokens: a short bar "
            "means that those tokens carried the picture to the text. Whiskers: 95 % bootstrap interval over "
            "examples. The last row is a control that cuts every path at once."
        ),
    }


def _attention_caption(table: pd.DataFrame) -> str:
    share = table[table.kind == "gate"].set_index("layer").share
    uniform = 1 / max(1, int((table.layer == table.layer.iloc[0]).sum()))
    return (
        "How the text after the image (the gate's own row left out) divides its attention among the "
        f"image-side positions. The gate takes {share.mean():.2f} on average and at most "
        f"{share.max():.2f}, in layer {int(share.idxmax())}; an even share would be {uniform:.3f} a "
        "position. The lower panel tells how much attention there is to divide."
    )


def _patching_caption(table: pd.DataFrame) -> str:
    flips = table[(table.measure == "flipped") & (table.layer >= 0)]
    text = (
        "The residual stream of the gate is replaced, in one layer, by that of a picture of another "
        "class. If the gate carries the class, the answer moves to the other picture's: orange rises, blue "
        "falls, predictions flip. "
        "Overlap is Σ min(p, q) of the next-token distributions."
    )
    if flips.empty:
        return text + " No pair had two different clean predictions, so none could flip."
    return text + f" Flips are counted over the {int(flips.n.iloc[0])} pairs whose clean predictions differ."


def _marked(example: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for r in example["rows"]:
        if kind(example["task"]) == "caption":
            mark, tone = f"{r['score']:.2f}", "soft"
        else:
            mark, tone = ("right", "right") if r["score"] >= 0.5 else ("wrong", "wrong")
        rows.append({**r, "mark": mark, "tone": tone})
    return {**example, "rows": rows}


def _method(table: pd.DataFrame, settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What each word of the page means, for the words this run uses."""
    used = {f"knockout {how}" for how in table.how} | {kind(m) for m in table.metric}
    longest = settings["max_new_tokens"]
    return [
        (term, text.format(**longest)) for term, text in METHOD.items() if term in used or term in ALWAYS_SAID
    ]
