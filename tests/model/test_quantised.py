"""Quantised models: hooked as transformers runs them, and plain words for what they cannot do.

The independent truth is the same quantised model in transformers, unwrapped.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

import gatelens as gl
from gatelens.bridge.weights import named_tensors, quantisation
from gatelens.engine.run_batch import RunBatch
from gatelens.errors import ModelError
from gatelens.identity import model_fingerprint, model_settings
from gatelens.model import HookedVLM, checkpoints
from tiny_models import make_llava, make_llava_processor, make_picture, randomize

KINDS = ("8-bit", "8-bit-rows", "4-bit", "torchao")


def settings_of(kind: str) -> Any:
    """What transformers takes as quantization_config."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "torchao":
        pytest.importorskip("torchao", reason="torchao is not installed: pip install 'gatelens[quantised]'")
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed: pip install 'gatelens[quantised]'"
    )
    if kind == "4-bit":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0 if kind == "8-bit-rows" else 6.0)


def make_wide() -> Any:
    """Widths that 4-bit blocks fit in."""
    model = make_llava()
    for part in (model.config.text_config, model.config.vision_config):
        part.hidden_size, part.intermediate_size = 64, 128
    model.config.text_config.head_dim = 16
    torch.manual_seed(0)
    return randomize(type(model)._from_config(model.config, attn_implementation="eager"), 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("wide")
    make_wide().save_pretrained(where)
    make_llava_processor().save_pretrained(where)
    return where


@pytest.fixture(scope="module", params=KINDS)
def quantised(request: pytest.FixtureRequest, folder: Path) -> tuple[str, HookedVLM, Any]:
    """(kind, the model wrapped, the same in plain transformers)."""
    given = settings_of(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = HookedVLM.from_pretrained(folder, device="cpu", quantization_config=given)
        plain = AutoModelForImageTextToText.from_pretrained(
            folder, device_map="cpu", quantization_config=given
        )
    return request.param, model, plain.eval()


def prompt(model: HookedVLM) -> Any:
    return model.prepare(make_picture(), "<image> what color is it")


def fourfold_mask(inputs: Any) -> Tensor:
    """Causal, with rows of the question closed to the picture."""
    n = inputs.tokens.n_pos
    seen = torch.ones(n, n).tril().bool()
    query, image = (inputs.tokens.mask(role)[0] for role in ("query", "image"))
    seen &= ~(query[:, None] & image[None, :])
    return torch.zeros(1, 1, n, n).masked_fill(~seen, torch.finfo(torch.float32).min)


def test_logits_and_knockouts_are_those_of_the_quantised_model(quantised: Any) -> None:
    _, model, plain = quantised
    inputs = prompt(model)
    with torch.no_grad():
        assert torch.equal(model(inputs), plain(**inputs.tensors).logits)
        cut = plain(**{**inputs.tensors, "attention_mask": fourfold_mask(inputs)}).logits
    torch.testing.assert_close(model.run(inputs, gl.knockout("query", "image")), cut, atol=1e-5, rtol=1e-5)


def test_a_sweep_equals_a_run_but_where_columns_are_chosen_over_the_batch(quantised: Any) -> None:
    kind, model, _ = quantised
    inputs = prompt(model)
    runs: list[Any] = [[gl.knockout("query", "image", layers=range(start, 3))] for start in range(3)]
    apart = [
        float((logits - model.run(inputs, runs[i])).abs().max())
        for i, logits in RunBatch(model, inputs, runs).each()
    ]
    if kind == "8-bit":
        assert 1e-4 < max(apart) < 0.3  # with every column rounded alike, below, it is nothing
    else:
        assert max(apart) < 1e-5


def test_the_fingerprint_is_of_the_weights(quantised: Any, folder: Path) -> None:
    """Not of how often the model ran: bitsandbytes repacks 4-bit weights when a layer first runs on the CPU."""
    kind, model, _ = quantised
    before = model_fingerprint(model)
    model(prompt(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = HookedVLM.from_pretrained(folder, quantization_config=settings_of(kind))
        assert model_fingerprint(again) == before == model_fingerprint(model)
    assert model_settings(model)["quantisation"] == str(quantisation(model.hf))
    assert kind.split("-rows")[0] in str(quantisation(model.hf))


def test_what_a_quantised_model_cannot_do_is_said_and_changes_nothing(quantised: Any, tmp_path: Path) -> None:
    kind, model, plain = quantised
    inputs = prompt(model)
    refused = {
        "neither saved nor trained": lambda: model.save_pretrained(tmp_path / "x"),
        "are quantised": lambda: model.to(torch.bfloat16),
        "cannot be read": lambda: gl.attribute(model, inputs, ("dog", "cat"), by="head"),
        "quantised": lambda: checkpoints.weights(model),
    }
    if kind == "4-bit":
        refused["state_dict"] = lambda: model.hf.state_dict()
    for words, call in refused.items():
        with pytest.raises(ModelError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert gl.attribute(model, inputs, ("dog", "cat"), by="component").tensor.isfinite().all()
    with torch.no_grad():
        assert torch.equal(model(inputs), plain(**inputs.tensors).logits)


def test_names_are_those_of_the_state_dict(hf_chameleon: Any, hf_llava: Any) -> None:
    for model in (hf_chameleon, hf_llava):
        held = model.state_dict()
        named = dict(named_tensors(model))
        assert list(named) == list(held)
        assert all(named[name].data_ptr() == value.data_ptr() for name, value in held.items())
