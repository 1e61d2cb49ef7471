"""What TransformerLens' demos write, with pictures: main, exploratory analysis, activation and attribution patching."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformer_lens.utilities as utils
from torch import Tensor
from transformer_lens import ActivationCache, FactoredMatrix

from gatelens.model import HookedVLM
from model_helpers import close, no_hook_left
from tiny_models import make_picture

TEXT = "<image> is a"


@pytest.fixture
def prompts(tiny: HookedVLM) -> tuple[Any, Any]:
    """Clean and corrupt: the same words after two pictures."""
    clean, corrupt = ([make_picture(seed=s)] * 2 for s in (1, 2))
    return tiny.prepare(clean, [TEXT] * 2), tiny.prepare(corrupt, [TEXT] * 2)


@pytest.fixture
def answers(tiny: HookedVLM) -> Tensor:
    return torch.tensor([[tiny.to_single_token(word) for word in ("dog", "cat")]] * 2)


def logits_to_ave_logit_diff(logits: Tensor, answers: Tensor) -> Tensor:
    final = logits[:, -1]
    right, wrong = final.gather(-1, answers).unbind(-1)
    return (right - wrong).mean()


# ---------------------------------------------------------------- Main demo
def test_main_demo_loss_and_attention(tiny: HookedVLM, prompts: Any) -> None:
    clean, _ = prompts
    loss = tiny(clean, return_type="loss")
    assert loss.ndim == 0 and loss.isfinite()
    logits, cache = tiny.run_with_cache(clean, remove_batch_dim=False)
    attention_pattern = cache["pattern", 0, "attn"]
    strings = tiny.to_str_tokens(clean[0:1])
    assert attention_pattern.shape[-1] == len(strings) and "blocks.0.attn.hook_pattern" in cache
    model_str = str(tiny)
    assert model_str.startswith("HookedVLM(")
    one, single = tiny.run_with_cache(clean[0:1], remove_batch_dim=True)
    assert single["pattern", 0].shape == attention_pattern.shape[1:] and close(one, logits[:1])


def test_main_demo_hooks(tiny: HookedVLM, prompts: Any) -> None:
    """Zero ablation of a head's values, and a hook that stays."""
    clean, _ = prompts
    layer_to_ablate, head_index_to_ablate = 0, 1

    def head_ablation_hook(value: Tensor, hook: Any) -> Tensor:
        value[:, :, head_index_to_ablate, :] = 0.0
        return value

    original_loss = tiny(clean, return_type="loss")
    ablated_loss = tiny.run_with_hooks(
        clean,
        return_type="loss",
        fwd_hooks=[(utils.get_act_name("v", layer_to_ablate), head_ablation_hook)],
    )
    assert not close(original_loss, ablated_loss)
    tiny.add_hook(utils.get_act_name("v", layer_to_ablate), head_ablation_hook)
    assert close(tiny(clean, return_type="loss"), ablated_loss)
    tiny.reset_hooks()
    assert close(tiny(clean, return_type="loss"), original_loss) and no_hook_left(tiny)


def test_main_demo_induction_scores(tiny: HookedVLM, prompts: Any) -> None:
    """A store filled by a hook that knows its layer, over a filter of names."""
    clean, _ = prompts
    store = torch.zeros(tiny.cfg.n_layers, tiny.cfg.n_heads)

    def score_hook(pattern: Tensor, hook: Any) -> None:
        store[hook.layer(), :] = pattern.diagonal(dim1=-2, dim2=-1, offset=-1).mean((0, -1))

    tiny.run_with_hooks(
        clean,
        return_type=None,
        fwd_hooks=[(lambda name: name.startswith("blocks.") and name.endswith("pattern"), score_hook)],
    )
    _, cache = tiny.run_with_cache(clean)
    for layer in range(tiny.cfg.n_layers):
        assert close(
            store[layer], cache["pattern", layer].diagonal(dim1=-2, dim2=-1, offset=-1).mean((0, -1))
        )


def test_main_demo_factored_circuits_and_stopping(tiny: HookedVLM, prompts: Any) -> None:
    clean, _ = prompts
    OV_circuit_all_heads = tiny.OV
    assert isinstance(OV_circuit_all_heads, FactoredMatrix)
    values = OV_circuit_all_heads.eigenvalues
    assert values.shape == (tiny.cfg.n_layers, tiny.cfg.n_heads, tiny.cfg.d_head)
    OV = OV_circuit_all_heads[0, 1].AB
    group = tiny.cfg.n_heads // tiny.cfg.n_key_value_heads
    assert close(OV, tiny.W_V[0, 1 // group] @ tiny.W_O[0, 1])
    residual = tiny.run_with_hooks(clean, stop_at_layer=1)
    _, cache = tiny.run_with_cache(
        clean, names_filter=lambda name: name.endswith("resid_post"), stop_at_layer=2
    )
    assert close(residual, cache["resid_post", 0]) and "blocks.2.hook_resid_post" not in cache
    assert close(tiny(residual, start_at_layer=1, tokens=clean), tiny(clean))


def test_main_demo_backward_cache_and_generation(tiny: HookedVLM, prompts: Any) -> None:
    clean, _ = prompts
    loss, cache = tiny.run_with_cache(clean, incl_bwd=True, return_type="loss")
    assert cache["blocks.1.hook_resid_pre_grad"].shape == cache["resid_pre", 1].shape and loss.ndim == 0
    text = tiny.generate(clean, max_new_tokens=3, temperature=0.8, top_k=10)
    assert len(text) == 2 and all(isinstance(one, str) for one in text)


# ---------------------------------------------------------------- Exploratory analysis
def test_exploratory_analysis(tiny: HookedVLM, prompts: Any, answers: Tensor) -> None:
    """Logit differences by layer and by head, from the cache alone."""
    clean, _ = prompts
    logits, cache = tiny.run_with_cache(clean)
    want = logits_to_ave_logit_diff(logits, answers)
    directions = tiny.tokens_to_residual_directions(answers)
    logit_diff_directions = directions[:, 0] - directions[:, 1]
    assert logit_diff_directions.shape == (2, tiny.cfg.d_model)
    final_token_residual_stream = cache["resid_post", -1][:, -1, :]
    scaled = cache.apply_ln_to_stack(final_token_residual_stream[None], layer=-1, pos_slice=-1)[0]
    assert close((scaled * logit_diff_directions).sum(-1).mean(), want)

    def residual_stack_to_logit_diff(stack: Tensor, cache: ActivationCache) -> Tensor:
        normed = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        return (normed * logit_diff_directions).sum(-1).mean(-1)

    accumulated, labels = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, return_labels=True)
    assert len(labels) == len(residual_stack_to_logit_diff(accumulated, cache))
    per_layer, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    by_layer = residual_stack_to_logit_diff(per_layer, cache)
    assert len(labels) == len(by_layer) and labels[0] == "embed" and labels[-1].endswith("mlp_out")
    per_head, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    assert len(residual_stack_to_logit_diff(per_head, cache)) == len(labels)


# ---------------------------------------------------------------- Activation patching
def test_activation_patching_by_hand(tiny: HookedVLM, prompts: Any, answers: Tensor) -> None:
    clean, corrupt = prompts
    clean_logits, clean_cache = tiny.run_with_cache(clean)

    def residual_stream_patching_hook(resid_pre: Tensor, hook: Any, position: int) -> Tensor:
        resid_pre[:, position, :] = clean_cache[hook.name][:, position, :]
        return resid_pre

    patched = []
    for position in range(clean.shape[1]):
        hook_fn = partial(residual_stream_patching_hook, position=position)
        logits = tiny.run_with_hooks(corrupt, fwd_hooks=[(utils.get_act_name("resid_pre", 0), hook_fn)])
        patched.append(logits_to_ave_logit_diff(logits, answers).detach())
    start = logits_to_ave_logit_diff(tiny(corrupt), answers)
    words = [p for p in range(clean.shape[1]) if p not in clean.tokens.positions("image")]
    assert all(close(patched[p], start) for p in words)  # the prompts differ in their pictures alone
    assert max(abs(p - start) for p in patched) > 1e-4
    every = [(lambda name: name == "blocks.2.hook_resid_post", lambda x, hook: clean_cache[hook.name])]
    assert close(tiny.run_with_hooks(corrupt, fwd_hooks=every), clean_logits)


# ---------------------------------------------------------------- Attribution patching
def test_attribution_patching_by_hand(tiny: HookedVLM, prompts: Any, answers: Tensor) -> None:
    clean, corrupt = prompts

    def filter_not_qkv_input(name: str) -> bool:
        return "_input" not in name and name.startswith("blocks.") and "hook_result" not in name

    def get_cache_fwd_and_bwd(model: Any, tokens: Any, metric: Any) -> Any:
        model.reset_hooks()
        cache: dict[str, Tensor] = {}
        grad_cache: dict[str, Tensor] = {}
        model.add_hook(filter_not_qkv_input, lambda act, hook: cache.update({hook.name: act.detach()}), "fwd")
        model.add_hook(
            filter_not_qkv_input, lambda act, hook: grad_cache.update({hook.name: act.detach()}), "bwd"
        )
        value = metric(model(tokens))
        value.backward()
        model.reset_hooks()
        return (
            value.item(),
            ActivationCache(cache, model),
            ActivationCache(grad_cache, model),
        )

    metric = partial(logits_to_ave_logit_diff, answers=answers)
    _, clean_cache, _ = get_cache_fwd_and_bwd(tiny, clean, metric)
    value, corrupt_cache, grad_cache = get_cache_fwd_and_bwd(tiny, corrupt, metric)
    assert no_hook_left(tiny)

    name = "blocks.0.hook_in"  # the points go by their own names under a filter
    estimate = ((clean_cache[name] - corrupt_cache[name]) * grad_cache[name]).sum((0, 2))

    def mixed(share: float) -> float:
        edit = ("blocks.0.hook_resid_pre", lambda x, hook: x + share * (clean_cache[name] - x))
        return float(metric(tiny.run_with_hooks(corrupt, [edit])))

    step = 1e-2
    slope = (mixed(step) - mixed(-step)) / (2 * step)
    assert float(estimate.sum()) == pytest.approx(slope, rel=0.05, abs=1e-3) and abs(mixed(0) - value) < 1e-5
    assert estimate[clean.tokens.mask("image")[0]].abs().sum() > 1e-4
