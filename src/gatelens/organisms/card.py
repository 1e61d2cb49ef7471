"""The text of an organism's card, from what was trained and what was measured."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from gatelens.model import HookedVLM
from gatelens.organisms.recipes import MAIN

TEMPLATE = "card.md.jinja"


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
        thousands="{:,}".format,
    )
