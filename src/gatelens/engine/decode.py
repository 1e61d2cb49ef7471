"""Greedy decoding with a KV cache, in a left-padded batch, interventions holding at every step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.engine.run import compile_for, strict_edits
from gatelens.errors import InterventionError
from gatelens.inputs import next_position_ids
from gatelens.roles import Role

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model wrote.

    Attributes:
        token_ids: the new tokens on the CPU; after an example's end of sequence, that token again.
        texts: one string an example, without the end of sequence.
        tokens: the prompt's map with the new positions (role ``generated``; ``pad`` after an example's end).
    """

    token_ids: Int[Tensor, "batch new"]
    texts: list[str]
    tokens: TokenMap


@torch.no_grad()
def generate(
    model: HookedVLM,
    inputs: VLMInputs,
    interventions: Any = (),
    max_new_tokens: int = 20,
    stop_at_eos: bool = True,
) -> Generation:
    """Decode greedily; each step is the same as running the grown prompt again with the same interventions.

    The prompt runs once. A step computes one position on top of the KV cache, and the hooks act on that one
    row, at its absolute position. Selectors see generated positions as role ``generated`` (also in
    ``text``). Row ``last`` produces the first new token, row ``generated`` number k the one after.

    Args:
        model: the model.
        inputs: prompts, padded on the left.
        interventions: an intervention, a (nested) list of them, or None.
        max_new_tokens: at most so many new tokens.
        stop_at_eos: end an example at its end-of-sequence token, and the run when all have ended.

    Raises:
        InterventionError: an intervention cannot act as written, or has no effect in this model.
    """
    if max_new_tokens < 1:
        raise InterventionError(f"max_new_tokens={max_new_tokens}: give at least 1")
    prompt = inputs.tokens
    compiled = compile_for(model, interventions, prompt.extend(max_new_tokens))
    compiled.at(0, prompt.n_pos)
    ends = eos_ids(model) if stop_at_eos else []
    tensors = dict(inputs.tensors)
    attention = tensors.get("attention_mask")
    if attention is None:
        attention = (prompt.roles != Role.PAD).long().to(tensors["input_ids"].device)
    positions = tensors.get("position_ids")
    past: Any = None
    done = torch.zeros(prompt.batch_size, dtype=torch.bool)
    ended = torch.full((prompt.batch_size,), ends[0] if ends else 0)
    new: list[Tensor] = []
    with strict_edits():
        for step in range(max_new_tokens):
            logits, past = model.forward_step(tensors, compiled.pairs, past=past, use_cache=True)
            if step == 0:
                compiled.check_fired()
            chosen = logits[:, -1].argmax(dim=-1).cpu()
            chosen = torch.where(done, ended, chosen)
            new.append(chosen)
            is_end = torch.isin(chosen, torch.tensor(ends, dtype=chosen.dtype)) & ~done
            ended = torch.where(is_end, chosen, ended)
            done |= is_end
            if bool(done.all()) or step + 1 == max_new_tokens:
                break
            length = prompt.n_pos + step + 1
            attention = torch.cat([attention, attention.new_ones(attention.shape[0], 1)], dim=1)
            tensors = {"input_ids": chosen[:, None].to(attention.device), "attention_mask": attention}
            if positions is not None:
                tensors["position_ids"] = next_position_ids(positions, step)
            compiled.at(length - 1, length)
    return _finish(model, prompt, torch.stack(new, dim=1), ends)


def _finish(model: HookedVLM, prompt: TokenMap, ids: Int[Tensor, "batch new"], ends: list[int]) -> Generation:
    is_end = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype))
    after = (is_end.int().cumsum(dim=1) - is_end.int()) > 0
    texts = [
        _text(model, row[: int(keep)]) for row, keep in zip(ids, (~(is_end | after)).sum(dim=1), strict=True)
    ]
    tokens = prompt.extend(ids.shape[1], strings=_strings(model, ids))
    roles = tokens.roles.clone()
    roles[:, prompt.n_pos :][after] = Role.PAD
    return Generation(ids, texts, dataclasses.replace(tokens, roles=roles))


def eos_ids(model: HookedVLM) -> list[int]:
    """The end-of-sequence tokens of the model's generation config, else of its tokenizer; perhaps none."""
    generation = getattr(model.hf, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = getattr(model.tokenizer, "eos_token_id", None)
    return [] if found is None else [int(found)] if isinstance(found, int) else [int(i) for i in found]


def _text(model: HookedVLM, ids: Tensor) -> str:
    if model.tokenizer is None:
        return " ".join(str(i) for i in ids.tolist())
    return model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def _strings(model: HookedVLM, ids: Int[Tensor, "batch new"]) -> list[list[str]]:
    if model.tokenizer is None:
        return [[str(i) for i in row] for row in ids.tolist()]
    return [model.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
