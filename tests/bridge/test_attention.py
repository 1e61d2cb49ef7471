"""Attention while training: whoever looks inside changes nothing, dropout least of all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import gatelens as gl
from gatelens.model import HookedVLM
from intervention_helpers import prompts
from tiny_models import make_chameleon, make_chameleon_processor, make_llava, make_llava_processor

DROPOUT = 0.4


@pytest.fixture(params=["chameleon", "llava"])
def training(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model in training mode with dropout in its attention, and plain transformers' eager one."""
    make, processor = {
        "chameleon": (make_chameleon, make_chameleon_processor),
        "llava": (make_llava, make_llava_processor),
    }[request.param]
    oracle = make()
    for module in oracle.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = DROPOUT
    model = HookedVLM.from_module(copy.deepcopy(oracle), processor())
    model.hf.train()
    return model, oracle.train()


def seeded(call: Any, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return call()


def test_dropout_is_transformers_own_where_a_hook_reads_the_pattern(training: tuple[Any, Any]) -> None:
    model, oracle = training
    inputs = prompts(model)
    seen: list[torch.Tensor] = []
    hooks = [(f"blocks.{i}.attn.hook_pattern", lambda pattern, hook: seen.append(pattern)) for i in range(3)]
    watched = seeded(lambda: model.run_with_hooks(inputs, hooks))
    plain = seeded(lambda: oracle(**inputs.tensors).logits)
    real = inputs.tokens.roles != 0
    torch.testing.assert_close(watched[real], plain[real], atol=2e-5, rtol=1e-4)
    rows = seen[0][:, :, -1]  # the last row reads many keys, some of them dropped
    assert ((rows == 0) & (inputs.tokens.roles != 0)[:, None]).any()
    oracle.eval()
    assert (plain - oracle(**inputs.tensors).logits)[real].abs().max() > 0.1


def test_stepwise_attention_drops_too(training: tuple[Any, Any]) -> None:
    model, oracle = training
    inputs = prompts(model)
    model.attention = "stepwise"
    real = inputs.tokens.roles != 0
    stepwise, plain = seeded(lambda: model(inputs)), seeded(lambda: oracle(**inputs.tensors).logits)
    torch.testing.assert_close(stepwise[real], plain[real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("how", ["mask", "zero"])
def test_rows_under_a_knockout_are_dropped_from_as_well(training: tuple[Any, Any], how: str) -> None:
    model, _ = training
    inputs = prompts(model)
    cut = gl.knockout("all - first_image", "first_image", how=how)
    first, second = (seeded(lambda: model.run(inputs, cut), seed) for seed in (0, 1))
    assert (first - second)[:, -1].abs().max() > 0.1
    model.hf.eval()
    assert torch.equal(seeded(lambda: model.run(inputs, cut), 0), seeded(lambda: model.run(inputs, cut), 1))
