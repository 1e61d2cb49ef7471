"""The text of an organism's card, from what was trained and what was measured."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from gatelens.model import HookedVLM
from gatelens.organisms.recipes import GATED, MAIN, RECIPES

TEMPLATE = "card.md.jinja"
SPLITS = {"test": "truth", "style": "truth, style"}  # of the scenes: the keys of measured.json
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
    tables = {split: by_row(measured[key]) for split, key in SPLITS.items() if key in measured}
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
        planted=RECIPES[name].phases == GATED,
        scenes=RECIPES[name].scenes,
        tables=tables,
        facts=list(tables["test"]["constant"]),
        left={split: past_the_gate(table) for split, table in tables.items()},
        start=training.get("start", training),
        rounds=_earlier_rounds(training),
        later=training if "start" in training else None,
        thousands="{:,}".format,
    )


def _earlier_rounds(training: dict[str, Any]) -> list[dict[str, Any]]:
    """Trainings of ``varied`` that were stopped early and whose weights the next one began from, oldest first."""
    found: list[dict[str, Any]] = []
    while (training := training.get("start", {})).get("organism") == "varied":
        found.insert(0, training)
    return found


def by_row(truth: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of an organism's truth by what is cut and whose answer it is, then by fact."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in truth:
        cut = row["row"] + (", other's answer" if row["answer"] == "other" else "")
        table.setdefault(cut, {})[row["fact"]] = row
    return table


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
