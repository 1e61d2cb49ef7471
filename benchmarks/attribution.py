"""Attribution patching over all positions and layers beside TransformerLens' own, in time and memory.

Both give the gradient times the difference of the stream entering every layer at every position, from two prompts:
``gl.attribution_map``, and TransformerLens' ``cache_activation_and_gradient`` at those hook points, which is what its
``attribution_patch`` calls; that one has no stream among its nodes. Sides are timed in turn in one process; memory is
taken as in ``memory.py``, each in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

import gatelens as gl
from gatelens.data import Example, Pair

from .memory import extra_bytes, in_process
from .model import SMALL, TINY, Size, make_hooked, make_ids, make_transformers, twin_of, with_tokens
from .plain import make_plain
from .sweep import model_facts, words
from .timing import in_turn, pair_ratios, ratio, use_all_cores

FASTER, MEMORY = 1.5, 0.5  # at least so many times as fast, with at most this share of the memory
SIDES = ("gatelens", "transformer_lens", "forward")
PAIR = Pair(
    *(Example(None, str(seed), (), "", str(seed)) for seed in (1, 0)), differ="seed", target="", base=""
)


class Ours:
    """The map as a user gets it; prompts are drawn by their seed, as the model has no tokenizer."""

    def __init__(self, hf: Any, size: Size) -> None:
        self.model, _ = make_hooked(hf, size)
        self.metric, self.size = gl.metrics.logit_diff(*words(size)), size
        self.model.__dict__["prepare"] = self.prepare

    def prepare(self, images: Any, text: list[str], chat: bool) -> Any:
        """The prompt of a seed."""
        return self.model.inputs(make_ids(self.size, seed=int(text[0])))

    def map(self) -> Tensor:
        """Float[layer, pos], what the metric should gain."""
        found = gl.attribution_map(self.model, PAIR, self.metric, check=0, progress=False)
        return torch.as_tensor(found.columns["patched"] - found.columns["corrupt"])[0]


class Theirs:
    """The same by TransformerLens on its own bridge."""

    def __init__(self, hf: Any, size: Size) -> None:
        self.bridge = make_plain(hf)
        self.clean, self.corrupt = make_ids(size, seed=1), make_ids(size, seed=0)
        self.metric = gl.metrics.logit_diff(*words(size))
        self.names = [f"blocks.{layer}.hook_resid_pre" for layer in range(size.n_layers)]

    def metric_of(self, logits: Tensor) -> Tensor:
        """One number, as it asks for."""
        return self.metric(logits).sum()

    def map(self) -> Tensor:
        """Float[layer, pos], what the metric should gain."""
        given: dict[str, Any] = {"metric_fn": self.metric_of, "names_filter": self.names}
        with torch.no_grad():
            clean = cache_activation_and_gradient(self.bridge, self.clean, **given, compute_gradient=False)
        with torch.enable_grad(), self.bridge.hooks([(self.names[0], asking)]):
            corrupt = cache_activation_and_gradient(self.bridge, self.corrupt, **given)
        rows = []
        for name in self.names:
            grad = corrupt.gradients[name]
            assert grad is not None
            rows.append(((clean.activations[name] - corrupt.activations[name]) * grad).sum(-1)[0])
        return torch.stack(rows)


def asking(tensor: Tensor, hook: Any) -> Tensor:
    """The tensor, asking for its gradient: as parameters do not, nothing else would, and theirs are not computed."""
    return tensor.detach().requires_grad_()


def measure(size: Size = SMALL, repeats: int = 5, hf: Any = None) -> dict[str, Any]:
    """Times and memory of both, and how far their numbers differ."""
    hf = make_transformers(size) if hf is None else hf
    ours, theirs = Ours(twin_of(hf, "sdpa"), size), Theirs(twin_of(hf, "eager"), size)
    times = in_turn({"gatelens": ours.map, "transformer_lens": theirs.map}, repeats)
    own, other = ours.map(), theirs.map()
    found = memory(size, min(repeats, 3))
    faster = ratio(times["transformer_lens"], times["gatelens"])
    share = found["gatelens"] / found["transformer_lens"] if found else None
    return {
        "model": model_facts(size, hf),
        "cells": own.numel(),
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratio": faster,
        "ratio_of_least": min(times["transformer_lens"].seconds) / min(times["gatelens"].seconds),
        "pair_ratios": pair_ratios(times["transformer_lens"], times["gatelens"]),
        "extra_mib": {name: round(value / 2**20, 1) for name, value in found.items()},
        "memory_share": share,
        "limits": {"faster": FASTER, "memory": MEMORY},
        "passes": {"faster": faster >= FASTER, "memory": share is not None and share <= MEMORY},
        "max_difference": float((own - other).abs().max()),
        "largest": float(other.abs().max()),
    }


def memory(size: Size, repeats: int) -> dict[str, float]:
    """Median extra bytes of each side and of a forward pass; empty where /proc does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    found: dict[str, list[int]] = {name: [] for name in SIDES}
    for _ in range(repeats):
        for name in SIDES:
            found[name].append(in_process("benchmarks.attribution", name, size))
    return {name: statistics.median(values) for name, values in found.items()}


def work_of(name: str, size: Size) -> Callable[[], Any]:
    """The work of a side, in a process of its own."""
    if name == "forward":
        model, inputs = make_hooked(make_transformers(size), size)
        last = {**inputs.tensors, "logits_to_keep": 1}
        return lambda: model.forward_step(last)
    kind = {"gatelens": Ours, "transformer_lens": Theirs}[name]
    return kind(make_transformers(size), size).map


def main(name: str, size: str) -> None:
    """One measurement of memory, on standard output."""
    use_all_cores()
    whole = TINY if size == "tiny" else SMALL
    with torch.no_grad():
        work_of(name, with_tokens(whole, 16))()  # threads and libraries are there before it counts
        print(json.dumps({"extra": extra_bytes(work_of(name, whole))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
