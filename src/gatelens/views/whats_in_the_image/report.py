"""The report page of the study “What's in the image?”, rendered from the run's tables alone."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from gatelens.measures.mme import REPORTED_COMPRESSED_CONTEXT as REPORTED
from gatelens.plots import page, templating
from gatelens.runs import Run
from gatelens.studies.whats_in_the_image.compressed_context import FULL
from gatelens.studies.whats_in_the_image.configurations import FROM, NONE
from gatelens.studies.whats_in_the_image.evidence import band_name
from gatelens.studies.whats_in_the_image.questions import mme_means
from gatelens.studies.whats_in_the_image.scores import F1, METRICS
from gatelens.views.whats_in_the_image import curves
from gatelens.views.whats_in_the_image.words import METHOD

THUMBS = 4  # objects of a picture drawn for readers without scripts, and for print


def figures(run: Run) -> dict[str, Callable[[bool], Figure]]:
    """The figures of a run by name; called with whether the ground is dark."""
    table, window = run.table("knockout"), run.json("window")
    chance = _chance(run)
    out: dict[str, Callable[[bool], Figure]] = {}
    for how in dict.fromkeys(table[table.metric == F1].how):
        out[_curve_name(table, how)] = lambda dark, how=how: curves.knockout_curves(  # type: ignore[misc]
            table, chance, window, how, dark
        )
    if len(run.table("token_types")):
        out["token_types"] = lambda dark: curves.token_types(run.table("token_types"), dark)
    if run.done("localisation"):
        out["localisation"] = lambda dark: curves.localisation(run.table("localisation"), dark)
    if run.done("trade_off"):
        out["trade_off"] = lambda dark: curves.trade_off(run.table("trade_off"), dark)
    return out


def render(run: Run, light: Mapping[str, bytes] | None = None) -> str:
    """The page as HTML. ``light``: the figures on light ground as PNG, where they are drawn already.

    Raises:
        OutputError: the run lacks a finished table.
    """
    drawn = page.drawn(figures(run), light)
    settings, table = run.manifest["settings"], run.table("knockout")
    best = _best_band(run)
    return templating.template("whats_in_the_image.html.j2").render(
        css=templating.css("look.css"),
        script=templating.script("look.js"),
        settings=settings,
        created=run.manifest["created"][:10],
        verdict=run.json("verdict"),
        window=run.json("window"),
        knockout=[
            _block(table, how, drawn.get(_curve_name(table, how), Markup()))
            for how in dict.fromkeys(table.how)
        ],
        figures=drawn,
        types_caption=_types_caption(run.table("token_types")),
        places=_places(run.table("localisation")) if run.done("localisation") else None,
        trade=_trade(run.table("trade_off")) if run.done("trade_off") else None,
        mme=_mme(run) if run.done("mme") else None,
        no_trade=run.json("no_trade_off") if run.done("no_trade_off") else "",
        tokens=run.json("tokens"),
        examples=[_example(e, best) for e in run.json("examples")],
        method=_method(run, table),
        facts=page.facts(run.manifest),
    )


def _chance(run: Run) -> float | None:
    predictions = run.table("predictions")
    one = predictions[(predictions.path == NONE) & predictions.f1.notna()]
    return float(one.chance.mean()) if len(one) else None


def _curve_name(table: pd.DataFrame, how: str) -> str:
    return "knockout" if table.how.nunique() == 1 else f"knockout_{how}"


def _block(table: pd.DataFrame, how: str, figure: Markup) -> dict[str, Any]:
    """One table: the paths cut in all layers and about the window; the curve's points go in a second part."""
    part = table[table.how == how]
    metrics = [m for m in METRICS if m in set(part.metric)]
    rows = []
    for name in dict.fromkeys(part.row):
        mine = part[part.row == name]
        by_metric = mine.set_index("metric")
        cells = [
            {k: f"{by_metric.loc[m, k]:.2f}" for k in ("mean", "low", "high")}
            if m in by_metric.index
            else None
            for m in metrics
        ]
        rows.append({"name": name, "cells": cells, "curve": mine.scope.iloc[0] == FROM})
    return {
        "how": how,
        "metrics": [{"name": m, "n": int(part[part.metric == m].n.max())} for m in metrics],
        "rows": [r for r in rows if not r["curve"]],
        "more": [r for r in rows if r["curve"]],
        "figure": figure,
    }


def _types_caption(types: pd.DataFrame) -> str:
    if types.empty:
        return ""
    return (
        f"Attention of the rows at generated positions, mean over heads, then over the rows of a picture, then over "
        f"{int(types.n.max())} pictures. Dotted: what each kind would get if all positions were looked at alike."
    )


def _places(table: pd.DataFrame) -> dict[str, Any]:
    best = table.loc[table.hit.idxmax()]
    return {
        "n": int(best.n),
        "best": f"{best.hit:.2f}",
        "chance": f"{best.chance:.2f}",
        "band": band_name(best),
    }


def _trade(table: pd.DataFrame) -> dict[str, Any]:
    full = table[table.context == FULL].iloc[0]
    rows = []
    for r in table.itertuples():
        rows.append(
            {
                "name": r.context,
                "accuracy": (f"{r.accuracy:.2f}", f"{r.low:.2f} – {r.high:.2f}"),
                "difference": "" if r.context == FULL else f"{r.difference:+.2f}".replace("-", "−"),
                "same": f"{100 * r.same_answer:.0f}\u00a0%",
                "tokens": f"{r.tokens:.0f}",
                "memory": f"{100 * r.nbytes / full['nbytes']:.0f}\u00a0%",  # a Series has an nbytes of its own
                "time": f"{1000 * r.seconds:.1f} ms",
                "control": r.context not in (FULL, "query only") and not r.context.startswith("K ="),
            }
        )
    return {"rows": rows, "n": int(full.n_questions), "pictures": int(full.n_pictures)}


def _mme(run: Run) -> list[dict[str, Any]]:
    """ACC and ACC+ of every context, beside what the paper reports for its model."""
    said = {"K = 100 %": REPORTED["full"], **REPORTED}
    rows = []
    for r in mme_means(run.table("mme")).itertuples():
        reported = said.get(r.context)
        rows.append(
            {
                "name": r.context,
                "acc": (f"{100 * r.acc:.2f}", f"{100 * r.acc_low:.1f} – {100 * r.acc_high:.1f}"),
                "plus": (
                    f"{100 * r.acc_plus:.2f}",
                    f"{100 * r.acc_plus_low:.1f} – {100 * r.acc_plus_high:.1f}",
                ),
                "reported": f"{reported[0]:.2f} / {reported[1]:.2f}" if reported else "",
            }
        )
    return rows


def _best_band(run: Run) -> tuple[int, int] | None:
    """The layers in which words look at their objects best: what the page shows first."""
    if not run.done("localisation"):
        return None
    table = run.table("localisation")
    row = table.loc[table.hit.idxmax()]
    return int(row["first"]), int(row["last"])


def _example(example: dict[str, Any], best: tuple[int, int] | None) -> dict[str, Any]:
    bands = example["bands"]
    names = [] if best is None else [band_name(pd.Series({"first": best[0], "last": best[1]}))]
    band = next((bands.index(name) for name in names if name in bands), 0)
    words = example["words"]
    first = next((i for i, w in enumerate(words) if w["object"]), 0 if words else None)
    payload = {k: example[k] for k in ("grid", "bands", "marks")}
    payload |= {"words": [{k: w[k] for k in ("text", "object", "values", "mass")} for w in words]}
    payload |= {"first": first, "band": band}
    thumbs, seen = list[dict[str, str]](), set[str]()
    for i, w in enumerate(words):
        if w["object"] and w["object"] not in seen and len(seen) < THUMBS:
            seen.add(w["object"])
            thumbs.append({"name": w["text"], "picture": _thumb(example, i, band)})
    unmodified = next((r for r in example["rows"] if r["row"] == NONE), None)
    named = set(unmodified["objects"]) if unmodified else set()
    rows = []
    for r in example["rows"]:
        mine = set(r["objects"])
        lost, new = sorted(named - mine), sorted(mine - named)
        rows.append(
            {
                **r,
                "lost": lost,
                "new": new,
                "same": unmodified is not None and r["text"] == unmodified["text"],
            }
        )
    width, height = _size(example["picture"])
    return {
        **example,
        "payload": Markup(json.dumps(payload, ensure_ascii=False).replace("<", "\\u003c")),
        "first": first,
        "band": band,
        "thumbs": thumbs,
        "rows": rows,
        "width": width,
        "height": height,
        "is_live": bool(words),
    }


def _opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB")


def _size(uri: str) -> tuple[int, int]:
    """Canvas pixels: the picture's shape, 512 along the longer side."""
    picture = _opened(uri)
    scale = 512 / max(picture.size)
    return round(picture.width * scale), round(picture.height * scale)


def _thumb(example: dict[str, Any], word: int, band: int, longest: int = 168) -> str:
    """The picture, dark where a word did not look, as a small JPEG."""
    picture = _opened(example["picture"])
    picture.thumbnail((longest, longest))
    columns, rows = example["grid"]
    values = np.frombuffer(base64.b64decode(example["words"][word]["values"]), np.uint8)
    level = values.reshape(-1, rows, columns)[band]
    size = picture.size
    spread = np.asarray(Image.fromarray(level).resize(size, Image.Resampling.NEAREST), dtype=np.float64) / 255
    light = 1 - 0.7 * (1 - spread**0.7)
    ground = np.array([14, 17, 22])
    shown = np.asarray(picture) * light[..., None] + ground * (1 - light[..., None])
    buffer = io.BytesIO()
    Image.fromarray(shown.round().astype(np.uint8)).save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _method(run: Run, table: pd.DataFrame) -> list[tuple[str, str]]:
    """What each word of the page means, for the words this run uses."""
    settings = run.manifest["settings"]
    used = (
        {f"knockout {how}" for how in table.how}
        | set(table.metric)
        | {f"first token {settings['first_token']}"}
    )
    used |= {name for name in ("localisation", "trade_off", "mme") if run.done(name)}
    judge = "judge offline" if settings["judge"] == "offline" else "judge"
    always = {"image → generated", "query tokens", "from layer l on", "window", "interval", "verdict", judge}
    names = {"trade_off": "compressed context", "mme": "MME"}
    return [
        (names.get(term, term), text.format(**settings))
        for term, text in METHOD.items()
        if term in used or term in always
    ]
