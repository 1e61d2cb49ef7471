"""The truth at chosen cells: each patched by the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.engine.run_batch import RunBatch
from gatelens.interventions.base import Intervention
from gatelens.interventions.editing import edit
from gatelens.interventions.rows import Rows
from gatelens.readouts.gradients.cells import Cell, Cells
from gatelens.readouts.gradients.passes import GradientPasses


@torch.no_grad()
def patched(passes: GradientPasses, runs: Sequence[Sequence[Intervention]]) -> Float[Tensor, "run pair"]:
    """What the metric gains in each run over the base."""
    gained = torch.zeros(len(runs), passes.contrast.base.batch_size, dtype=torch.float64)
    with passes.model.lock:
        batch = RunBatch(
            passes.model, passes.contrast.base, [list(run) for run in runs], every_position=not passes.keep
        )
        for number, logits in batch.each():
            gained[number] = (passes.metric(logits) - passes.base_value).double().cpu()
    return gained


def node_patch(passes: GradientPasses, cells: Cells, cell: Cell) -> Intervention:
    """The edit that gives the rows of a cell the source's activations."""
    contrast = passes.contrast
    mine = cells.group_of(contrast) == cell.group
    mask = torch.zeros_like(contrast.mask)
    mask[contrast.example[mine], contrast.position[mine]] = True
    delta = passes.delta[cell.site, cell.layer]
    added = delta[mine.to(delta.device)]

    def towards_source(rows: Tensor, where: Rows) -> Tensor:
        return rows + added

    return edit(towards_source, at=mask, site=cell.site, layers=cell.layer, heads=cell.head)  # type: ignore[arg-type]
