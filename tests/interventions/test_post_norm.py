"""Chameleon 34B norms after attention and MLP: the sites mean the same there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.model import HookedVLM
from intervention_helpers import layers_of, prompts, torch_hooks
from tiny_models import make_chameleon, make_chameleon_processor


@pytest.fixture(scope="module")
def plain() -> Any:
    return make_chameleon(swin_norm=True)


@pytest.fixture(scope="module")
def model(plain: Any) -> HookedVLM:
    model = HookedVLM.from_module(copy.deepcopy(plain), make_chameleon_processor())
    model.attention = "stepwise"  # equal runs are then equal to the last bit
    return model


@pytest.mark.parametrize("site", gi.SITES)
def test_own_activations_change_nothing_and_zero_changes_something(model: HookedVLM, site: str) -> None:
    inputs = prompts(model)
    clean, cache = model.run_with_cache(inputs)
    assert torch.equal(run(model, inputs, gi.patch(cache, "all", site)), clean)
    assert (run(model, inputs, gi.ablate("last", site, layers=1)) - clean)[:, -1].abs().max() > 1e-4


@pytest.mark.parametrize("site", ["attn_out", "resid_mid", "mlp_out"])
def test_zero_is_what_plain_transformers_gives(model: HookedVLM, plain: Any, site: str) -> None:
    inputs = prompts(model)
    at, block = inputs.tokens.mask("gate | last")[..., None], layers_of(plain)[1]
    held: dict[str, Tensor] = {}

    def keep(_: Any, args: tuple[Tensor, ...]) -> None:
        held["x"] = args[0]

    norm = block.post_attention_layernorm if site == "mlp_out" else block.input_layernorm

    def replace(_: Any, args: Any, out: Tensor) -> Tensor:
        return torch.where(at, -held["x"] if site == "resid_mid" else torch.zeros_like(out), out)

    hooks = [block.register_forward_pre_hook(keep), norm.register_forward_hook(replace)]
    with torch.no_grad(), torch_hooks(hooks):
        expected = plain(**inputs.tensors).logits
    real = inputs.tokens.roles != 0
    got = run(model, inputs, gi.ablate("gate | last", site, layers=1))
    torch.testing.assert_close(got[real], expected[real], atol=5e-5, rtol=1e-4)
