"""A plan in words: what is computed once, what is computed again, and what share of the work that is."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatelens.engine.footprint import (
    Footprint,
    as_bytes,
    fitted,
    footprint,
    in_words,
    inexact,
    room_of,
    zeroed_runs,
)
from gatelens.engine.grid import points_of
from gatelens.engine.plan import Plan, Specs, make_plan
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
    footprint: Footprint
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The lines under the table."""
        return [self.summary, str(self.footprint), *self.notes]

    def __str__(self) -> str:
        table = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*lines, *self.lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(row: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in row) + "</tr>"

        body = line(self.header, "th") + "".join(line(row, "td") for row in self.rows)
        said = "<br>".join(html.escape(one) for one in self.lines)
        return f"<table>{body}</table><p>{said}</p>"


def explain(
    model: HookedModel,
    inputs: VLMInputs,
    interventions: Any,
    memory: int | str | None = None,
    every_position: bool = False,
) -> Explanation:
    """What running these interventions computes, what it reuses, and what it holds in memory.

    Args:
        model: the model.
        inputs: the prompts.
        interventions: a grid as :func:`gatelens.sweep` takes it, or a list of runs (each an intervention, a
            list of them, or None), or one intervention.
        memory: bytes, or a size such as "80GB", that weights and runs may take together: as many runs are computed
            at once as fit. Without it the model's own ``memory_limit`` counts.
        every_position: whether the metric reads the logits of every position; else of the last alone.

    Raises:
        InterventionError: an intervention cannot act as written.
        InputError: ``memory`` is not a size.

    Example:
        >>> runs = [gl.knockout("last", "gate", layers=[layer]) for layer in (4, 5)]
        >>> gl.explain(model, inputs, runs)
        computed            runs  positions  layers  cells  why
        clean run, once     1     0–69       0–5     420    shared by all below
        from the clean run  1     69–69      4–5     2      keys and values of 69 positions, 4 layers reused
        from the clean run  1     69–69      5–5     1      keys and values of 69 positions, 5 layers reused
        2 run(s) on 1 prompt(s) of 70 positions and 6 layers: 423 of 840 cells computed (50.4%)
        memory: ...
    """
    inputs = usable(model, inputs)
    if isinstance(interventions, Mapping):
        _, runs = points_of(interventions)
    else:
        runs = specs_of(interventions if isinstance(interventions, list | tuple) else [interventions])
    return explained(model, inputs, runs, None if memory is None else as_bytes(memory), every_position)


def explained(
    model: HookedModel,
    inputs: VLMInputs,
    runs: Sequence[Specs],
    memory: int | None,
    every_position: bool,
    new: int = 0,
) -> Explanation:
    """The explanation of a list of runs, which decode ``new`` tokens."""
    plan = make_plan(model, inputs, runs, last_only=not every_position)
    zeroed = zeroed_runs(runs)
    plan = fitted(model, plan, every_position, new, memory, zeroed)
    rows: list[tuple[str, ...]] = []
    if plan.needs_clean:
        rows.append(_row("clean run, once", plan, 0, 0, 1, "shared by all below"))
    if plan.clean:
        rows.append(("no intervention", str(len(plan.clean)), "–", "–", "0", "is the clean run"))
    passes = Counter(
        (part.position, layer, len(together)) for part in plan.parts for layer, together in part.by_layer()
    )
    for (position, layer, at_once), n in passes.items():
        why = f"keys and values of {position} positions, {layer} layers reused"
        why += f"; {n} times {at_once}" if n > 1 else ""
        rows.append(_row("from the clean run", plan, position, layer, n * at_once, why))
    for i in plan.full:
        rows.append(_row("whole", plan, 0, 0, 1, plan.reasons[i]))
    share = plan.cells / max(plan.plain_cells, 1)
    summary = (
        f"{len(runs)} run(s) on {plan.batch} prompt(s) of {plan.n_pos} positions and {plan.n_layers} layers: "
        f"{plan.cells:,} of {plan.plain_cells:,} cells computed ({share:.1%})"
    )
    held, room = (
        footprint(model, plan, every_position, new, zeroed),
        room_of(model) if memory is None else memory,
    )
    notes = [] if room is None or held.peak <= room else [f"that is more than the {in_words(room)} there is"]
    if plan.parts and inexact(model):
        notes.append(inexact(model))
    header = ("computed", "runs", "positions", "layers", "cells", "why")
    return Explanation(plan, header, tuple(rows), summary, held, tuple(notes))


def _row(name: str, plan: Plan, position: int, layer: int, runs: int, why: str) -> tuple[str, ...]:
    cells = runs * (plan.n_pos - position) * (plan.n_layers - layer)
    places = f"{position}–{plan.n_pos - 1}"
    return (name, str(runs), places, f"{layer}–{plan.n_layers - 1}", f"{cells:,}", why)
