"""Looking at attention without keeping it: chosen rows of the pattern, a block at a time, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.engine.cuts import Cuts, can_conduct, conducting
from gatelens.engine.run import compile_for
from gatelens.errors import InterventionError
from gatelens.interventions.base import Span, select
from gatelens.interventions.compile import as_interventions
from gatelens.interventions.knockout import plain_knockout
from gatelens.selectors import SelectorLike

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM

See = Callable[[int, Tensor, int], None]


@torch.no_grad()
def look(
    model: HookedVLM,
    inputs: VLMInputs,
    rows: SelectorLike,
    see: See,
    layers: Collection[int] | None = None,
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
    """
    tokens = inputs.tokens
    columns = select(tokens, rows, f"look(rows={rows!r})").any(dim=0).nonzero()
    if not len(columns):
        raise InterventionError(f"look(rows={rows!r}) selects no position in any example")
    wanted = range(int(columns[0]), int(columns[-1]) + 1)
    specs = as_interventions(interventions)
    shown = range(int(model.cfg.n_layers)) if layers is None else layers
    hooks: list[Any] = []
    if not can_conduct(model):
        hooks = [(f"blocks.{n}.attn.hook_pattern", _by_hook(n, see)) for n in shown]
        compiled = compile_for(model, specs, tokens)
        logits, _ = model.forward_step(inputs.tensors, [*compiled.pairs, *hooks])
        return logits[:, -1]
    cuts = Cuts(
        [[s for s in specs if plain_knockout(s)]],
        tokens,
        model.cfg,
        Span(0, tokens.n_pos),
        rows=lambda layer: wanted if layer in shown else None,
        look=see,
    )
    compiled = compile_for(model, [s for s in specs if not plain_knockout(s)], tokens)
    with conducting(model, cuts):
        logits, _ = model.forward_step({**inputs.tensors, "logits_to_keep": 1}, compiled.pairs)
    compiled.check_fired()
    return logits[:, -1]


def _by_hook(layer: int, see: See) -> Any:
    return lambda pattern, hook: see(layer, pattern.detach(), 0)
