"""Norms held at their scale, and the ways of heads, neurons and logits through them."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from cases.gemma3 import CASE as GEMMA3
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import gatelens as gl
from gatelens.bridge.residual import FrozenNorm, ResidualStream, output_logits, token_directions
from gatelens.data import Example, Pair
from gatelens.errors import InputError, InterventionError, ModelError
from gatelens.families import FixedGrid, Geometry, Layout
from gatelens.model import HookedVLM
from gatelens.readouts.attribution import By
from tiny_models import randomize

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LAYOUT = Layout(placeholder_id=7, plan=FixedGrid(2, 2, Geometry((16, 16))), eoi_ids=frozenset({8}))


def layer_norm() -> nn.LayerNorm:
    return randomize(nn.LayerNorm(16), 3)


def rms(kind: type) -> nn.Module:
    return randomize(kind(16, eps=1e-2), 3)


@pytest.mark.parametrize("norm", [rms(LlamaRMSNorm), rms(GemmaRMSNorm), layer_norm(), nn.RMSNorm(16)])
def test_a_frozen_norm_sums_to_the_norm(norm: nn.Module) -> None:
    rows = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    rows[1, 2] = 0
    frozen = FrozenNorm.at(norm, rows)
    parts = torch.randn(4, 2, 3, 16)
    parts = torch.cat([parts, (rows - parts.sum(0))[None]])
    torch.testing.assert_close(frozen(parts).sum(0) + frozen.bias, norm(rows), atol=1e-5, rtol=1e-5)
    direction = torch.randn(2, 3, 16)
    want = (frozen(parts) * direction).sum(-1)
    torch.testing.assert_close((parts * frozen.pull_back(direction)).sum(-1), want, atol=1e-4, rtol=1e-4)


def test_the_weight_of_a_norm_is_its_own() -> None:
    llama, gemma = rms(LlamaRMSNorm), rms(GemmaRMSNorm)
    rows = torch.randn(3, 16)
    torch.testing.assert_close(FrozenNorm.at(llama, rows).weight, llama.weight)
    torch.testing.assert_close(FrozenNorm.at(gemma, rows).weight, 1 + gemma.weight)
    want = (rows.square().mean(-1, keepdim=True) + 1e-2).sqrt()
    torch.testing.assert_close(FrozenNorm.at(llama, rows).scale, want)


def test_what_is_no_norm_is_refused() -> None:
    with pytest.raises(ModelError, match="Tanh is neither an RMS norm nor a layer norm"):
        FrozenNorm.at(nn.Tanh(), torch.randn(3, 16))


def decoder(kind: str) -> Any:
    """Decoders whose layers add in other ways than Llama's."""
    if kind == "granite":  # multipliers on sublayers, embedding and logits
        config = GraniteConfig(**SIZES, residual_multiplier=0.4, logits_scaling=3.0, embedding_multiplier=2.0)
        return GraniteForCausalLM(config)
    if kind == "olmo2":  # norms after attention and MLP only
        return Olmo2ForCausalLM(Olmo2Config(**SIZES))
    if kind == "cohere":  # attention and MLP side by side, layer norm, scaled logits, tied embeddings
        return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3))
    if kind == "starcoder2":  # biases everywhere, layer norm with a bias
        return Starcoder2ForCausalLM(Starcoder2Config(**SIZES, use_bias=True))
    if kind == "phi":  # side by side, and a bias of the unembedding too
        return PhiForCausalLM(PhiConfig(**SIZES))
    return GraniteMoeForCausalLM(GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


def run(kind: str) -> tuple[HookedVLM, Any, Tensor, Any]:
    torch.manual_seed(0)
    tower = nn.Conv2d(3, 32, kernel_size=8, stride=8)
    model = HookedVLM.from_parts(
        randomize(decoder(kind), 5), lambda x: tower(x).flatten(2).transpose(1, 2), LAYOUT
    )
    ids = torch.tensor([[1, 7, 7, 7, 7, 8, 20, 21]])
    inputs = model.inputs(ids, pixel_values=torch.rand(1, 3, 16, 16))
    return model, inputs, *model.run_with_cache(inputs)


@pytest.mark.parametrize("kind", ["granite", "olmo2", "cohere", "starcoder2", "phi"])
def test_other_decoders_add_up_too(kind: str) -> None:
    model, inputs, logits, cache = run(kind)
    for layer in range(2):
        whole = cache["resid_pre", layer + 1] if layer == 0 else cache["resid_post", layer]
        torch.testing.assert_close(cache.decompose_resid(layer + 1).sum(0), whole, atol=1e-5, rtol=0)
        parts = cache.get_full_resid_decomposition(layer + 1)
        torch.testing.assert_close(parts.sum(0), whole, atol=1e-4, rtol=0)
    attrs = cache.logit_attrs(cache.decompose_resid(), 3).sum(0)
    norm, unembedding = (getattr(model.bridge, name).original_component for name in ("ln_final", "unembed"))
    # biases of the final norm and of the unembedding are nobody's part
    bias = 0.0 if getattr(norm, "bias", None) is None else unembedding(norm.bias)[3]
    torch.testing.assert_close(attrs + bias, logits[..., 3], atol=1e-4, rtol=0)
    assert kind not in ("starcoder2", "phi") or abs(float(bias)) > 0.01
    for by in get_args(By):
        assert gl.attribute(model, inputs, (3, 5), by=by).error < 1e-5
    last = cache["resid_post", 1][0]
    torch.testing.assert_close(output_logits(model.bridge, last), logits[0], atol=1e-5, rtol=0)


def test_experts_are_refused_by_neuron() -> None:
    model, inputs, _, cache = run("moe")
    with pytest.raises(ModelError, match="layer 0 has no W_out"):
        cache.stack_neuron_results(1)
    with pytest.raises(ModelError, match=r"by='component' can"):
        gl.attribute(model, inputs, 3, by="neuron")
    # TransformerLens has this name there, for what the MLP adds
    assert "blocks.0.mlp.hook_post" not in model.hook_dict and "blocks.0.mlp.hook_out" in model.hook_dict
    with pytest.raises(InterventionError, match=r"blocks\.0\.mlp\.hook_post") as error:
        model.run(inputs, [gl.patch(cache, at="last", site="neuron", layers=[0])])
    assert "\n" not in str(error.value)
    pair = Pair(*(Example(None, "", (), "", "") for _ in "ab"), differ="", target="", base="")
    with pytest.raises(
        InputError, match=r"has no 'blocks\.0\.mlp\.hook_post', so that site cannot be patched"
    ):
        gl.patch_map(model, pair, gl.metrics.logit(3), "neuron")
    assert gl.attribute(model, inputs, 3, by="head").error < 1e-5
    whole = cache["resid_post", 1]
    torch.testing.assert_close(cache.decompose_resid().sum(0), whole, atol=1e-5, rtol=0)


def test_heads_and_neurons_by_hand_through_gemmas_norms() -> None:
    """Each one's part, not only their sum: W_O's own columns, over the norm's denominator, times one plus weight."""
    hf, processor = GEMMA3.model(), GEMMA3.processor()
    model = HookedVLM.from_module(hf, processor)
    _, cache = model.run_with_cache(model.prepare(GEMMA3.picture(), GEMMA3.texts[0]))
    block = hf.model.language_model.layers[1]
    stream = ResidualStream(model.bridge, cache.__getitem__)
    sources = (
        (stream.heads(1), 16, "post_attention_layernorm"),
        (stream.neurons(1), 1, "post_feedforward_layernorm"),
    )
    linears = (block.self_attn.o_proj, block.mlp.down_proj)
    for ((source, route), width, name), linear in zip(sources, linears, strict=True):
        norm = getattr(block, name)
        flat = source.reshape(*source.shape[:2], -1)
        weight = linear.weight
        whole = flat @ weight.T
        denominator = (whole.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        second = slice(width, 2 * width)
        want = flat[..., second] @ weight[:, second].T / denominator * (1 + norm.weight)
        got = route.through(flat[..., second] @ route.weight[second])
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_directions_of_capped_logits() -> None:
    from cases.paligemma import CASES

    case = next(one for one in CASES if one.name == "paligemma2")
    model = HookedVLM.from_module(case.model(), case.processor())
    logits, cache = model.run_with_cache(model.prepare(case.picture(), case.texts[0]))
    rows = cache["resid_post", int(model.cfg.n_layers) - 1]
    assert logits.abs().max() > 3  # of 5: the cap bends them
    ids = logits.argmin(-1)
    norm = FrozenNorm.at(model.bridge.ln_final, rows)
    direction, bias = token_directions(model.bridge, norm, rows, ids)
    want = logits.gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close((rows * direction).sum(-1) + bias, want, atol=1e-4, rtol=0)
