"""Greedy decoding with a KV cache, in a left-padded batch, interventions holding at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.clean import with_mask
from gatelens.engine.cuts import Look, can_conduct
from gatelens.engine.many import Many, runs_of
from gatelens.engine.replay import Writer, greedy
from gatelens.engine.run import Whole
from gatelens.errors import InterventionError
from gatelens.inputs import next_position_ids
from gatelens.interventions.hooks import HookPair
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
    see: Look | None = None,
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
        see: shown the attention of the row that writes each token, ``see(layer, pattern, position)`` with
            Float[batch, head, 1, key]: row ``last`` for the first new token, then each generated row.

    Raises:
        InterventionError: an intervention cannot act as written, or has no effect in this model.
    """
    if max_new_tokens < 1:
        raise InterventionError(f"max_new_tokens={max_new_tokens}: give at least 1")
    if see is not None and not can_conduct(model):
        raise InterventionError(
            "see= needs attention that gatelens computes; this decoder's is not exchangeable"
        )
    ends = eos_ids(model) if stop_at_eos else []
    ids = decode_plainly(model, inputs, interventions, max_new_tokens, ends, see)
    return finish(model, inputs.tokens, ids, ends)


@torch.no_grad()
def generate_many(
    model: HookedVLM,
    inputs: VLMInputs,
    runs: Sequence[Any],
    max_new_tokens: int = 20,
    stop_at_eos: bool = True,
) -> list[Generation]:
    """:func:`generate` under each of several runs; what they have in common is computed once.

    Args:
        model: the model.
        inputs: prompts, padded on the left.
        runs: each an intervention, a (nested) list of them, or None.
        max_new_tokens: at most so many new tokens.
        stop_at_eos: end an example at its end-of-sequence token.

    Raises:
        InterventionError: an intervention cannot act as written, or has no effect in this model.
    """
    if max_new_tokens < 1:
        raise InterventionError(f"max_new_tokens={max_new_tokens}: give at least 1")
    ends = eos_ids(model) if stop_at_eos else []
    many = Many(model, inputs, runs_of(runs), logits=False, max_new_tokens=max_new_tokens)
    found = many.generate(
        max_new_tokens, ends, lambda run: decode_plainly(model, inputs, run, max_new_tokens, ends)
    )
    return [finish(model, inputs.tokens, ids, ends) for ids in found]


def decode_plainly(
    model: HookedVLM,
    inputs: VLMInputs,
    interventions: Any,
    max_new_tokens: int,
    ends: list[int],
    see: Look | None = None,
) -> Int[Tensor, "batch new"]:
    """Greedy continuations: the whole prompt once, then one position a step."""
    choose: Writer = partial(greedy, max_new_tokens=max_new_tokens, ends=ends)
    return write_plainly(model, inputs, interventions, max_new_tokens, choose, see)


def write_plainly(
    model: HookedVLM,
    inputs: VLMInputs,
    interventions: Any,
    max_new_tokens: int,
    writer: Writer,
    see: Look | None = None,
    reading: Sequence[HookPair] = (),
) -> Int[Tensor, "batch new"]:
    """What ``writer`` chooses, token by token. ``reading``: hooks that look on at every pass."""
    prompt = inputs.tokens
    whole = Whole(model, interventions, prompt.extend(max_new_tokens), see)
    whole.at(0, prompt.n_pos)
    tensors = with_mask(inputs)
    mask, positions = tensors["attention_mask"], tensors["position_ids"]
    past = DynamicCache()  # every layer keeps every position: a knockout's rows count from the first

    def step(n: int, chosen: Int[Tensor, " batch"]) -> Tensor:
        nonlocal mask
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        whole.at(prompt.n_pos + n, prompt.n_pos + n + 1)
        new = {
            "input_ids": chosen[:, None].to(mask.device),
            "attention_mask": mask,
            "position_ids": next_position_ids(positions, n),
        }
        return model.forward_step(new, hooks, past=past)[0][:, -1]

    with whole.acting() as pairs:
        hooks = [*pairs, *reading]
        logits, _ = model.forward_step({**tensors, "logits_to_keep": 1}, hooks, past=past)
        whole.compiled.check_fired()
        return writer(logits[:, -1], step)


def finish(model: HookedVLM, prompt: TokenMap, ids: Int[Tensor, "batch new"], ends: list[int]) -> Generation:
    """Texts and token map of new tokens."""
    is_end = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype))
    after = (is_end.int().cumsum(dim=1) - is_end.int()) > 0
    longest = int((~after).sum(dim=1).max())  # runs beside this one may have gone on for longer
    ids, is_end, after = ids[:, :longest], is_end[:, :longest], after[:, :longest]
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
