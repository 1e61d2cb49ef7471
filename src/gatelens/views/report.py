"""The report page of a run: one HTML file that needs no network, rendered from the run's tables alone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from gatelens.errors import OutputError
from gatelens.runs import Run
from gatelens.studies.knockout_table import FLOOR
from gatelens.studies.narrow_gate import STUDY
from gatelens.views import curves
from gatelens.views.style import png
from gatelens.views.words import ALWAYS_SAID, METHOD


def template(name: str) -> Any:
    """A page template; everything put into it is escaped."""
    source = resources.files("gatelens.views").joinpath("templates", name).read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)


def css() -> Markup:
    """The pages' style sheet."""
    return Markup(
        resources.files("gatelens.views").joinpath("templates", "base.css").read_text(encoding="utf-8")
    )


def write_report(run: Run) -> None:
    """Draw the figures of a run (``figures/*.png``) and write ``report.html`` beside its tables.

    Raises:
        OutputError: the run lacks a finished table, or is of a study without a report.
    """
    light = {name: png(draw(False)) for name, draw in _figures(run).items()}
    for name, data in light.items():
        run.save_file(f"figures/{name}", ".png", data)
    run.save_file("report", ".html", render_report(run, light).encode())


def render_report(run: Run, light: Mapping[str, bytes] | None = None) -> str:
    """The report page as HTML. ``light``: the figures on light ground as PNG, where they are drawn already.

    Raises:
        OutputError: the run lacks a finished table, or is of a study without a report.
    """
    drawn = light or {}
    figures = {
        name: _picture(name, drawn.get(name) or png(draw(False)), png(draw(True)))
        for name, draw in _figures(run).items()
    }
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
    return template("narrow_gate.html.j2").render(
        css=css(),
        settings=settings,
        created=run.manifest["created"][:10],
        verdict=run.json("verdict"),
        knockout=[_block(table, how, figures[_figure_name(table, how)]) for how in dict.fromkeys(table.how)],
        attention=attention,
        patching=patching,
        tokens=tokens,
        examples=[_marked(e) for e in run.json("examples")],
        method=_method(table, settings),
        facts=_facts(run),
    )


def _figures(run: Run) -> dict[str, Callable[[bool], Figure]]:
    if run.manifest["study"] != STUDY:
        raise OutputError(
            f"run {run.label} is of study {run.manifest['study']!r}; this report is for {STUDY!r}"
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


def _picture(name: str, *pngs: bytes) -> Markup:
    light, dark = (base64.b64encode(data).decode() for data in pngs)
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{}">'
        '<img alt="figure: {}" src="data:image/png;base64,{}"></picture>'
    ).format(dark, name.replace("_", " "), light)


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
        if example["task"] == "caption":
            mark, tone = f"{r['score']:.2f}", "soft"
        else:
            mark, tone = ("right", "right") if r["score"] >= 0.5 else ("wrong", "wrong")
        rows.append({**r, "mark": mark, "tone": tone})
    return {**example, "rows": rows}


def _method(table: pd.DataFrame, settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What each word of the page means, for the words this run uses."""
    used = {f"knockout {how}" for how in table.how} | set(table.metric)
    longest = settings["max_new_tokens"]
    return [
        (term, text.format(**longest)) for term, text in METHOD.items() if term in used or term in ALWAYS_SAID
    ]


def _facts(run: Run) -> list[tuple[str, str]]:
    def words(value: Any) -> str:
        return (
            ", ".join(f"{k} {words(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        )

    facts = [(k.replace("_", " "), words(v)) for k, v in run.manifest["settings"].items()]
    facts += [(k.replace("_", " "), words(v)) for k, v in run.manifest.get("info", {}).items()]
    seconds = sum(e.get("seconds", 0) for e in run.manifest["stages"].values())
    facts.append(("compute", f"{seconds:.0f} s"))
    facts.append(("versions", words(run.manifest.get("versions", {}))))
    return facts
