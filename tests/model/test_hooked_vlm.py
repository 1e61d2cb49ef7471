"""HookedVLM against plain transformers: logits, decoding, and every hook gatelens relies on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import ActivationCache

from gatelens.errors import InputError, InterventionError, ModelError
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from model_helpers import CASES, PICTURES, TEXTS, close
from tiny_models import make_chameleon, make_llava, make_picture


# ---------------------------------------------------------------- logits
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tiny: HookedVLM, oracle: Any, case: str) -> None:
    inputs = tiny.prepare(*CASES[case])
    with torch.no_grad():
        want = oracle(**inputs.tensors).logits
    assert close(tiny(inputs), want, inputs)
    tiny.attention = "stepwise"
    try:
        assert close(
            tiny(inputs), want
        )  # then padding rows are those of transformers' eager attention as well
    finally:
        tiny.attention = "fused"


def test_a_padded_row_equals_its_single_run(tiny: HookedVLM, oracle: Any) -> None:
    batch = tiny.prepare(PICTURES, TEXTS)
    logits = tiny(batch)
    for i, (pictures, text) in enumerate(zip(PICTURES, TEXTS, strict=True)):
        single = tiny.prepare(pictures, text)
        n = single.tokens.n_pos
        plain = {k: v for k, v in single.tensors.items() if k in ("input_ids", "pixel_values")}
        with torch.no_grad():
            assert close(logits[i, -n:], oracle(**plain).logits[0])


def test_the_image_matters(tiny: HookedVLM) -> None:
    a, b = (tiny.prepare(make_picture(seed=s), TEXTS[1]) for s in (0, 1))
    assert not close(tiny(a)[:, -1], tiny(b)[:, -1])


def test_chameleon_forbids_image_tokens_as_transformers_does(tiny_chameleon: HookedVLM) -> None:
    logits = tiny_chameleon(tiny_chameleon.prepare(*CASES["one image"]))
    codes = sorted(tiny_chameleon.layout.drawn.ids)
    assert (logits[..., codes] == torch.finfo(logits.dtype).min).all()


def test_unmasked_logits_follow_from_the_final_norm(tiny: HookedVLM) -> None:
    """``ln_final.hook_out`` @ W_U: the way to image-token logits, which Chameleon overwrites in place."""
    inputs = tiny.prepare(*CASES["one image"])
    logits, cache = tiny.run_with_cache(inputs, ["ln_final.hook_out"])
    free = cache["ln_final.hook_out"] @ tiny.bridge.W_U
    kept = logits > torch.finfo(logits.dtype).min
    assert close(free[kept], logits[kept]) and free.isfinite().all() and free.abs().max() < 1e3


# ---------------------------------------------------------------- decoding
def decode(model: HookedVLM, inputs: VLMInputs, n: int, fwd_hooks: Any = ()) -> Tensor:
    logits, past = model.forward_step(inputs.tensors, fwd_hooks, use_cache=True)
    mask, new = inputs.tensors["attention_mask"], []
    for _ in range(n):
        new.append(logits[:, -1].argmax(-1, keepdim=True))
        mask = torch.cat([mask, torch.ones_like(new[-1])], dim=1)
        logits, past = model.forward_step({"input_ids": new[-1], "attention_mask": mask}, fwd_hooks, past)
    return torch.cat(new, dim=1)


@pytest.mark.parametrize("case", CASES)
def test_cached_greedy_decoding_equals_generate(tiny: HookedVLM, oracle: Any, case: str) -> None:
    inputs = tiny.prepare(*CASES[case])
    tensors = {k: v for k, v in inputs.tensors.items() if k != "position_ids"}
    want = oracle.generate(**tensors, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    # generate forbids eos with min_new_tokens: forbid it here as well
    no_eos = [("unembed.hook_out", lambda t, hook: t.index_fill(-1, torch.tensor(2), -1e9))]
    for attention in ("stepwise", "fused"):
        tiny.attention = attention
        assert torch.equal(decode(tiny, inputs, 12, no_eos), want[:, inputs.tokens.n_pos :])


def test_cached_steps_equal_one_long_forward(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(PICTURES[:2], TEXTS[:2])
    whole = tiny(inputs)
    cut = int(inputs.tokens.mask("image").nonzero()[:, 1].max()) + 1
    mask = inputs.tensors["attention_mask"]
    start = {k: (v[:, :cut] if k != "pixel_values" else v) for k, v in inputs.tensors.items()}
    logits, past = tiny.forward_step(start, use_cache=True)
    parts = [logits]
    for p in range(cut, inputs.tokens.n_pos):
        step = {"input_ids": inputs.tensors["input_ids"][:, p : p + 1], "attention_mask": mask[:, : p + 1]}
        logits, past = tiny.forward_step(step, past=past)
        parts.append(logits)
    real = (
        mask.bool()
    )  # a padding row sees nothing, so its attention spreads over however many keys there are
    assert close(torch.cat(parts, dim=1)[real], whole[real])


def test_no_cache_is_built_unless_asked(tiny: HookedVLM) -> None:
    assert tiny.forward_step(tiny.prepare(*CASES["one image"]).tensors)[1] is None


@pytest.mark.parametrize(
    "site", ["hook_resid_pre", "attn.hook_attn_scores", "attn.hook_pattern", "hook_mlp_out"]
)
def test_hooks_fire_in_cached_steps(tiny: HookedVLM, site: str) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    shapes: list[tuple[int, ...]] = []
    decode(tiny, inputs, 2, [(f"blocks.1.{site}", lambda t, hook: shapes.append(tuple(t.shape)))])
    n = inputs.tokens.n_pos
    square = site.startswith("attn.")
    want = (
        [(1, 4, n, n), (1, 4, 1, n + 1), (1, 4, 1, n + 2)] if square else [(1, n, 32), (1, 1, 32), (1, 1, 32)]
    )
    assert shapes == want


# ---------------------------------------------------------------- cache
def test_cache_is_transformerlens_own_and_knows_the_tokens(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(PICTURES[:2], TEXTS[:2])
    logits, cache = tiny.run_with_cache(inputs)
    assert close(logits, tiny(inputs), inputs)
    assert isinstance(cache, ActivationCache) and cache.tokens is inputs.tokens
    n = inputs.tokens.n_pos
    assert cache["resid_pre", 0].shape == (2, n, 32) and cache["v", 0].shape == (2, n, 2, 8)
    torch.testing.assert_close(
        cache["resid_pre", 1] + cache["attn_out", 1] + cache["mlp_out", 1], cache["resid_post", 1]
    )
    assert cache.accumulated_resid(layer=-1).shape[0] == 4


@pytest.mark.parametrize(
    "names",
    ["blocks.0.hook_resid_pre", ["blocks.0.hook_resid_pre"], lambda n: n == "blocks.0.hook_resid_pre"],
)
def test_names_filter(tiny: HookedVLM, names: Any) -> None:
    _, cache = tiny.run_with_cache(tiny.prepare(*CASES["one image"]), names)
    assert list(cache) == ["blocks.0.hook_resid_pre"]
    with pytest.raises(InterventionError, match="no hook 'nope'"):
        tiny.run_with_cache(tiny.prepare(*CASES["one image"]), "nope")


def test_cache_sees_the_edits(tiny: HookedVLM) -> None:
    edit = ("blocks.0.hook_resid_pre", lambda t, hook: torch.zeros_like(t))
    _, cache = tiny.run_with_cache(tiny.prepare(*CASES["one image"]), "blocks.0.hook_resid_pre", [edit])
    assert cache["resid_pre", 0].abs().max() == 0


def test_gradients_reach_activations_though_parameters_are_frozen(tiny: HookedVLM) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    held: list[Tensor] = []

    def watch(tensor: Tensor, hook: Any) -> Tensor:
        held.append(tensor.detach().clone().requires_grad_(True))
        return held[0]

    assert not tiny(inputs).requires_grad
    tiny.run_with_hooks(inputs, [("blocks.0.hook_resid_pre", watch)])[0, -1, 30].backward()
    assert held[0].grad is not None and held[0].grad.abs().max() > 0


@pytest.mark.parametrize(
    "given", [["what is it", 3], make_picture(), torch.ones(1, 3), {"input_ids": [[1]]}, None]
)
@pytest.mark.parametrize("call", ["__call__", "run", "generate", "run_with_hooks", "run_with_cache"])
def test_what_is_not_prepared_is_one_line(tiny_llava: HookedVLM, call: str, given: Any) -> None:
    with pytest.raises(InputError) as raised:
        getattr(tiny_llava, call)(given)
    said = str(raised.value)
    assert said.startswith(f"inputs is a {type(given).__name__}: give model.prepare(images, text)")
    assert "\n" not in said


# ---------------------------------------------------------------- loading
@pytest.mark.parametrize("name", ["tiny_chameleon", "tiny_llava"])
def test_saved_folder_round_trips(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capfd: Any
) -> None:
    model: HookedVLM = request.getfixturevalue(name)
    plain = make_chameleon() if name == "tiny_chameleon" else make_llava()
    plain.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    loaded = HookedVLM.from_pretrained(str(tmp_path))
    ours, theirs = (m.prepare(*CASES["two images"]) for m in (model, loaded))
    assert torch.equal(model(ours), loaded(theirs))
    assert loaded.layout == model.layout and loaded.dtype == torch.float32
    half = HookedVLM.from_pretrained(str(tmp_path), dtype="bfloat16", device="cpu")
    made = half.prepare(*CASES["one image"])
    assert half.dtype == torch.bfloat16 == made.tensors["pixel_values"].dtype
    assert half(made).isfinite().all()


def test_loading_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    for name, message in {
        "organism:nope": "no organism 'nope': this package ships",
        "./nowhere": "no folder './nowhere'",
        str(tmp_path): "no family for 'BertModel': supported are Chameleon",
        str(tmp_path.parent): "has no config.json",
    }.items():
        with pytest.raises(ModelError, match=message):
            HookedVLM.from_pretrained(name)
    with pytest.raises(ModelError, match="'float99' is not a torch dtype"):
        make_llava().save_pretrained(tmp_path)
        HookedVLM.from_pretrained(str(tmp_path), dtype="float99")
    with pytest.raises(ModelError, match="device and device_map"):
        HookedVLM.from_pretrained(str(tmp_path), device="cpu", device_map="auto")


def test_from_module_errors(tiny: HookedVLM) -> None:
    with pytest.raises(ModelError, match="wrapped already"):
        HookedVLM.from_module(tiny.hf)
    with pytest.raises(ModelError, match="a Linear is not a transformers model"):
        HookedVLM.from_module(torch.nn.Linear(2, 2))


def test_from_module_takes_a_subclass_and_a_layout(hf_llava: Any, tiny_llava: HookedVLM) -> None:
    class Mine(type(hf_llava)):  # type: ignore[misc]
        pass

    mine = copy.deepcopy(hf_llava)
    mine.__class__ = Mine
    model = HookedVLM.from_module(mine, tiny_llava.processor, layout=tiny_llava.layout)
    assert model.family.name == "llava" and model.layout is tiny_llava.layout


# ---------------------------------------------------------------- words
def test_words(tiny: HookedVLM) -> None:
    assert tiny.to_tokens("a dog").shape == (1, 3) and tiny.to_tokens("a dog", prepend_bos=False).shape == (
        1,
        2,
    )
    assert tiny.to_tokens(["a dog", "a"])[1, 0] == 0
    dog = tiny.to_single_token("dog")
    assert tiny.decode(torch.tensor([[1, dog], [dog, dog]])) == ["dog", "dog dog"]
    assert tiny.decode([dog]) == ["dog"]
    with pytest.raises(InputError, match="'a dog' is not one token"):
        tiny.to_single_token("a dog")
    with pytest.raises(InputError, match="'unheard' is not one token"):
        tiny.to_single_token("unheard")


def test_describes_itself(tiny_chameleon: HookedVLM) -> None:
    assert repr(tiny_chameleon) == "HookedVLM(chameleon, 3 layers, 4 heads, d_model 32)"
    assert tiny_chameleon.cfg.n_key_value_heads == 2 and tiny_chameleon.device == torch.device("cpu")
