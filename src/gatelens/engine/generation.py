"""Decoding with a KV cache, in a left-padded batch, interventions holding at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.engine.cuts import PatternCallback, can_apply_cuts
from gatelens.engine.decoding import Greedy, Sampler, Sampling, decode
from gatelens.engine.full_run import full_decoder
from gatelens.engine.run_batch import RunBatch, specs_of
from gatelens.errors import InterventionError, shown
from gatelens.hooked_model import HookedModel, usable
from gatelens.inputs import VLMInputs
from gatelens.interventions.arguments import as_count, as_flag
from gatelens.interventions.compile import as_interventions
from gatelens.tokens import Role, TokenMap


@dataclass(frozen=True, eq=False, repr=False)
class Generation:
    """What a model wrote.

    Attributes:
        token_ids: the new tokens on the CPU; after an example's end of sequence, that token again.
        texts: one string an example, without the end of sequence.
        tokens: the prompt's map with the new positions (role ``generated``; ``pad`` after an example's end).
        prompt: the prompt that it continued.

    Example:
        >>> written = model.generate(inputs, max_new_tokens=3, return_type="map")
        >>> written.texts, written.tokens.positions("generated")
        (['sunflower'], [70, 71])
    """

    token_ids: Int[Tensor, "batch new"]
    texts: list[str]
    tokens: TokenMap
    prompt: VLMInputs

    @property
    def inputs(self) -> VLMInputs:
        """Prompts with what was written after them, as a batch to run again: the new words keep role ``generated``."""
        return self.prompt.grown(self.token_ids, self.tokens, self.texts)

    def __repr__(self) -> str:
        lines = [f"  {number}: {text[:90]!r}" for number, text in enumerate(self.texts[:6])]
        more = [f"  … {len(self.texts) - 6} more"] if len(self.texts) > 6 else []
        head = f"Generation({len(self.texts)} x {self.token_ids.shape[1]} new tokens)"
        return "\n".join([head, *lines, *more])


@torch.no_grad()
def generate(
    model: HookedModel,
    inputs: VLMInputs,
    interventions: Any = (),
    max_new_tokens: int = 20,
    stop_at_eos: bool = True,
    see: PatternCallback | None = None,
    sampling: Sampling | None = None,
) -> Generation:
    """Decode, greedily or by sampling; each step is what the grown prompt gives under the same interventions.

    The prompt runs once. A step computes one position on top of the KV cache, and the hooks act on that one
    row, at its absolute position. Selectors see generated positions as role ``generated`` (also in
    ``text``). Row ``last`` produces the first new token, row ``generated`` number k the one after.

    Args:
        model: the model.
        inputs: prompts, padded on the left.
        interventions: an intervention, a (nested) list of them, or None.
        max_new_tokens: the maximum number of new tokens.
        stop_at_eos: end an example at its end-of-sequence token, and the run when all have ended.
        see: shown the attention of the row that writes each token, ``see(layer, pattern, position)`` with
            Float[batch, head, 1, key]: row ``last`` for the first new token, then each generated row.
        sampling: how tokens are drawn; None takes the likeliest.

    Raises:
        InterventionError: an intervention cannot act as written, or has no effect in this model.
        InputError: prompt and new tokens take more positions than the model has.

    Example:
        >>> generation = gl.engine.generate(model, inputs, max_new_tokens=2)
        >>> generation.texts
        ['sunflower']
    """
    inputs, max_new_tokens = usable(model, inputs), as_count(max_new_tokens, "max_new_tokens")
    if see is not None and not callable(see):
        raise InterventionError(f"see={shown(see)}: give a function of layer, pattern and position")
    if see is not None and not can_apply_cuts(model):
        raise InterventionError(
            "see= needs attention that gatelens computes; this decoder's is not exchangeable"
        )
    ends = eos_ids(model) if as_flag(stop_at_eos, "stop_at_eos") else []
    with model.lock:
        decoder = full_decoder(model, inputs, as_interventions(interventions), max_new_tokens, see)
        example_ids = inputs.tokens.example_ids
        choose = Greedy(ends) if sampling is None else Sampler(ends, sampling, example_ids)
        ids = decode(decoder, choose, max_new_tokens)
    return finish(model, inputs, ids, ends)


@torch.no_grad()
def generate_many(
    model: HookedModel,
    inputs: VLMInputs,
    runs: Sequence[Any],
    max_new_tokens: int = 20,
    stop_at_eos: bool = True,
) -> list[Generation]:
    """:func:`generate` under each of several runs; what they have in common is computed once.

    Args:
        model, inputs, max_new_tokens, stop_at_eos: see :func:`generate`.
        runs: each an intervention, a (nested) list of them, or None.

    Raises:
        InterventionError: an intervention cannot act as written, or has no effect in this model.
        InputError: prompt and new tokens take more positions than the model has.

    Example:
        >>> runs = [None, gl.knockout("last", "gate")]
        >>> [one.texts for one in gl.engine.generate_many(model, inputs, runs, max_new_tokens=2)]
        [['sunflower'], ['fox']]
    """
    inputs, max_new_tokens = usable(model, inputs), as_count(max_new_tokens, "max_new_tokens")
    ends = eos_ids(model) if as_flag(stop_at_eos, "stop_at_eos") else []
    with model.lock:
        batch = RunBatch(model, inputs, specs_of(runs), every_position=False, max_new_tokens=max_new_tokens)
        written = batch.decode(partial(Greedy, ends))
    return [finish(model, inputs, ids, ends) for ids in written]


def finish(
    model: HookedModel, prompt: VLMInputs, ids: Int[Tensor, "batch new"], ends: list[int]
) -> Generation:
    """Texts and token map of new tokens."""
    is_end = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype))
    after = (is_end.int().cumsum(dim=1) - is_end.int()) > 0
    longest = int((~after).sum(dim=1).max())  # runs beside this one may have gone on for longer
    ids, after = ids[:, :longest], after[:, :longest]
    texts = [text_before_end(model, row.tolist(), ends) for row in ids]
    tokens = prompt.tokens.extend(ids.shape[1], strings=_strings(model, ids))
    roles = tokens.roles.clone()
    roles[:, prompt.tokens.n_pos :][after] = Role.PAD
    return Generation(ids, texts, dataclasses.replace(tokens, roles=roles), prompt)


def eos_ids(model: HookedModel) -> list[int]:
    """The end-of-sequence tokens of the model's generation config, else of its tokenizer; perhaps none."""
    generation = getattr(model.hf, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    if ends is None:
        ends = getattr(model.tokenizer, "eos_token_id", None)
    if ends is None:
        return []
    return [int(ends)] if isinstance(ends, int) else [int(i) for i in ends]


def text_before_end(model: HookedModel, ids: list[int], ends: list[int]) -> str:
    """The text of one example's tokens up to its end of sequence; without a tokenizer, the ids."""
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    if model.tokenizer is None:
        return " ".join(str(i) for i in ids[:stop])
    return model.tokenizer.decode(ids[:stop], skip_special_tokens=True)


def _strings(model: HookedModel, ids: Int[Tensor, "batch new"]) -> list[list[str]]:
    if model.tokenizer is None:
        return [[str(i) for i in row] for row in ids.tolist()]
    return [model.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
