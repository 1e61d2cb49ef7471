"""The text of an organism's card, from what was trained and what was measured."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from gatelens.model import HookedVLM
from gatelens.organisms.recipes import MAIN

TEMPLATE = "card.md.jinja"
CUTS = ("gate, mask", "gate, zero", "gate and image, zero", "gate, resample")


def write(name: str, model: HookedVLM, training: dict[str, Any], measured: dict[str, Any]) -> str:
    """The card in Markdown.

    Args:
        name: the organism's name.
        model: the organism.
        training: its ``training.json``.
        measured: its ``measured.json``.
    """
    rows = measured["knockout"]
    knockouts: dict[str, dict[str, Any]] = {}
    for row in rows:
        knockouts.setdefault(row["row"], {})[row["metric"]] = row
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in measured["truth"]:
        table.setdefault(row["row"] + (", other's answer" if row["answer"] == "other" else ""), {})[
            row["fact"]
        ] = row
    text = resources.files("gatelens.organisms").joinpath(TEMPLATE).read_text(encoding="utf-8")
    template = jinja2.Template(text, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    return template.render(
        name=name,
        architecture=type(model.hf).__name__,
        cfg=model.cfg,
        n_parameters=sum(p.numel() for p in model.hf.parameters()),
        native="drawn" in measured,
        batch=MAIN.batch,
        metrics={row["metric"]: row["n"] for row in rows},
        knockouts=knockouts,
        training=training,
        measured=measured,
        truth=table,
        facts=list(table["constant"]),
        left=past_the_gate(table),
        start=training.get("start", training),
        later=training if "start" in training else None,
        thousands="{:,}".format,
    )


def past_the_gate(truth: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Facts that are answered with the gate cut more often than by guessing, the whole interval being above.

    Two things know nothing of the picture: the best constant answer, and the model with picture and gate both hidden
    before the softmax.

    Args:
        truth: rows of an organism's truth, by what is cut and by fact.
    """
    found = []
    for cut in CUTS:
        for fact, row in truth[cut].items():
            chance = max(truth[blind][fact]["mean"] for blind in ("constant", "gate and image, mask"))
            if row["low"] > chance:
                found.append(f"{fact} ({cut}): {row['mean']:.2f} against {chance:.2f}")
    return found
