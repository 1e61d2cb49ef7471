"""Many interventions on one batch of prompts: what none of them changes is computed once.

Attention is causal, so cells before the first position an intervention touches are those of the clean run.
The prompt up to there runs once and its KV cache serves every run; exact, not approximate. It is
checked against a plain run on the first prompts, and models whose prompt can't be cut (prefix attention,
three-part positions) run plainly.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.engine.decode import eos_ids
from gatelens.engine.run import compile_for, strict_edits

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM

_PER_POSITION = ("input_ids", "attention_mask", "position_ids")
_PER_PICTURE = ("pixel_values", "image_sizes", "pixel_attention_mask")


class SharedPrefix:
    """A batch of prompts whose positions before ``changed`` are run once.

    Args:
        model: the model.
        inputs: the prompts.
        changed: selector that covers every row (query position) the interventions edit.
        use: False runs everything plainly.
    """

    def __init__(self, model: HookedVLM, inputs: VLMInputs, changed: Any, use: bool = True) -> None:
        self.model, self.inputs = model, inputs
        self.tensors = dict(inputs.tensors)
        if "attention_mask" not in self.tensors:
            self.tensors["attention_mask"] = (
                (inputs.tokens.roles != 0).long().to(self.tensors["input_ids"].device)
            )
        columns = inputs.tokens.mask(changed).any(0).nonzero()
        self.start = int(columns[0]) if len(columns) and use and self._can_be_cut() else 0
        after_images = (inputs.tokens.roles == 3).any(0).nonzero()
        if len(after_images) and self.start <= int(after_images[-1]):
            self.start = 0  # pictures go in with the prefix or not at all
        self._past: Any = None
        if self.start:
            head = {k: v[:, : self.start] if k in _PER_POSITION else v for k, v in self.tensors.items()}
            _, self._past = model.forward_step(head, use_cache=True)

    def _can_be_cut(self) -> bool:
        known = set(self.tensors) <= {*_PER_POSITION, *_PER_PICTURE}
        return known and all(self.tensors[k].ndim == 2 for k in _PER_POSITION if k in self.tensors)

    def run(self, interventions: Sequence[Any]) -> Float[Tensor, "batch d_vocab"]:
        """Logits at the last position, as ``model.run(inputs, interventions)[:, -1]``.

        Raises:
            InterventionError: as ``model.run``.
        """
        if not self.start:
            return self.model.run(self.inputs, list(interventions))[:, -1]
        tokens = self.inputs.tokens
        compiled = compile_for(self.model, interventions, tokens)
        compiled.at(self.start, tokens.n_pos)
        with strict_edits():
            logits, _ = self.model.forward_step(
                self._rest(), compiled.pairs, past=fork(self._past), use_cache=True
            )
        compiled.check_fired()
        return logits[:, -1]

    def generate(self, interventions: Sequence[Any], max_new_tokens: int) -> list[str]:
        """Greedy texts, as ``model.generate(inputs, interventions, max_new_tokens)``.

        Raises:
            InterventionError: as ``model.generate``.
        """
        model, tokens = self.model, self.inputs.tokens
        if not self.start:
            return list(model.generate(self.inputs, list(interventions), max_new_tokens=max_new_tokens))
        compiled = compile_for(model, interventions, tokens.extend(max_new_tokens))
        compiled.at(self.start, tokens.n_pos)
        ends = torch.tensor(eos_ids(model), dtype=torch.long)
        step, past, mask = self._rest(), fork(self._past), self.tensors["attention_mask"]
        done = torch.zeros(tokens.batch_size, dtype=torch.bool)
        texts: list[list[int]] = [[] for _ in range(tokens.batch_size)]
        with strict_edits():
            for n in range(max_new_tokens):
                logits, past = model.forward_step(step, compiled.pairs, past=past, use_cache=True)
                if n == 0:
                    compiled.check_fired()
                chosen = logits[:, -1].argmax(-1)
                done |= torch.isin(chosen.cpu(), ends)
                for text, token, over in zip(texts, chosen.tolist(), done.tolist(), strict=True):
                    if not over:
                        text.append(token)
                if bool(done.all()):
                    break
                mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
                step = {"input_ids": chosen[:, None], "attention_mask": mask}
                compiled.at(tokens.n_pos + n, tokens.n_pos + n + 1)
        return [model.tokenizer.decode(text, skip_special_tokens=True) for text in texts]

    def _rest(self) -> dict[str, Tensor]:
        """What forward takes for the positions after the prefix; the mask covers all of them."""
        rest = {k: self.tensors[k][:, self.start :] for k in _PER_POSITION if k in self.tensors}
        return {**rest, "attention_mask": self.tensors["attention_mask"]}


def fork(past: Any) -> Any:
    """A KV cache that can grow without the original growing with it."""
    layers = getattr(past, "layers", None)
    if layers and all(type(layer).__name__ == "DynamicLayer" for layer in layers):
        twin = copy.copy(past)  # such layers grow by making new tensors: the old ones can be shared
        twin.layers = [copy.copy(layer) for layer in layers]
        return twin
    return copy.deepcopy(past)


def exact(model: HookedVLM, inputs: VLMInputs, changed: Any) -> bool:
    """Whether a shared prefix gives this model's own logits (to rounding)."""
    shared = SharedPrefix(model, inputs, changed)
    if not shared.start:
        return False
    wanted, got = model(inputs)[:, -1].float(), shared.run([]).float()
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    return bool((wanted - got).abs().max() <= tolerance * wanted.abs().max().clamp_min(1))
