"""One forward pass under interventions: the plain way, one hooked run of the whole model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.compile import CompiledHooks, compile_hooks

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap


def compile_for(model: HookedVLM, interventions: Any, tokens: TokenMap) -> CompiledHooks:
    """The hooks of the interventions for this model, its layers, heads and hook points checked.

    Raises:
        InterventionError: an intervention cannot act as written in this model.
    """
    compiled = compile_hooks(interventions, tokens, model.cfg)
    compiled.check_names(model.bridge.hook_dict)
    return compiled


@contextmanager
def strict_edits() -> Iterator[None]:
    """Make TransformerLens' warning that an edit was discarded an error.

    Some bridges let the wrapped module compute the attention and fire the hooks afterwards, for reading only.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message=r"A hook on [\s\S]*returned a modified tensor", category=UserWarning
        )
        try:
            yield
        except UserWarning as warning:
            if "returned a modified tensor" not in str(warning):
                raise
            raise InterventionError(
                f"this model discards the edit ({str(warning).split(' returned')[0]}): its bridge lets the "
                "wrapped module compute attention; patch, steer or ablate v or z there instead"
            ) from None


def run(model: HookedVLM, inputs: VLMInputs, interventions: Any = ()) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits under interventions.

    Args:
        model: the model.
        inputs: from ``model.prepare`` or ``model.inputs``.
        interventions: an intervention, a (nested) list of them, or None.

    Raises:
        InterventionError: an intervention cannot act as written, or has no effect in this model.
    """
    compiled = compile_for(model, interventions, inputs.tokens)
    with strict_edits():
        logits = model.run_with_hooks(inputs, fwd_hooks=compiled.pairs)
    compiled.check_fired()
    return logits
