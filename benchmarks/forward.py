"""A plain forward pass through HookedVLM beside transformers' own with SDPA."""

from __future__ import annotations

from typing import Any

import torch

from .model import SMALL, Size, make_hooked, make_transformers, twin_of
from .plain import make_plain, run_plain
from .sweep import model_facts
from .timing import in_turn, pair_ratios, ratio

LIMIT = 1.15


def measure(size: Size = SMALL, repeats: int = 15, hf: Any = None) -> dict[str, Any]:
    """Neither side keeps keys and values; both get the same mask and positions."""
    hf = make_transformers(size) if hf is None else hf
    model, inputs = make_hooked(twin_of(hf, "sdpa"), size)
    bridge = make_plain(twin_of(hf, "eager"))
    with torch.no_grad():
        difference = float((hf(**inputs.tensors, use_cache=False).logits - model(inputs)).abs().max())
        times = in_turn(
            {
                "transformers": lambda: hf(**inputs.tensors, use_cache=False),
                "gatelens": lambda: model(inputs),
                "transformer_lens": lambda: run_plain(bridge, inputs.tensors["input_ids"], []),
            },
            repeats,
            warm_up=2,
        )
    base = times["transformers"]
    return {
        "model": model_facts(size, hf),
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratio": ratio(times["gatelens"], base),
        "pair_ratios": pair_ratios(times["gatelens"], base),
        "ratio_transformer_lens": ratio(times["transformer_lens"], base),
        "limit": LIMIT,
        "passes": ratio(times["gatelens"], base) <= LIMIT,
        "max_logit_difference": difference,
    }
