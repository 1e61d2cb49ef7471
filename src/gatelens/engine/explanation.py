"""A plan in words: what is computed once, what is computed again, and what share of the work that is."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatelens.engine.grid import points_of
from gatelens.engine.plan import Plan, make_plan
from gatelens.engine.run_batch import specs_of
from gatelens.hooked_model import HookedModel, usable
from gatelens.inputs import VLMInputs


@dataclass(frozen=True)
class Explanation:
    """What a plan does; prints as text, and shows as a table in a notebook."""

    plan: Plan
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    summary: str

    def __str__(self) -> str:
        table = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*lines, self.summary])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(row: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row) + "</tr>"

        body = line(self.header, "th") + "".join(line(row, "td") for row in self.rows)
        return f"<table>{body}</table><p>{html.escape(self.summary)}</p>"


def explain(model: HookedModel, inputs: VLMInputs, interventions: Any) -> Explanation:
    """What running these interventions computes, and what it reuses.

    Args:
        model: the model.
        inputs: the prompts.
        interventions: a grid as :func:`gatelens.sweep` takes it, or a list of runs (each an intervention, a
            list of them, or None), or one intervention.

    Raises:
        InterventionError: an intervention cannot act as written.
    """
    inputs = usable(model, inputs)
    if isinstance(interventions, Mapping):
        _, runs = points_of(interventions)
    else:
        runs = specs_of(interventions if isinstance(interventions, list | tuple) else [interventions])
    plan = make_plan(model, inputs, runs)
    rows: list[tuple[str, ...]] = []
    if plan.needs_clean:
        rows.append(_row("clean run, once", plan, 0, 0, 1, "shared by all below"))
    if plan.clean:
        rows.append(("no intervention", str(len(plan.clean)), "–", "–", "0", "is the clean run"))
    for part in plan.parts:
        for layer, together in part.by_layer():
            why = f"keys and values of {part.position} positions, {layer} layers reused"
            rows.append(_row("from the clean run", plan, part.position, layer, len(together), why))
    for i in plan.full:
        rows.append(_row("whole", plan, 0, 0, 1, plan.reasons[i]))
    share = plan.cells / max(plan.plain_cells, 1)
    summary = (
        f"{len(runs)} run(s) on {plan.batch} prompt(s) of {plan.n_pos} positions and {plan.n_layers} layers: "
        f"{plan.cells:,} of {plan.plain_cells:,} cells computed ({share:.1%})"
    )
    return Explanation(
        plan, ("computed", "runs", "positions", "layers", "cells", "why"), tuple(rows), summary
    )


def _row(name: str, plan: Plan, position: int, layer: int, runs: int, why: str) -> tuple[str, ...]:
    cells = runs * (plan.n_pos - position) * (plan.n_layers - layer)
    places = f"{position}–{plan.n_pos - 1}"
    return (name, str(runs), places, f"{layer}–{plan.n_layers - 1}", f"{cells:,}", why)
