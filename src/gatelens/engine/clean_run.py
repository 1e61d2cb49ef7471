"""The clean run of a batch of prompts: what interventions start from instead of computing it again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from gatelens.bridge.last_rows import last_row_alone
from gatelens.bridge.layer_arguments import known
from gatelens.engine.cuts import can_apply_cuts
from gatelens.engine.plan import Part, hooks_stand
from gatelens.hooked_model import HookedModel
from gatelens.inputs import VLMInputs


class SharedLayer(DynamicLayer):
    """A layer's own keys and values, after ``n_shared`` positions that attention finds elsewhere."""

    def __init__(self, n_shared: int) -> None:
        super().__init__()
        self.n_shared = n_shared
        self.is_initialized: bool = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new positions; gives the layer's own ones only."""
        if self.is_initialized:
            return super().update(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Positions before the next one, the shared ones among them."""
        own = self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0
        return self.n_shared + own


class CleanRun:
    """Keys and values of every position, and the residual stream where runs will start again.

    Args:
        model: the model.
        inputs: the prompts.
        starts: (layer, position): runs will start again in this layer, from this position on.
        every_position: whether the logits of every position are wanted (else those of the last).
    """

    def __init__(
        self,
        model: HookedModel,
        inputs: VLMInputs,
        starts: Iterable[tuple[int, int]],
        every_position: bool = True,
    ) -> None:
        self.model, self.inputs = model, inputs
        self.tensors = with_mask(inputs)
        self.resid: dict[int, tuple[int, Tensor]] = {}
        begin: dict[int, int] = {}
        for layer, position in starts:
            begin[layer] = min(position, begin.get(layer, position))
        hooks = [(f"blocks.{layer}.hook_resid_pre", self._keep(layer, p)) for layer, p in begin.items()]
        keep = {} if every_position else {"logits_to_keep": 1}
        alone = not every_position and ends_early(model)
        with model.lock, last_row_alone(model.bridge.blocks[-1]) if alone else nullcontext():
            watch = model.bridge.blocks[0].register_forward_hook(self._look_at_block, with_kwargs=True)
            try:
                self.logits, cache = model.forward_step({**self.tensors, **keep}, hooks, past=DynamicCache())
            finally:
                watch.remove()
        self.shared: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in cache.layers]

    def _look_at_block(self, block: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.in_tuples = isinstance(out, tuple)  # whether this family's layers give (hidden states,)
        self.can_join = len(args) == 1 and known(
            kwargs
        )  # whether runs can begin in different layers of a pass

    def _keep(self, layer: int, position: int) -> Any:
        def keep(tensor: Tensor, hook: Any) -> None:
            self.resid[layer] = (position, tensor[:, position:].clone())

        return keep

    def resid_pre(self, layer: int, position: int) -> Float[Tensor, "batch suffix d_model"]:
        """The residual stream entering a layer, from a position on."""
        first, tensor = self.resid[layer]
        return tensor[:, position - first :]

    def stacked(self, runs: int) -> dict[str, Tensor]:
        """What stands at each position of the prompts (ids, mask, position ids), once for each run."""
        out = {}
        for name in ("input_ids", "attention_mask", "position_ids"):
            tensor = self.tensors[name]
            out[name] = tensor.repeat(1, runs, 1) if tensor.ndim == 3 else tensor.repeat(runs, 1)
        return out

    def branch(self, position: int) -> DynamicCache:
        """A cache that grows after ``position``; earlier positions are shared."""
        out = DynamicCache()
        out.layers = [SharedLayer(position) for _ in self.shared]
        return out

    def keys_before(self, position: int) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values by layer of the positions before; None when there are none."""
        return [(k[:, :, :position], v[:, :, :position]) for k, v in self.shared] if position else None

    def fill_skipped(self, cache: DynamicCache, part: Part) -> None:
        """Give layers the clean keys and values of the runs that had not begun there, so that decoding finds them."""
        for number, (layer, (keys, values)) in enumerate(zip(cache.layers, self.shared, strict=True)):
            begun = part.begun(number)
            missing = [
                x[:, :, part.position :].repeat(len(part.runs) - begun, 1, 1, 1) for x in (keys, values)
            ]
            if not begun:
                layer.update(*missing)
            elif begun < len(part.runs):
                layer.keys, layer.values = (
                    torch.cat(pair) for pair in zip((layer.keys, layer.values), missing, strict=True)
                )


def ends_early(model: HookedModel) -> bool:
    """Whether only the last row of the last layer matters for the last logits, and no hook sees the others."""
    return can_apply_cuts(model) and not hooks_stand(model) and not model.family.adds_later


def with_mask(inputs: VLMInputs) -> dict[str, Tensor]:
    """The tensors of a batch; the attention mask is read off the token map where there is none."""
    tensors = dict(inputs.tensors)
    if "attention_mask" not in tensors:
        tensors["attention_mask"] = (inputs.tokens.roles != 0).long().to(tensors["input_ids"].device)
    return tensors
