"""HookedVLM as TransformerLens' users know a model, with pictures; each call against plain transformers and torch."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

import gatelens as gl
from gatelens.errors import InputError, InterventionError, ModelError
from gatelens.model import HookedVLM
from gatelens.model.vlm_bridge import REFUSED
from gatelens.tokens import Role
from model_helpers import CASES, PICTURES, TEXTS, close, no_hook_left

RESID = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]


def layers(hf: Any) -> Any:
    return hf.model.layers if hasattr(hf.model, "layers") else hf.model.language_model.layers


@pytest.fixture
def inputs(tiny: HookedVLM) -> Any:
    return tiny.prepare(PICTURES[:2], TEXTS[:2])


# ---------------------------------------------------------------- names
def test_a_model_is_a_bridge(tiny: HookedVLM) -> None:
    assert isinstance(tiny, TransformerBridge) and tiny.bridge is tiny
    assert str(tiny) == repr(tiny) and "\n" not in repr(tiny)
    with pytest.raises(ModelError, match="from_pretrained"):
        HookedVLM(tiny.hf)


def test_a_name_that_is_not_there_is_one_line_with_the_nearest(tiny: HookedVLM) -> None:
    with pytest.raises(
        AttributeError, match=r"no attribute 'run_with_hook'; did you mean 'run_with_hooks'\?"
    ):
        tiny.run_with_hook(1)
    assert not hasattr(tiny, "anything_else")
    with pytest.raises(AttributeError, match="W_pos is only defined"):
        _ = tiny.W_pos


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused_in_a_line(tiny: HookedVLM, name: str) -> None:
    assert hasattr(TransformerBridge, name)
    with pytest.raises(ModelError, match=f"^{name} has no meaning for a VLM: ") as raised:
        getattr(tiny, name)()
    assert "\n" not in str(raised.value)


def test_weights_are_transformers_own(tiny: HookedVLM, oracle: Any) -> None:
    cfg, norm = (
        tiny.cfg,
        oracle.model.language_model.norm if hasattr(oracle.model, "language_model") else None,
    )
    norm = oracle.model.norm if norm is None else norm
    for name, heads, projection in (("W_Q", cfg.n_heads, "q_proj"), ("W_K", cfg.n_key_value_heads, "k_proj")):
        own = torch.stack([getattr(layer.self_attn, projection).weight for layer in layers(oracle)])
        want = own.view(3, heads, cfg.d_head, cfg.d_model).transpose(-1, -2)
        assert torch.equal(getattr(tiny, name), want)
    out = torch.stack([layer.self_attn.o_proj.weight for layer in layers(oracle)])
    assert torch.equal(tiny.W_O, out.transpose(-1, -2).view(3, cfg.n_heads, cfg.d_head, cfg.d_model))
    assert torch.equal(tiny.W_out, torch.stack([layer.mlp.down_proj.weight.T for layer in layers(oracle)]))
    assert torch.equal(tiny.W_U, oracle.lm_head.weight.T)
    assert torch.equal(tiny.W_E, oracle.get_input_embeddings().weight)
    x = torch.randn(1, 2, cfg.d_model)
    torch.testing.assert_close(tiny.ln_final(x), norm(x))
    torch.testing.assert_close(tiny.unembed(x), oracle.lm_head(x))
    group = cfg.n_heads // cfg.n_key_value_heads
    W_K = tiny.W_K.repeat_interleave(group, dim=1)
    torch.testing.assert_close(tiny.QK.AB, tiny.W_Q @ W_K.transpose(-1, -2))
    torch.testing.assert_close(tiny.OV.AB, tiny.W_V.repeat_interleave(group, dim=1) @ tiny.W_O)
    for bias in ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out"):
        with pytest.raises(AttributeError, match="bias-free projection"):
            getattr(tiny, bias)
    assert not tiny.b_U.any()
    assert torch.equal(tiny.tokens_to_residual_directions("dog"), tiny.W_U[:, tiny.to_single_token("dog")])
    assert len(tiny.all_head_labels) == 3 * cfg.n_heads and tiny.n_params_total > 0
    assert {id(p) for p in tiny.parameters()} == {id(p) for p in tiny.hf.parameters()}
    assert not any(p.requires_grad for p in tiny.parameters())


def test_the_whole_model_moves(oracle: Any, tiny: HookedVLM) -> None:
    model = HookedVLM.from_module(copy.deepcopy(oracle), tiny.processor)
    inputs = model.prepare(*CASES["one image"])
    before = model(inputs)
    assert model.double() is model and model.dtype == torch.float64 == model.W_U.dtype
    assert {p.dtype for p in model.hf.parameters()} == {torch.float64}
    precise = model(model.prepare(*CASES["one image"]))
    allowed = before > -1e30  # Chameleon's image tokens are at the lowest number of the dtype
    assert precise.dtype == torch.float64 and close(before.double()[allowed], precise[allowed])
    assert model.to("cpu") is model and model.train() is model and model.hf.training
    assert not model.eval().hf.training


def test_words(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    words, batch = tiny.to_str_tokens(inputs), tiny.prepare(PICTURES[:2], TEXTS[:2])
    assert len(words) == inputs.tokens.n_pos and words[-3:] == ["is", "it", "?"]
    assert tiny.to_str_tokens("a dog") == ["<s>", "a", "dog"]
    assert [len(row) for row in tiny.to_str_tokens(batch)] == [batch.tokens.n_pos] * 2
    assert tiny.to_string(torch.tensor([tiny.to_single_token("dog")])) == "dog"
    assert "is it ?" in tiny.to_string(inputs)[0]
    assert tiny.get_token_position("it", inputs) == inputs.tokens.n_pos - 2
    assert tiny.to_tokens(inputs) is inputs
    assert tiny.to_single_str_token(tiny.to_single_token("dog")) == "dog"


# ---------------------------------------------------------------- what a call takes and gives
def test_text_and_ids_without_pictures_run_as_they_are(tiny: HookedVLM, oracle: Any) -> None:
    ids = tiny.to_tokens("what is it")
    with torch.no_grad():
        want = oracle(input_ids=ids).logits
    assert close(tiny("what is it"), want) and close(tiny(ids), want)
    assert close(tiny.run_with_hooks(ids, []), want) and close(tiny.run_with_cache("what is it")[0], want)


def test_ids_alone_never_run_without_their_picture(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    for call in (
        tiny,
        tiny.forward,
        tiny.run_with_hooks,
        tiny.run_with_cache,
        tiny.run,
        tiny.generate,
        tiny.bridge,
    ):
        with pytest.raises(InputError, match=r"input_ids have placeholders for 1 picture.*pixel_values"):
            call(inputs.ids)
    pictures = {name: value for name, value in inputs.tensors.items() if name == "pixel_values"}
    assert close(tiny(inputs.ids, **pictures), tiny(inputs))
    with pytest.raises(InputError, match="prompt 0 has 1 <image> and 0 picture"):
        tiny("<image> is it ?")
    with pytest.raises(InputError, match="prepared inputs hold their tensors"):
        tiny(inputs, **pictures)


def test_loss_is_of_words_alone(tiny: HookedVLM, inputs: Any) -> None:
    logits, per_token = tiny(inputs, return_type="both", loss_per_token=True)
    ids, roles = inputs.ids[:, 1:], inputs.tokens.roles[:, 1:]
    word = ~torch.isin(roles, torch.tensor([Role.PAD, Role.IMAGE, Role.ROW_BREAK]))
    word &= inputs.tokens.roles[:, :-1] != Role.PAD  # nothing is predicted from padding
    want = cross_entropy(logits[:, :-1].transpose(1, 2), ids, reduction="none")
    assert close(per_token[word], want[word]) and not per_token[~word].any() and word.any() and (~word).any()
    assert close(tiny(inputs, return_type="loss"), want[word].mean())
    assert close(tiny.loss_fn(logits, inputs), want[word].mean())
    assert tiny(inputs, return_type=None) is None
    with pytest.raises(InputError, match="return_type 'predictions'"):
        tiny(inputs, return_type="predictions")


@pytest.mark.parametrize("stop", [0, 1, 3, -1])
def test_stop_at_layer(tiny: HookedVLM, oracle: Any, inputs: Any, stop: int) -> None:
    number = stop % 4 if stop >= 0 else 3 + stop
    seen: list[Tensor] = []

    def enters(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def leaves(module: Any, args: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    hooks = [layers(oracle)[0].register_forward_pre_hook(enters, with_kwargs=True)]
    hooks += [layer.register_forward_hook(leaves) for layer in layers(oracle)]
    with torch.no_grad():
        oracle(**inputs.tensors)
    for hook in hooks:
        hook.remove()
    fired: list[str] = []
    watch = [
        (name, lambda t, hook: fired.append(hook.name))
        for name in ["blocks.0.hook_resid_pre", *RESID, "ln_final.hook_in"]
    ]
    got = tiny.run_with_hooks(inputs, watch, stop_at_layer=stop)
    assert close(got, seen[number], inputs)
    assert fired == ["blocks.0.hook_resid_pre", *RESID][: number + 1 if number else 0]
    assert close(tiny.run_with_cache(inputs, stop_at_layer=stop)[0], got, inputs)
    assert close(tiny(inputs), tiny(inputs), inputs) and no_hook_left(tiny)
    with pytest.raises(InputError, match=r"stop_at_layer=4: the model has layers 0\.\.2"):
        tiny(inputs, stop_at_layer=4)


@pytest.mark.parametrize("start", [0, 1, 2, -1])
def test_start_at_layer_computes_no_layer_before(tiny: HookedVLM, inputs: Any, start: int) -> None:
    want, cache = tiny.run_with_cache(inputs)
    residual = cache["resid_pre", start % 3]
    ran: list[int] = []
    towers = [m for n, m in tiny.hf.named_modules() if n.endswith(("vision_tower", "vqmodel"))]
    watch = [tower.register_forward_hook(lambda m, a, out: ran.append(-1)) for tower in towers]
    for number, block in enumerate(tiny.blocks):
        watch.append(
            block.original_component.register_forward_hook(lambda m, a, out, n=number: ran.append(n))
        )
    got = tiny(residual, start_at_layer=start, tokens=inputs)
    for handle in watch:
        handle.remove()
    assert close(got, want, inputs)
    assert ran == list(range(start % 3, 3)) and towers
    doubled, later = tiny.run_with_cache(residual * 2, RESID, start_at_layer=start, tokens=inputs)
    assert list(later) == RESID[start % 3 :] and not close(doubled, want, inputs)
    assert close(
        tiny(residual, start_at_layer=start, stop_at_layer=3, tokens=inputs), cache["resid_post", 2], inputs
    )
    assert close(
        tiny(residual, start_at_layer=start, tokens=inputs, return_type="loss"),
        tiny(inputs, return_type="loss"),
    )


def test_start_at_layer_without_tokens_counts_from_zero(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    want, cache = tiny.run_with_cache(inputs)
    assert close(tiny(cache["resid_pre", 1], start_at_layer=1), want)
    with pytest.raises(InputError, match="a loss needs the words"):
        tiny(cache["resid_pre", 1], start_at_layer=1, return_type="loss")
    with pytest.raises(InputError, match="needs the residual stream entering it"):
        tiny(inputs, start_at_layer=1)
    with pytest.raises(InputError, match="tokens are"):
        tiny(cache["resid_pre", 1][:, :-1], start_at_layer=1, tokens=inputs)
    assert close(tiny.input_to_embed(inputs)[0], cache["resid_pre", 0])


# ---------------------------------------------------------------- hooks
def test_hook_name_is_the_one_asked_for(tiny: HookedVLM, inputs: Any) -> None:
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        kept[hook.name] = tensor
        assert hook.layer() == 2 and hook.ctx is not None

    inner: list[str] = []
    names = ["blocks.2.hook_resid_post", "blocks.2.hook_out", "blocks.2.attn.hook_z"]
    with tiny.hooks([(names[0], lambda t, hook: inner.append(hook.name))]):
        tiny.run_with_hooks(inputs, [(name, keep) for name in names])
    assert list(kept) != [] and set(kept) == set(names) and inner == names[:1]
    _, cache = tiny.run_with_cache(inputs)
    assert all(close(kept[name], cache[name], inputs) for name in names)
    kept.clear()
    tiny.run_with_hooks(inputs, [(lambda name: name == names[0], keep)])
    assert list(kept) == names[:1]


def test_hook_names_of_two_threads(tiny: HookedVLM, inputs: Any) -> None:
    """One point by two names at the same time."""
    seen: dict[str, set[str]] = {"hook_resid_post": set(), "hook_out": set()}

    def work(name: str) -> None:
        for _ in range(5):
            tiny.run_with_hooks(inputs, [(f"blocks.1.{name}", lambda t, hook: seen[name].add(hook.name))])

    threads = [threading.Thread(target=work, args=(name,)) for name in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {name: {f"blocks.1.{name}"} for name in seen}


def test_gradients_are_plain_torchs(tiny: HookedVLM, oracle: Any, inputs: Any) -> None:
    held: dict[int, Tensor] = {}

    def watch(layer: int) -> Any:
        def hook(module: Any, args: Any, out: Any) -> Any:
            tensor = out[0] if isinstance(out, tuple) else out
            if not tensor.requires_grad:
                tensor.requires_grad_()
            tensor.retain_grad()
            held[layer] = tensor

        return hook

    plain = copy.deepcopy(oracle).requires_grad_(True)
    for number, layer in enumerate(layers(plain)):
        layer.register_forward_hook(watch(number))
    plain(**inputs.tensors).logits[:, -1, 30].sum().backward()

    got: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: Any) -> None:
        got[hook.name] = gradient

    def check() -> None:
        for number, name in enumerate(RESID):
            assert close(got[name], held[number].grad, inputs) and got[name].abs().max() > 0
        got.clear()

    hooks = [(name, keep) for name in RESID]
    with tiny.hooks(bwd_hooks=hooks) as model:
        assert model is tiny
        tiny(inputs)[:, -1, 30].sum().backward()
    check()
    tiny.run_with_hooks(inputs, bwd_hooks=hooks)[:, -1, 30].sum().backward()
    check()
    tiny.add_hook(lambda name: name in RESID, keep, "bwd")
    tiny(inputs)[:, -1, 30].sum().backward()
    check()
    tiny.reset_hooks()
    assert no_hook_left(tiny) and not tiny(inputs).requires_grad
    assert all(p.grad is None for p in tiny.parameters())


def test_incl_bwd_is_the_gradient_of_the_loss(tiny: HookedVLM, inputs: Any) -> None:
    loss, cache = tiny.run_with_cache(inputs, RESID, incl_bwd=True, return_type="loss")
    held = cache[RESID[0]].clone().requires_grad_()
    again = tiny.run_with_hooks(inputs, [(RESID[0], lambda t, hook: held)], return_type="loss")
    again.backward()
    assert close(loss, again) and held.grad is not None
    assert close(cache[f"{RESID[0]}_grad"], held.grad, inputs) and held.grad.abs().max() > 0
    with pytest.raises(InputError, match="return_type='loss'"):
        tiny.run_with_cache(inputs, RESID, incl_bwd=True)
    _, everything = tiny.run_with_cache(inputs, incl_bwd=True, return_type="loss")
    towers = [name for name in tiny.hook_points.of_towers if f"{name}_grad" in everything]
    assert "unembed.hook_out_grad" in everything
    assert bool(towers) == (tiny.family.name == "llava")  # codes carry no gradient
    assert no_hook_left(tiny)


def test_hooks_that_stay(tiny: HookedVLM, inputs: Any) -> None:
    """In every call until they are reset, a sweep among them."""
    halve = ("blocks.1.hook_resid_post", lambda t, hook: t * 0.5)
    clean, want = tiny(inputs), tiny.run_with_hooks(inputs, [halve])
    knock = gl.knockout("text - gate", "image", layers=[2], how="zero")
    with tiny.hooks([halve]):
        knocked = tiny.run(inputs, knock)
    tiny.add_hook(*halve)
    try:
        for got in (
            tiny(inputs),
            tiny.run(inputs),
            tiny.run_with_cache(inputs)[0],
            tiny.run_with_hooks(inputs),
        ):
            assert close(got, want, inputs)
        assert close(tiny.run(inputs, knock), knocked, inputs)
        table = gl.sweep(
            tiny,
            inputs,
            {"cut": {"none": None, "image": knock}},
            gl.metrics.logit_diff(30, 31),
            progress=False,
        )
        rows = torch.tensor(table["value"].to_numpy()).view(2, 2)
        diffs = torch.stack([logits[:, -1, 30] - logits[:, -1, 31] for logits in (want, knocked)])
        assert close(rows, diffs.double())
    finally:
        tiny.reset_hooks()
    assert close(tiny(inputs), clean, inputs) and no_hook_left(tiny)
    tiny.add_perma_hook(*halve)
    tiny.reset_hooks()
    assert close(tiny(inputs), want, inputs)
    tiny.reset_hooks(including_permanent=True)
    tiny.run_with_hooks(inputs, [halve], reset_hooks_end=False)
    assert close(tiny(inputs), want, inputs)
    tiny.reset_hooks()
    assert close(tiny(inputs), clean, inputs)


def test_hooks_that_miss_are_refused(tiny: HookedVLM) -> None:
    with pytest.raises(InterventionError, match=r"no hook 'blocks\.1\.hook_resid_pst'.*hook_resid_post"):
        tiny.add_hook("blocks.1.hook_resid_pst", lambda t, hook: t)
    with pytest.raises(InterventionError, match=r"never fires: call model\.set_use_attn_result\(True\)"):
        tiny.add_hook("blocks.1.attn.hook_result", lambda t, hook: t)
    with pytest.raises(InterventionError, match="no hook of this model satisfies the filter"):
        tiny.add_hook(lambda name: name == "nothing", lambda t, hook: t)


def test_caching_hooks_of_transformerlens(tiny: HookedVLM, inputs: Any) -> None:
    _, want = tiny.run_with_cache(inputs, RESID)
    held = tiny.add_caching_hooks(lambda name: name in RESID)
    tiny(inputs)
    tiny.reset_hooks()
    cache, forward, backward = tiny.get_caching_hooks(RESID, incl_bwd=True)
    with tiny.hooks(forward, backward):
        tiny(inputs, return_type="loss").backward()
    _, graded = tiny.run_with_cache(inputs, RESID, incl_bwd=True, return_type="loss")
    for name in RESID:
        assert close(held[name], want[name], inputs) and close(cache[name], want[name], inputs)
        assert close(cache[f"{name}_grad"], graded[f"{name}_grad"], inputs)


def test_ways_to_cache(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    _, whole = tiny.run_with_cache(inputs)
    _, last = tiny.run_with_cache(inputs, pos_slice=-1)
    pattern = "blocks.1.attn.hook_pattern"
    assert close(last[RESID[1]], whole[RESID[1]][:, -1:]) and close(last[pattern], whole[pattern][:, :, -1:])
    _, flat = tiny.run_with_cache(inputs, remove_batch_dim=True)
    assert close(flat[RESID[1]], whole[RESID[1]][0])
    _, plain = tiny.run_with_cache(inputs, RESID, return_cache_object=False)
    assert type(plain) is dict and list(plain) == RESID
    shapes: list[int] = []
    tiny.run_with_hooks(inputs, [(RESID[0], lambda t, hook: shapes.append(t.ndim))], remove_batch_dim=True)
    halved = tiny.run_with_hooks(inputs, [(RESID[0], lambda t, hook: t * 0.5)], remove_batch_dim=True)
    assert shapes == [2] and close(halved, tiny.run_with_hooks(inputs, [(RESID[0], lambda t, hook: t * 0.5)]))


# ---------------------------------------------------------------- what only reads weights or hook points
def test_what_reads_weights_is_transformerlens_own(tiny_llava: HookedVLM, hf_llava: Any) -> None:
    """The same as on a bridge that TransformerLens built around the same weights."""
    plain = copy.deepcopy(hf_llava)
    bridge = build_bridge_from_module(plain, type(plain).__name__, hf_config=plain.config).eval()
    bridge.tokenizer = tiny_llava.tokenizer
    for name in ("W_E", "W_U", "b_U", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out"):
        assert torch.equal(getattr(tiny_llava, name), getattr(bridge, name)), name
    for name in ("all_head_labels", "attn_head_labels", "n_params_total", "hook_aliases"):
        assert getattr(tiny_llava, name) == getattr(bridge, name), name
    for name in ("layer_types", "composition_layer_indices"):
        assert getattr(tiny_llava, name)() == getattr(bridge, name)(), name
    for name in ("block_hooks", "block_submodules"):
        assert getattr(tiny_llava, name)(1) == getattr(bridge, name)(1), name
    for name in ("tl_parameters", "get_params", "state_dict"):
        got, want = getattr(tiny_llava, name)(), getattr(bridge, name)()
        assert list(got) == list(want) and all(torch.equal(got[key], want[key]) for key in want), name
    assert [name for name, _ in tiny_llava.tl_named_parameters()] == list(bridge.tl_parameters())
    tiny_llava.load_state_dict(tiny_llava.state_dict())
    for mode in ("Q", "K", "V"):
        got, want = (m.all_composition_scores(mode) for m in (tiny_llava, bridge))
        assert torch.equal(got.scores, want.scores)
    assert torch.equal(tiny_llava.accumulated_bias(2), bridge.accumulated_bias(2))
    assert [n for n, _ in tiny_llava.blocks_with("attn")] == [0, 1, 2]
    stacked = [m.stack_params_for("attn", "attn.W_O", m._reshape_o) for m in (tiny_llava, bridge)]
    assert stacked[0][0] == stacked[1][0] and torch.equal(stacked[0][1], stacked[1][1])
    for name in ("QK_for_attn_layers", "OV_for_attn_layers"):
        assert torch.equal(getattr(tiny_llava, name)()[1].AB, getattr(bridge, name)()[1].AB)


def test_hook_points_by_each_name(tiny: HookedVLM, inputs: Any) -> None:
    point = tiny.hook_dict["blocks.1.hook_resid_post"]
    assert (
        tiny.get_hook_point("blocks.1.hook_out") is point
        and tiny.mod_dict["blocks.1.hook_resid_post"] is point
    )
    assert point in tiny.hook_points() and len(set(map(id, tiny.hook_points()))) == len(tiny.hook_points())
    assert tiny.original_model is tiny.hf and tiny.get_hook_point("blocks.9.hook_out") is None
    entering = tiny.hook_dict["blocks.0.hook_resid_pre"]
    assert tiny.hook_embed is entering is tiny.get_hook_point("hook_embed") is tiny.mod_dict["hook_embed"]
    twin = copy.deepcopy(tiny)
    assert close(twin(inputs), tiny(inputs), inputs) and twin.hook_points is not tiny.hook_points
    assert twin.bridge is twin and twin.blocks[0].hook_in is twin.hook_embed
    tiny.add_hook("blocks.1.hook_resid_post", lambda t, hook: hook.ctx.update(seen=True))
    assert "blocks.1.hook_out" in tiny.list_hooks()
    tiny(inputs)
    assert point.ctx["seen"]
    tiny.clear_contexts()
    tiny.remove_all_hook_fns()
    assert not point.ctx and no_hook_left(tiny)
    held: dict[str, Tensor] = {}
    with pytest.warns(DeprecationWarning, match="cache_some is deprecated"):
        tiny.cache_some(held, lambda name: name in RESID)
    tiny(inputs)
    tiny.reset_hooks()
    assert set(RESID) <= set(held)


@pytest.mark.parametrize(
    "switch, name",
    [
        ("attn_result", "attn.hook_result"),
        ("split_qkv_input", "attn.hook_q_input"),
        ("attn_in", "hook_attn_in"),
        ("hook_mlp_in", "hook_mlp_in"),
    ],
)
def test_switches_open_their_points_and_change_nothing(
    tiny: HookedVLM, inputs: Any, switch: str, name: str
) -> None:
    clean = tiny(inputs)
    turn = getattr(tiny, f"set_use_{switch}")
    try:
        turn(True)
        got, cache = tiny.run_with_cache(inputs, [f"blocks.1.{name}", "blocks.1.hook_attn_out"])
    finally:
        turn(False)
    assert close(got, clean, inputs) and f"blocks.1.{name}" in cache and close(tiny(inputs), clean, inputs)
    if switch == "attn_result":
        assert close(cache[f"blocks.1.{name}"].sum(2), cache["attn_out", 1], inputs)


@pytest.mark.parametrize("tied", [False, True])
def test_folding_the_final_norm_changes_no_logit(hf_llava: Any, tiny_llava: HookedVLM, tied: bool) -> None:
    plain = copy.deepcopy(hf_llava)
    if tied:
        plain.lm_head.weight = plain.get_input_embeddings().weight
    model = HookedVLM.from_module(plain, tiny_llava.processor)
    inputs = model.prepare(*CASES["one image"])
    before, embedding = model(inputs), model.W_E.clone()
    model.enable_compatibility_mode()
    model.enable_compatibility_mode()
    assert close(model(inputs), before) and torch.equal(model.W_E, embedding)
    assert (model.ln_final.weight == 1).all() and not torch.equal(model.W_U.T, embedding)
    with pytest.raises(ModelError, match="takes no options"):
        model.enable_compatibility_mode(no_processing=True)
