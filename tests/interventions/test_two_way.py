"""Knockouts where attention is not causal: pictures and prompts that attend both ways, layers with a window."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens as gl
from gatelens.errors import InterventionError
from gatelens.interventions.visibility import visible_keys, window_of
from gatelens.model import HookedVLM

sys.path.append(str(Path(__file__).parents[1] / "families"))
WINDOW = {"gemma3": 24, "paligemma2": 12}


def build(name: str) -> HookedVLM:
    module = importlib.import_module(f"cases.{'paligemma' if name.startswith('pali') else name}")
    case = next(c for c in getattr(module, "CASES", [getattr(module, "CASE", None)]) if c.name == name)
    model = HookedVLM.from_module(case.model(), case.processor())
    model.case = case  # type: ignore[attr-defined]
    return model


@pytest.fixture(scope="module", params=["gemma3", "paligemma", "paligemma2", "llava"])
def model(request: pytest.FixtureRequest) -> HookedVLM:
    return build(request.param)


@pytest.fixture(scope="module")
def gemma3() -> HookedVLM:
    return build("gemma3")


@pytest.fixture(scope="module")
def paligemma() -> HookedVLM:
    return build("paligemma")


def prompts(model: Any) -> Any:
    a, b = model.case.picture(0), model.case.picture(1)
    return model.prepare([[b], [a, b]], ["<image> what color is it", "<image> and <image> left of"])


def allowed(model: HookedVLM, inputs: Any, layer: int) -> Tensor:
    """Bool[batch, row, key]: what transformers' own mask lets the layer read."""
    name = f"blocks.{layer}.attn.hook_attn_scores"
    scores = model.run_with_cache(inputs, name)[1][name]
    return scores[:, 0] > torch.finfo(scores.dtype).min / 2


def test_sight_is_transformers_mask(model: HookedVLM) -> None:
    inputs = prompts(model)
    tokens = inputs.tokens
    real = tokens.roles != 0
    windows = set()
    for layer in range(3):
        window = window_of(model.cfg, layer)
        windows.add(window)
        mask = allowed(model, inputs, layer) & real[:, None, :]
        for seed in range(4):
            chosen = torch.rand(real.shape, generator=torch.Generator().manual_seed(seed)) < 0.2
            keys = chosen & real
            counted = (mask & keys[:, None, :]).sum(-1)
            assert torch.equal(visible_keys(keys, tokens, window)[real], counted[real])
    assert windows == {WINDOW.get(model.case.name), None}  # type: ignore[attr-defined]
    ahead = allowed(model, inputs, 2).triu(1) & real[:, None, :] & real[:, :, None]
    assert ahead.any() == (model.family.name != "llava")


def test_a_key_further_on_in_the_block_can_be_cut(model: HookedVLM) -> None:
    inputs = prompts(model)
    spec = gl.knockout("first_image", "last_image & image[0]", layers=[2])
    if model.family.name == "llava":
        with pytest.raises(InterventionError, match="every key comes after every query"):
            model.run(inputs.select([0]), spec)
        return
    inputs = inputs.select([0])
    name = "blocks.2.attn.hook_pattern"
    clean = model.run_with_cache(inputs, name)[1][name]
    hooks = spec.hooks(inputs.tokens, model.cfg)
    cut = model.run_with_cache(inputs, name, fwd_hooks=hooks)[1][name]
    (row,), (key,) = (inputs.tokens.positions(s) for s in ("first_image", "last_image"))
    assert row < key and (clean[0, :, row, key] > 0).all() and (cut[0, :, row, key] == 0).all()
    torch.testing.assert_close(cut[0, :, row].sum(-1), torch.ones(4))
    others = [p for p in inputs.tokens.positions("all") if p != row]
    torch.testing.assert_close(cut[0, :, others], clean[0, :, others])
    assert (model.run(inputs, spec) - model(inputs)).abs().max() > 1e-5


def test_a_row_is_empty_only_without_its_whole_block(paligemma: HookedVLM) -> None:
    inputs = prompts(paligemma).select([0])
    first = inputs.tokens.positions("all")[0]
    behind = gl.knockout(f"pos[{first}]", f"pos[{first}]")  # in a causal model nothing would be left
    logits = paligemma.run(inputs, behind)
    assert logits.isfinite().all() and (logits - paligemma(inputs)).abs().max() > 1e-4
    with pytest.raises(InterventionError, match="leaves a row nothing to attend to"):
        paligemma.run(inputs, gl.knockout(f"pos[{first}]", "all"))
    with pytest.raises(InterventionError, match="leaves a row nothing to attend to"):
        paligemma.run(inputs, [gl.knockout("image", "image"), gl.knockout("image", "~image")])


def test_pictures_do_not_attend_to_each_other_ahead(gemma3: HookedVLM) -> None:
    inputs = prompts(gemma3).select([1])
    with pytest.raises(InterventionError, match="every key comes after every query"):
        gemma3.run(inputs, gl.knockout("image[0]", "image[1]"))
    blocked = gl.knockout("image[0]", "all - image[0]")
    assert gemma3.run(inputs, blocked).isfinite().all()


def test_a_window_can_leave_a_row_empty_where_the_whole_prompt_does_not(gemma3: HookedVLM) -> None:
    inputs = prompts(gemma3).select([1])
    last = inputs.tokens.n_pos - 1
    near = f"pos[{last - 23}:]"
    with pytest.raises(InterventionError, match=r"nothing to attend to: layer 0, example 0"):
        gemma3.run(inputs, gl.knockout("last", near, layers=[0]))
    assert gemma3.run(inputs, gl.knockout("last", near, layers=[2])).isfinite().all()
    spared = gl.knockout("last", f"pos[{last - 22}:]", layers=[0])
    assert gemma3.run(inputs, spared).isfinite().all()


def test_a_window_that_ends_before_the_keys_is_an_error(gemma3: HookedVLM) -> None:
    inputs = prompts(gemma3).select([1])
    assert inputs.tokens.n_pos - inputs.tokens.positions("last_image & image[0] | first_image")[0] > 24
    far = gl.knockout("last", "first_image", layers=[0, 1])
    with pytest.raises(InterventionError, match="further back than these layers look"):
        gemma3.run(inputs, far)
    assert (gemma3.run(inputs, gl.knockout("last", "first_image")) - gemma3(inputs)).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "paligemma2"])
@pytest.mark.parametrize("how", ["mask", "zero"])
def test_decoding_under_a_knockout_is_the_grown_prompt(name: str, how: Any) -> None:
    """Also past the window, where transformers' own cache would have dropped the picture's keys."""
    model = build(name)
    inputs = prompts(model)
    spec = gl.knockout("last | generated", "image", how=how)
    n_new = 6
    made = model.generate(inputs, spec, max_new_tokens=n_new, stop_at_eos=False, return_type="ids")
    ids, n = inputs.tensors["input_ids"], inputs.tokens.n_pos
    grown = torch.cat([ids, made.token_ids[:, :-1]], dim=1)
    ones = torch.ones(len(ids), n_new - 1, dtype=torch.long)
    types = inputs.tensors["token_type_ids"]
    after = torch.ones_like(ones) if name.startswith("pali") else torch.zeros_like(ones)
    pictures = {"pixel_values": inputs.tensors["pixel_values"]}
    whole = model.inputs(
        input_ids=grown,
        attention_mask=torch.cat([inputs.tensors["attention_mask"], ones], dim=1),
        token_type_ids=torch.cat([types, after], dim=1),
        **pictures,
    )
    late = torch.zeros(grown.shape, dtype=torch.bool)
    late[:, n - 1 :] = True
    logits = model.run(whole, gl.knockout(late, "image", how=how))
    assert torch.equal(logits[:, n - 1 :].argmax(-1), made.token_ids)
    assert (logits - model(whole))[late].abs().max() > 1e-3
    if name.startswith("pali"):
        assert (whole.tokens.two_way[:, n:] == -1).all() and (whole.tokens.two_way[0, n - 1] == 0).all()
