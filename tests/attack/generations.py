"""Random lists of interventions that hold while decoding, against plain transformers run anew on each grown prompt."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import gatelens as gl
from attack.compositions import TOLERANCE, Outcome, Subject, random_move, subject
from attack.oracle import Cut, Operation, must_refuse
from gatelens.errors import GatelensError
from gatelens.tokens import Role

NEW = 4
# the whole prompt of PaliGemma attends in both directions: running it anew with a token more is another computation
LEFT_OUT = ("paligemma", "paligemma2")


def attack(names: Sequence[str], n: int, seed: int, several: int = 3) -> Iterator[Outcome]:
    """``n`` random lists over the families, ``several`` at a time on one batch of prompts."""
    usable = [name for name in names if name not in LEFT_OUT]
    for start in range(0, n, several):
        rng = random.Random(f"generate-{seed}-{start}")
        yield attack_once(subject(rng.choice(usable)), rng, several, f"seed {seed}, from {start}")


def attack_once(who: Subject, rng: random.Random, several: int, label: str) -> Outcome:
    number = rng.randrange(3)
    inputs, _, seen = who.prompt(number)
    tokens = inputs.tokens.extend(NEW - 1)  # the last new token is never read
    filler = torch.full((inputs.batch_size, NEW - 1), who.built.model.tokenizer.eos_token_id)
    visible = who.oracle.run(grown(inputs, filler))[1]
    real = tokens.roles != Role.PAD
    outcome, accepted = Outcome(), []
    for _ in range(several):
        moves = [random_move(rng, who, tokens, seen, None) for _ in range(rng.randint(1, 3))]
        ours, theirs = [m.ours for m in moves], [m.theirs for m in moves]
        refused = next((m.refused for m in moves if m.refused), None) or must_refuse(theirs, visible, real)
        where = f"{who.name} prompt {number} ({label}): {ours}"
        try:
            got = who.built.model.generate(
                inputs, ours, max_new_tokens=NEW, stop_at_eos=False, return_type="ids"
            )
        except GatelensError as error:
            outcome.counts["refused"] += 1
            if refused is None:
                outcome.wrong.append(f"refused for no reason: {error} | {where}")
            continue
        if refused is not None:
            outcome.wrong.append(f"accepted, though {refused} | {where}")
            continue
        outcome.counts["run"] += 1
        check(outcome, who, inputs, theirs, got.token_ids, f"generate | {where}")
        accepted.append((ours, theirs, got.token_ids))
    if accepted:
        many = gl.engine.generate_many(
            who.built.model, inputs, [ours for ours, _, _ in accepted], max_new_tokens=NEW, stop_at_eos=False
        )
        for (ours, theirs, alone), got in zip(accepted, many, strict=True):
            if not torch.equal(alone, got.token_ids):  # a tie may fall either way: the oracle decides
                where = f"generate_many | {who.name} prompt {number} ({label}): {ours}"
                check(outcome, who, inputs, theirs, got.token_ids, where)
    return outcome


def grown(inputs: Any, new: Tensor) -> dict[str, Tensor]:
    """The forward arguments of a prompt with further tokens."""
    tensors, n = dict(inputs.tensors), new.shape[1]
    for name, value in inputs.tensors.items():
        if name == "input_ids":
            tensors[name] = torch.cat([value, new], 1)
        elif name == "attention_mask":
            tensors[name] = torch.cat([value, torch.ones_like(new)], 1)
        elif name == "position_ids":
            top = value.amax(-1, keepdim=True)
            top = top.amax(0, keepdim=True).expand_as(top) if value.ndim == 3 else top
            steps = torch.arange(1, n + 1).expand(*value.shape[:-1], n)
            tensors[name] = torch.cat([value, top + steps], -1)
        elif name.endswith("token_type_ids"):
            tensors[name] = torch.cat([value, torch.zeros_like(new)], 1)
    return tensors


def upto(operation: Operation, n: int) -> Operation:
    """The operation on the first ``n`` positions."""
    if isinstance(operation, Cut):
        return replace(operation, queries=operation.queries[:, :n], keys=operation.keys[:, :n])
    return replace(operation, at=operation.at[:, :n])


def check(
    outcome: Outcome, who: Subject, inputs: Any, theirs: Sequence[Operation], ids: Tensor, where: str
) -> None:
    """Each token must have the highest logit of the prompt grown by those before it."""
    length = inputs.tokens.n_pos
    placeholder = int(who.built.model.layout.placeholder_id)
    for step in range(ids.shape[1]):
        if (ids[:, :step] == placeholder).any():  # read anew it would be one picture more
            return
        operations = [upto(one, length + step) for one in theirs]
        operations = [one for one in operations if isinstance(one, Cut) or one.at.any()]
        logits, _ = who.oracle.run(grown(inputs, ids[:, :step]), operations)
        last = logits[:, -1].float()
        behind = last.amax(-1) - last.gather(1, ids[:, step : step + 1])[:, 0]
        scale = max(1.0, float(last[last > -1e30].abs().max()) / 10)
        outcome.counts["compared"] += len(ids)
        outcome.worst = max(outcome.worst, float(behind.max()) / scale)
        if not float(behind.max()) <= TOLERANCE * scale:
            outcome.wrong.append(f"token {step} is {float(behind.max()):.2e} behind the best | {where}")
            return
