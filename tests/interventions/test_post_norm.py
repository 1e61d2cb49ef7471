"""Chameleon 34B and OLMo 2 norm after attention and MLP: the sites mean the same there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.families import FixedGrid, Geometry, Layout
from gatelens.model import HookedVLM
from intervention_helpers import layers_of, prompts, site_hooks, torch_hooks
from tiny_models import make_chameleon, make_chameleon_processor, randomize


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


@pytest.mark.parametrize("site", ["attn_out", "resid_mid", "mlp_in", "mlp_out"])
def test_zero_is_what_plain_transformers_gives(model: HookedVLM, plain: Any, site: str) -> None:
    inputs = prompts(model)
    at = inputs.tokens.mask("gate | last")[..., None]
    with (
        torch.no_grad(),
        torch_hooks(site_hooks(layers_of(plain)[1], {site: lambda x: x.masked_fill(at, 0)})),
    ):
        expected = plain(**inputs.tensors).logits
    real = inputs.tokens.roles != 0
    got = run(model, inputs, gi.ablate("gate | last", site, layers=1))
    torch.testing.assert_close(got[real], expected[real], atol=5e-5, rtol=1e-4)


def test_olmo_2_edits_the_stream_before_the_mlp_reads_it() -> None:
    """Its resid_mid and its mlp_in are one hook point: in both orders the stream is edited first."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Olmo2Config(vocab_size=50, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    plain = randomize(Olmo2ForCausalLM._from_config(config, attn_implementation="eager"), 0)
    layout = Layout(placeholder_id=7, plan=FixedGrid(2, 2, Geometry((16, 16))), eoi_ids=frozenset({8}))
    features = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    model = HookedVLM.from_parts(copy.deepcopy(plain), lambda pixels: features, layout)
    ids = torch.tensor([[1, 7, 7, 7, 7, 8, 20, 21]])
    inputs = model.inputs(ids, pixel_values=torch.zeros(1, 3, 16, 16))
    embeds = plain.get_input_embeddings()(ids)
    embeds[ids == 7] = features
    edits = {"resid_mid": 0.5, "mlp_in": -2.0}
    at = inputs.tokens.mask("last")[..., None]
    plain_edits = {site: lambda x, new=new: x.masked_fill(at, new) for site, new in edits.items()}
    with torch.no_grad(), torch_hooks(site_hooks(plain.model.layers[1], plain_edits)):
        expected = plain(inputs_embeds=embeds).logits
    for order in (["resid_mid", "mlp_in"], ["mlp_in", "resid_mid"]):
        specs = [gi.ablate("last", site, layers=1, with_=torch.full((32,), edits[site])) for site in order]
        torch.testing.assert_close(run(model, inputs, specs), expected, atol=5e-5, rtol=1e-4)
