"""Looking at attention without keeping it: chosen rows of the pattern, a block at a time, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.engine.cuts import PatternCallback
from gatelens.engine.stacked_runs import StackedRuns
from gatelens.errors import InterventionError, shown
from gatelens.hooked_model import HookedModel, usable
from gatelens.inputs import VLMInputs
from gatelens.interventions.arguments import Layers, as_indices
from gatelens.interventions.base import resolve_indices, select
from gatelens.interventions.compile import as_interventions
from gatelens.interventions.hooks import HookPair
from gatelens.tokens import SelectorLike


@torch.no_grad()
def look(
    model: HookedModel,
    inputs: VLMInputs,
    rows: SelectorLike,
    see: PatternCallback,
    layers: Layers = None,
    interventions: Any = (),
) -> Float[Tensor, "batch d_vocab"]:
    """Run the prompts once and show the attention of some rows; nothing of it is kept.

    Args:
        model: the model.
        inputs: the prompts.
        rows: selector of the query rows to look at; the rows between them may be shown as well.
        see: called as ``see(layer, pattern, low)`` with Float[batch, head, some rows, key], the first of
            these rows being position ``low``. What it is given is overwritten later: keep sums, not views.
        layers: which blocks; None is all of them.
        interventions: what holds during the run.

    Returns:
        Logits at the last position.

    Raises:
        InterventionError: an intervention cannot act as written, or ``rows`` selects nothing.

    Example:
        >>> sums = {}
        >>> def see(layer, pattern, low):
        ...     sums[layer] = pattern.sum(dim=-1)
        >>> logits = gl.engine.look(model, inputs, "last", see)
        >>> len(sums), sums[0].shape, sums[0].mean().round(decimals=4)  # layers; heads of one row; each sums to 1
        (6, torch.Size([1, 4, 1]), tensor(1.))
    """
    tokens = usable(model, inputs).tokens
    if not callable(see):
        raise InterventionError(f"see={shown(see)}: give a function of layer, pattern and position")
    columns = select(tokens, rows, f"look(rows={rows!r})").any(dim=0).nonzero()
    if not len(columns):
        raise InterventionError(f"look(rows={rows!r}) selects no position in any example")
    wanted = range(int(columns[0]), int(columns[-1]) + 1)
    watched = resolve_indices(as_indices(layers, "layers"), int(model.cfg.n_layers), "layers", "look")
    run = StackedRuns(
        model,
        [as_interventions(interventions)],
        tokens,
        shown_rows=lambda layer: wanted if layer in watched else None,
        see=see,
    )
    hooks: list[HookPair] = []
    if run.cuts is None:
        hooks = [(f"blocks.{layer}.attn.hook_pattern", _show_whole(layer, see)) for layer in watched]
    with model.lock, run.acting() as pairs:
        logits, _ = model.forward_step({**inputs.tensors, "logits_to_keep": 1}, [*pairs, *hooks])
    run.check_fired()
    return logits[:, -1]


def _show_whole(layer: int, see: PatternCallback) -> Callable[..., None]:
    return lambda pattern, hook: see(layer, pattern.detach(), 0)
