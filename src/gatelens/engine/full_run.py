"""One run that computes every position in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.clean_run import with_mask
from gatelens.engine.cuts import PatternCallback
from gatelens.engine.decoding import Decoder, Regrown
from gatelens.engine.plan import hooks_stand
from gatelens.engine.stacked_runs import StackedRuns
from gatelens.errors import InputError
from gatelens.hooked_model import HookedModel, check_room, usable
from gatelens.inputs import VLMInputs
from gatelens.interventions.base import Intervention
from gatelens.interventions.compile import as_interventions
from gatelens.tokens import TokenMap


class FullRun(StackedRuns):
    """A run that shares nothing.

    ``see(layer, pattern, position)``: shown the last row of every pass, Float[batch, head, 1, key].

    Raises:
        InterventionError: an intervention cannot act as written in this model.
    """

    def __init__(
        self,
        model: HookedModel,
        specs: Sequence[Intervention],
        tokens: TokenMap,
        see: PatternCallback | None = None,
    ) -> None:
        shown_rows = None if see is None else self._last_row
        super().__init__(model, [specs], tokens, shown_rows=shown_rows, see=see)

    def _last_row(self, layer: int) -> range:
        n = self.span.stop - self.span.offset
        return range(n - 1, n)


def run(model: HookedModel, inputs: VLMInputs, interventions: Any = ()) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits under interventions.

    Args:
        model: the model.
        inputs: from ``model.prepare`` or ``model.inputs``.
        interventions: an intervention, a (nested) list of them, or None.

    Raises:
        InterventionError: an intervention cannot act as written, or has no effect in this model.

    Example:
        >>> logits = gl.engine.run(model, inputs, gl.knockout("last", "gate"))
        >>> torch.equal(logits, model.run(inputs, gl.knockout("last", "gate")))  # the method does the same
        True
    """
    return full_logits(model, usable(model, inputs), as_interventions(interventions))


def full_logits(
    model: HookedModel, inputs: VLMInputs, specs: Sequence[Intervention]
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of one full run."""
    with model.lock:
        full = FullRun(model, specs, inputs.tokens)
        with full.acting() as pairs:
            logits = model.run_with_hooks(inputs, fwd_hooks=pairs)
    full.check_fired()
    return logits


def full_cache(model: HookedModel, inputs: VLMInputs, specs: Sequence[Intervention], names: Any) -> Any:
    """The ``ActivationCache`` of one full run; ``names`` as ``names_filter`` of ``run_with_cache``."""
    with model.lock:
        full = FullRun(model, specs, inputs.tokens)
        with full.acting() as pairs:
            _, cache = model.run_with_cache(inputs, names_filter=names, fwd_hooks=pairs)
    full.check_fired()
    return cache


def full_decoder(
    model: HookedModel,
    inputs: VLMInputs,
    specs: Sequence[Intervention],
    max_new_tokens: int,
    see: PatternCallback | None = None,
    raw_logits: bool = False,
) -> Decoder:
    """Decodes one full run; ``see`` as in :class:`FullRun`, ``raw_logits`` as in :class:`Decoder`.

    Raises:
        InputError: prompt and new tokens take more positions than the model has, or a prompt ends in padding.
    """
    tensors = with_mask(inputs)
    check_room(model, tensors["position_ids"], max_new_tokens)
    if not bool(tensors["attention_mask"][:, -1].all()):
        raise InputError("a prompt ends in padding: continue each text alone, inputs[i : i + 1, :n]")
    full = FullRun(model, specs, inputs.tokens.extend(max_new_tokens), see)
    if hooks_stand(model):
        return Regrown(model, dataclasses.replace(inputs, tensors=tensors), full, raw_logits)
    return Decoder(model, tensors, DynamicCache(), full, raw_logits)
