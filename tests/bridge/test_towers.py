"""Edits inside vision towers: every hook point changes what the model says, or refuses. Never neither."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from case import Case, cases
from cases import gemma3, llava
from torch import Tensor

from gatelens.bridge import towers
from gatelens.errors import InterventionError
from gatelens.model import HookedVLM
from tiny_models import make_llava, make_llava_processor

CASES = cases()


class Built:
    def __init__(self, case: Case) -> None:
        hf, processor = case.model(), case.processor()
        self.model = case.wrap(hf, processor) if case.wrap else HookedVLM.from_module(hf, processor)
        self.inputs = self.model.prepare(case.picture(1), case.texts[0])
        self.points: dict[int, str] = {}
        for name, point in towers.tower_points(self.model.bridge).items():
            self.points.setdefault(id(point), name)


@pytest.fixture(scope="module", params=sorted(CASES))
def built(request: pytest.FixtureRequest) -> Built:
    found = Built(CASES[request.param])
    if not found.points:
        pytest.skip("no hook point in the tower")
    return found


def edit(value: Any, hook: Any) -> Any:
    """Another value of the same kind: noise on numbers, other rows of a table for indices."""
    if isinstance(value, tuple):
        return (edit(value[0], hook), *value[1:])
    if not value.is_floating_point():
        return value.roll(1, 0)
    return value + torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)


def test_every_point_acts_or_refuses(built: Built) -> None:
    clean = built.model(built.inputs)
    acting, refusing, silent = [], [], []
    for name in built.points.values():
        try:
            changed = built.model.run_with_hooks(built.inputs, [(name, edit)])
        except InterventionError:
            refusing.append(name)
            continue
        (acting if (changed - clean).abs().max() > 1e-5 else silent).append(name)
    assert not silent
    assert len(acting) >= 3 and len(acting) > len(built.points) // 3
    assert torch.equal(built.model(built.inputs), clean)


def test_reading_a_point_is_no_edit(built: Built) -> None:
    """What refuses edits can still be looked at, and looking changes nothing."""
    clean = built.model(built.inputs)
    logits, cache = built.model.run_with_cache(
        built.inputs, towers.tower_points(built.model.bridge).__contains__
    )
    torch.testing.assert_close(logits, clean, atol=1e-5, rtol=1e-5)
    assert len(cache.cache_dict) >= 3


@pytest.fixture(scope="module")
def tiny() -> Any:
    plain = make_llava()
    model = HookedVLM.from_module(copy.deepcopy(plain), make_llava_processor())
    inputs = model.prepare(llava.CASE.picture(0), "<image> is a")
    return plain, model, inputs


def test_a_block_edit_is_what_plain_transformers_makes_of_it(tiny: Any) -> None:
    """LLaVA reads recorded states: the edit must come before the recorder, and once."""
    plain, model, inputs = tiny
    calls = []

    def shift(value: Tensor, hook: Any = None) -> Tensor:
        calls.append(1)
        return value + torch.linspace(-1, 1, value.shape[-1])

    twin = copy.deepcopy(plain)
    twin.model.vision_tower.encoder.layers[0].register_forward_hook(lambda m, a, out: shift(out))
    with torch.no_grad():
        want = twin(**inputs.tensors).logits
    calls.clear()
    got = model.run_with_hooks(inputs, [("vision_encoder.encoder_layers.0.hook_out", shift)])
    assert len(calls) == 1
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert (got - model(inputs)).abs().max() > 1e-3


def test_the_edit_comes_first_also_when_the_model_has_run_before() -> None:
    """transformers hangs its recorder on the layers at the first pass, which may be before wrapping."""
    plain = make_llava()
    inputs = HookedVLM.from_module(make_llava(), make_llava_processor()).prepare(
        llava.CASE.picture(0), "<image> is a"
    )
    with torch.no_grad():
        plain(**inputs.tensors)
    model = HookedVLM.from_module(plain, make_llava_processor())
    name = "vision_encoder.encoder_layers.0.hook_out"
    changed = model.run_with_hooks(inputs, [(name, lambda value, hook: value * 0)])
    assert (changed - model(inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_transformerlens_alone_lets_the_edit_pass(strategy: str) -> None:
    """The fact upstream: with the bridge as it is, the same edit changes nothing at the feature layer."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    inputs = HookedVLM.from_module(make_llava(strategy), make_llava_processor(strategy)).prepare(
        llava.CASE.picture(0), "<image> is a"
    )
    hf = make_llava(strategy)
    bridge = build_bridge_from_module(hf, "LlavaForConditionalGeneration", hf_config=hf.config)
    with torch.no_grad():
        clean = hf(**inputs.tensors).logits
        for name in ("hook_out", "attn.hook_pattern"):
            point = bridge.hook_dict[f"vision_encoder.encoder_layers.0.{name}"]
            seen = []
            handle = point.register_forward_hook(lambda m, a, out, seen=seen: seen.append(1) or out * 0)
            assert torch.equal(hf(**inputs.tensors).logits, clean) and seen
            handle.remove()


def test_patterns_of_a_tower_are_edited_as_written(tiny: Any) -> None:
    """Nobody reads patch 5 any more: the same as silencing its value vector."""
    _, model, inputs = tiny
    at = "vision_encoder.encoder_layers.0.attn."

    def blind(pattern: Tensor, hook: Any) -> Tensor:
        assert pattern.shape == (1, 2, 17, 17)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 2, 17))
        return pattern.index_fill(-1, torch.tensor([5]), 0)

    def mute(value: Tensor, hook: Any) -> Tensor:
        return value.index_fill(1, torch.tensor([5]), 0)

    a = model.run_with_hooks(inputs, [(at + "hook_pattern", blind)])
    b = model.run_with_hooks(inputs, [(at + "v.hook_out", mute)])
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert (a - model(inputs)).abs().max() > 1e-3


def test_points_behind_the_feature_layer_refuse_by_name(tiny: Any) -> None:
    _, model, inputs = tiny
    assert model.hf.config.vision_feature_layer == -2
    name = "vision_encoder.encoder_layers.1.hook_out"
    with pytest.raises(InterventionError, match=f"'{name}' would change nothing: .*after layer 1 of 2"):
        model.run_with_hooks(inputs, [(name, edit)])

    def in_place(value: Tensor, hook: Any) -> None:
        value.mul_(2)

    with pytest.raises(InterventionError, match="would change nothing"):
        model.run_with_hooks(inputs, [(name, in_place)])
    with pytest.raises(InterventionError, match="would change nothing"):
        model.run_with_hooks(inputs, [(lambda n: n.endswith("post_layernorm.hook_out"), edit)])
    seen = []
    model.run_with_hooks(inputs, [(name, lambda value, hook: seen.append(value.shape))])
    assert seen == [(1, 17, 16)]


def test_a_tower_hook_that_does_not_fire_is_an_error(tiny: Any) -> None:
    _, model, inputs = tiny
    with pytest.raises(InterventionError, match=r"'vision_encoder\.hook_patch_embed' did not fire"):
        model.run_with_hooks(inputs, [("vision_encoder.hook_patch_embed", edit)])
    words = model.prepare(text="this is a")
    with pytest.raises(InterventionError, match="or the prompt has no picture"):
        model.run_with_hooks(words, [("vision_encoder.encoder_layers.0.hook_out", edit)])


def test_several_feature_layers_count_the_last() -> None:
    model = HookedVLM.from_module(make_llava())
    assert any(".encoder_layers.1." in name for name in towers.unread_points(model.bridge, model.hf.config))
    model.hf.config.vision_feature_layer = [0, -1]
    unread = towers.unread_points(model.bridge, model.hf.config)
    assert {name.split(".")[1] for name in unread} == {"post_layernorm", "hook_out", "hook_vision_out"}
    assert not towers.unread_points(HookedVLM.from_module(gemma3.model()).bridge, gemma3.model().config)


def test_stepwise_towers_compute_the_same(tiny: Any) -> None:
    plain, model, inputs = tiny
    with torch.no_grad():
        want = plain(**inputs.tensors).logits
    model.attention = "stepwise"
    try:
        torch.testing.assert_close(model(inputs), want, atol=1e-5, rtol=1e-4)
        name = "vision_encoder.encoder_layers.0.attn.hook_pattern"
        assert torch.equal(model.run_with_hooks(inputs, [(name, lambda p, hook: p.clone())]), model(inputs))
    finally:
        model.attention = "fused"
