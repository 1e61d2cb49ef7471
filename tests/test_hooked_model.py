"""Every hook gatelens relies on means in transformers what its name says, and ends with the call."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelens.bridge import attention
from gatelens.errors import InterventionError, ModelError
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from model_helpers import CASES, PICTURES, TEXTS, close, no_hook_left

LAYER = 1


def decoder(hf: Any) -> Any:
    return hf.model.layers if hasattr(hf.model, "layers") else hf.model.language_model.layers


def plain_logits(oracle: Any, inputs: VLMInputs, register: Callable[[Any], Any]) -> Tensor:
    """Transformers' logits with one torch hook in the decoder layer LAYER."""
    handle = register(decoder(oracle)[LAYER])
    try:
        with torch.no_grad():
            return oracle(**inputs.tensors).logits
    finally:
        handle.remove()


def halve_output(path: str) -> Callable[[Any], Any]:
    def hook(module: Any, args: Any, out: Any) -> Any:
        return (out[0] * 0.5, *out[1:]) if isinstance(out, tuple) else out * 0.5

    return lambda layer: layer.get_submodule(path).register_forward_hook(hook)


def halve_input(path: str) -> Callable[[Any], Any]:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] * 0.5, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * 0.5}

    return lambda layer: layer.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)


SITES = {
    "hook_resid_pre": halve_input(""),
    "hook_resid_post": halve_output(""),
    "hook_attn_out": halve_output("self_attn"),
    "hook_mlp_out": halve_output("mlp"),
    "attn.hook_q": halve_output("self_attn.q_proj"),
    "attn.hook_k": halve_output("self_attn.k_proj"),
    "attn.hook_v": halve_output("self_attn.v_proj"),
    "attn.hook_z": halve_input("self_attn.o_proj"),
    "mlp.hook_post": halve_input("mlp.down_proj"),
}


@pytest.mark.parametrize("site", SITES)
def test_an_edit_is_the_same_edit_in_transformers(tiny: HookedVLM, oracle: Any, site: str) -> None:
    inputs = tiny.prepare(PICTURES[:2], TEXTS[:2])
    want = plain_logits(oracle, inputs, SITES[site])
    got = tiny.run_with_hooks(inputs, [(f"blocks.{LAYER}.{site}", lambda t, hook: t * 0.5)])
    assert close(got, want, inputs)
    # the query norm of Chameleon undoes a scale of q and k: hook_q and hook_k are before it
    scale_free = tiny.family.name == "chameleon" and site in ("attn.hook_q", "attn.hook_k")
    assert scale_free or not close(got, tiny(inputs), inputs)


def test_pattern_is_transformers_attention(tiny: HookedVLM, oracle: Any) -> None:
    inputs = tiny.prepare(PICTURES[:2], TEXTS[:2])
    with torch.no_grad():
        want = oracle(**inputs.tensors, output_attentions=True).attentions
    _, cache = tiny.run_with_cache(
        inputs, lambda name: name.endswith("attn.hook_pattern") and name.startswith("blocks.")
    )
    assert len(cache) == len(want) == 3
    real = inputs.tensors["attention_mask"].bool()[:, None, :, None]
    for layer, weights in enumerate(want):
        assert close(torch.where(real, cache["pattern", layer], 0), torch.where(real, weights, 0))


def test_score_and_pattern_edits_take_effect(tiny: HookedVLM) -> None:
    """The same knockout of one key for the last row, before the softmax and, renormalised, after it."""
    inputs = tiny.prepare(*CASES["one image"])
    key = inputs.tokens.positions("first_image")[0]

    def before(scores: Tensor, hook: Any) -> Tensor:
        scores[:, :, -1, key] = -torch.inf
        return scores

    def after(pattern: Tensor, hook: Any) -> Tensor:
        pattern[:, :, -1, key] = 0
        return pattern / pattern.sum(-1, keepdim=True)

    by_scores = tiny.run_with_hooks(inputs, [(f"blocks.{LAYER}.attn.hook_attn_scores", before)])
    by_pattern = tiny.run_with_hooks(inputs, [(f"blocks.{LAYER}.attn.hook_pattern", after)])
    assert close(by_scores, by_pattern) and not close(by_scores[:, -1], tiny(inputs)[:, -1])
    assert close(by_scores[:, :-1], tiny(inputs)[:, :-1])  # causal: nothing before the row moves


def test_qk_norm_hooks(tiny_chameleon: HookedVLM) -> None:
    inputs = tiny_chameleon.prepare(*CASES["one image"])
    clean = tiny_chameleon(inputs)
    for name in ("hook_q_normed", "hook_k_normed", "hook_rot_q", "hook_rot_k"):
        got = tiny_chameleon.run_with_hooks(inputs, [(f"blocks.1.attn.{name}", lambda t, hook: t * 0.5)])
        assert not close(got, clean), name


def test_hooks_of_one_point_run_in_order(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    seen: list[float] = []
    name = "blocks.0.hook_resid_pre"
    tiny.run_with_hooks(
        inputs,
        [
            (name, lambda t, hook: t * 0 + 2),
            (name, lambda t, hook: t * 3),
            (name, lambda t, hook: seen.append(float(t.max()))),
        ],
    )
    assert seen == [6.0]


def test_decoder_filter_leaves_the_vision_tower_alone(tiny_llava: HookedVLM) -> None:
    seen: list[str] = []
    pattern = re.compile(r"^blocks\.\d+\.hook_resid_pre$")
    inputs = tiny_llava.prepare(*CASES["one image"])
    tiny_llava.run_with_hooks(
        inputs, [(lambda n: bool(pattern.match(n)), lambda t, hook: seen.append(hook.name))]
    )
    assert len(seen) == 3
    loose = tiny_llava.hook_points.resolve(lambda n: n.endswith("hook_resid_pre"))
    assert len(loose) == 5  # two of them are the vision tower's


# ---------------------------------------------------------------- hooks end with the call
def test_no_hook_outlives_a_call(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    tiny.run_with_hooks(inputs, [("blocks.0.hook_resid_pre", lambda t, hook: t)])
    tiny.run_with_cache(inputs)
    assert no_hook_left(tiny)


def test_no_hook_outlives_an_error(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    clean = tiny(inputs)

    def fail(tensor: Tensor, hook: Any) -> None:
        raise RuntimeError("on purpose")

    edit = ("blocks.0.hook_resid_pre", lambda t, hook: t * 0)
    with pytest.raises(RuntimeError, match="on purpose"):
        tiny.run_with_hooks(inputs, [edit, ("blocks.2.attn.hook_pattern", fail)])
    with pytest.raises(
        InterventionError, match=r"no hook 'blocks\.0\.hook_resid_per'.*'blocks\.0\.hook_resid_pre'"
    ):
        tiny.run_with_hooks(inputs, [edit, ("blocks.0.hook_resid_per", fail)])
    with pytest.raises(InterventionError, match=r"hook_result' never fires.*set_use_attn_result"):
        tiny.run_with_hooks(inputs, [edit, ("blocks.0.attn.hook_result", fail)])
    assert no_hook_left(tiny)
    assert torch.equal(tiny(inputs), clean)


def test_a_callers_own_hook_survives(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    calls: list[int] = []
    with tiny.hooks([("blocks.0.hook_resid_pre", lambda t, hook: calls.append(1))]):
        tiny.run_with_hooks(inputs, [("blocks.0.hook_resid_pre", lambda t, hook: None)])
        tiny(inputs)
    tiny(inputs)
    assert len(calls) == 2 and no_hook_left(tiny)


# ---------------------------------------------------------------- fused and stepwise attention
INSIDE = ["attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_rot_q", "attn.hook_rot_k"]
OUTSIDE = ["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "hook_attn_out", "hook_resid_mid"]


@pytest.fixture
def stepwise(tiny: HookedVLM) -> Any:
    """Calls ``fn`` with every layer's attention taken apart."""

    def call(fn: Callable[[], Any]) -> Any:
        tiny.attention = "stepwise"
        try:
            return fn()
        finally:
            tiny.attention = "fused"

    return call


@pytest.mark.parametrize("site", [None, *INSIDE, *OUTSIDE])
def test_fused_attention_changes_nothing(tiny: HookedVLM, stepwise: Any, site: str | None) -> None:
    inputs = tiny.prepare(PICTURES, TEXTS)
    hooks = [] if site is None else [(f"blocks.{LAYER}.{site}", lambda t, hook: t * 0.5)]
    got = tiny.run_with_hooks(inputs, hooks)
    want = stepwise(lambda: tiny.run_with_hooks(inputs, hooks))
    assert got.isfinite().all() and close(got, want, inputs)


def test_every_hook_fires_with_the_same_values_either_way(tiny: HookedVLM, stepwise: Any) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    _, want = stepwise(lambda: tiny.run_with_cache(inputs))
    decoder_names = [name for name in want if name.startswith("blocks.1.")]
    assert len(decoder_names) > 40
    for name in decoder_names:  # one at a time: only its own layer is taken apart, and only where it must be
        _, got = tiny.run_with_cache(inputs, name)
        assert got[name].shape == want[name].shape, name
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=1e-4, msg=name)


def test_fused_attention_is_only_taken_apart_where_a_hook_stands(
    tiny: HookedVLM, stepwise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart: list[int] = []
    whole = attention.masked_scores

    def counted(*args: Any) -> Tensor:
        apart.append(1)
        return whole(*args)

    monkeypatch.setattr(attention, "masked_scores", counted)
    inputs = tiny.prepare(*CASES["one image"])
    for site, n_apart in [("attn.hook_z", 0), ("attn.hook_pattern", 1), ("attn.hook_attn_scores", 1)]:
        apart.clear()
        tiny.run_with_hooks(inputs, [(f"blocks.1.{site}", lambda t, hook: t)])
        assert len(apart) == n_apart, site
    apart.clear()
    stepwise(lambda: tiny(inputs))
    assert len(apart) == sum(isinstance(m, attention.HookedAttention) for m in tiny.hf.modules())
    with pytest.raises(ModelError, match="attention 'quick': write fused or stepwise"):
        tiny.attention = "quick"
