"""Models whose weights accelerate keeps on the CPU or on disk give the numbers of the same model in memory, exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn

import gatelens as gl
from gatelens.bridge.weights import keeps_elsewhere
from gatelens.errors import ModelError
from gatelens.identity import model_fingerprint
from gatelens.model import HookedVLM
from tiny_models import make_llava_processor

RESID = "blocks.1.hook_resid_post"


def on_cpu(model: Any, folder: Path) -> Any:
    return cpu_offload(model, execution_device="cpu")


def on_disk(model: Any, folder: Path) -> Any:
    return disk_offload(model, folder, execution_device="cpu")


@pytest.fixture(scope="module", params=[on_cpu, on_disk], ids=["cpu", "disk"])
def both(request: pytest.FixtureRequest, hf_llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(the model whose weights are elsewhere, the same in memory), and a prompt."""
    away = request.param(copy.deepcopy(hf_llava), tmp_path_factory.mktemp("away"))
    models = [HookedVLM.from_module(hf, make_llava_processor()) for hf in (away, copy.deepcopy(hf_llava))]
    assert all(p.device.type == "meta" for p in models[0].hf.parameters())
    return models


def same(models: list[HookedVLM], picture: Any, work: Callable[[HookedVLM, Any], Any]) -> None:
    got, due = (work(model, model.prepare(picture, "<image> what color is it")) for model in models)
    if isinstance(due, Tensor):
        assert torch.equal(got, due)
    else:
        assert got == due


@pytest.mark.parametrize("how", ["mask", "zero"])
def test_runs_generation_and_sweeps(both: Any, picture: Any, how: str) -> None:
    cut = gl.knockout("query", "image", how=how)
    grid = {"start": [gl.knockout("query", "image", layers=range(start, 3), how=how) for start in range(3)]}
    same(both, picture, lambda model, inputs: model.run(inputs, cut))
    same(both, picture, lambda model, inputs: model.generate(inputs, cut, max_new_tokens=4))

    def swept(metric: Any, model: HookedVLM, inputs: Any) -> list[float]:
        return gl.sweep(model, inputs, grid, metric, progress=False)["value"].tolist()

    same(both, picture, partial(swept, gl.metrics.logit_diff(5, 6)))  # which ends in the last row
    same(both, picture, partial(swept, lambda logits: logits.square().sum((1, 2))))


def test_activations_and_what_is_patched_from_them(both: Any, picture: Any) -> None:
    def every(model: HookedVLM, inputs: Any) -> Tensor:
        _, cache = model.run_with_cache(inputs)
        return torch.cat([cache[name].float().flatten() for name in sorted(cache)])

    def patched(model: HookedVLM, inputs: Any) -> Tensor:
        _, cache = model.run_with_cache(inputs, RESID)
        edits = [
            gl.patch(cache, at="gate", site="resid_post", layers=[1]),
            gl.ablate(at="last", site="z", heads=[2]),
        ]
        return model.run(inputs, edits)

    same(both, picture, every)
    same(both, picture, patched)
    same(both, picture, lambda model, inputs: gl.logit_lens(model, inputs, at="last", targets="dog").tensor)


def test_gradients_of_activations(both: Any, picture: Any) -> None:
    def gradient(model: HookedVLM, inputs: Any) -> Tensor:
        _, cache = model.run_with_cache(inputs, RESID, incl_bwd=True, return_type="loss")
        assert cache[f"{RESID}_grad"].any()
        return cache[f"{RESID}_grad"]

    same(both, picture, gradient)


def test_the_fingerprint_reads_weights_where_they_are(both: Any, hf_llava: Any) -> None:
    away, here = both
    assert model_fingerprint(away) == model_fingerprint(here)
    other = copy.deepcopy(hf_llava)
    with torch.no_grad():
        other.model.language_model.layers[2].mlp.up_proj.weight[0, 0] += 1
    other = HookedVLM.from_module(cpu_offload(other, execution_device="cpu"))
    assert model_fingerprint(other) != model_fingerprint(here)


def test_what_needs_the_weights_is_refused(both: Any, picture: Any, tmp_path: Path) -> None:
    away, _ = both
    inputs = away.prepare(picture, "<image> what color is it")
    before = away(inputs)
    for words, call in {
        "is not in memory": lambda: away.save_pretrained(tmp_path / "x"),
        "UnembeddingBridge cannot be read": lambda: gl.attribute(away, inputs, ("dog", "cat"), by="head"),
        "cannot be read": lambda: away.enable_compatibility_mode(),
        "accelerate places the weights": lambda: away.to(torch.bfloat16),
    }.items():
        with pytest.raises(ModelError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not away.compatibility_mode and torch.equal(away(inputs), before)


def test_weights_that_are_not_finite_are_found_on_disk(hf_llava: Any, tmp_path: Path) -> None:
    broken = copy.deepcopy(hf_llava)
    with torch.no_grad():
        broken.model.language_model.layers[1].mlp.up_proj.weight[3, 3] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    make_llava_processor().save_pretrained(tmp_path / "broken")
    places = dict.fromkeys(("model.vision_tower", "model.multi_modal_projector", "lm_head"), "cpu")
    places |= {
        f"model.language_model.{n}": "cpu"
        for n in ("embed_tokens", "norm", "rotary_emb", "layers.0", "layers.2")
    }
    places |= {"model.language_model.layers.1": "disk"}
    with pytest.raises(
        ModelError, match=r"1 tensor with NaN or inf \(model\.language_model\.layers\.1\.mlp\.up_proj"
    ):
        HookedVLM.from_pretrained(
            tmp_path / "broken", device_map=places, offload_folder=str(tmp_path / "away")
        )


def test_code_that_reads_weights_without_their_module_is_named(hf_chameleon: Any, picture: Any) -> None:
    """Chameleon's codebook is read, not called: transformers itself stops there, with a word of torch's."""
    away = cpu_offload(copy.deepcopy(hf_chameleon), execution_device="cpu")
    ids = torch.tensor([[1, 6, *[5] * 16, 7, 28]])
    pixels = torch.zeros(1, 3, 16, 16)
    with pytest.raises(RuntimeError, match="on device meta"):
        away(input_ids=ids, pixel_values=pixels)
    model = HookedVLM.from_module(away)
    with pytest.raises(
        ModelError, match=r"^'model\.vqmodel\.quantize' reads weights .* device_map keep it in memory"
    ):
        model(model.inputs(ids, pixel_values=pixels))
    codes = model.inputs(
        torch.tensor([[1, 6, *range(8, 24), 7, 28]])
    )  # a picture as its codes needs no encoder
    here = HookedVLM.from_module(copy.deepcopy(hf_chameleon))
    assert torch.equal(model(codes), here(codes))


def test_accelerate_is_seen_by_where_it_places(both: Any) -> None:
    away, here = both
    assert keeps_elsewhere(away.hf) and not keeps_elsewhere(here.hf)
    assert not keeps_elsewhere(nn.Linear(2, 2))
