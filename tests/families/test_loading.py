"""Loading checkpoints: every family from a folder, spread over devices, and what cannot be had in one line."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from case import Case, cases
from huggingface_hub import errors as hub_errors
from torch import Tensor

import gatelens as gl
from gatelens.errors import ModelError
from gatelens.families.common.processing import ImageTextParts
from gatelens.model import HookedVLM, loading
from tiny_models import make_llava, make_llava_processor

CASES = {name: case for name, case in cases().items() if case.wrap is None}


def saved(case: Case, folder: Path) -> HookedVLM:
    """Save model and processor as the hub has them; the same model wrapped in memory."""
    hf, processor = case.model(), case.processor()
    hf.save_pretrained(folder)
    parts = (
        (processor.image_processor, processor.tokenizer)
        if isinstance(processor, ImageTextParts)
        else (processor,)
    )
    for part in parts:
        part.save_pretrained(folder)
    return HookedVLM.from_module(hf, processor)


@pytest.mark.parametrize("name", sorted(CASES))
def test_from_a_folder(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = saved(case, tmp_path)
    loaded = HookedVLM.from_pretrained(str(tmp_path))
    assert (
        loaded.family.name == model.family.name
        and loaded.layout.placeholder_id == model.layout.placeholder_id
    )
    text, pictures = case.texts[2], [case.picture(0), case.picture(1)]
    mine, theirs = model.prepare(pictures, text), loaded.prepare(pictures, text)
    assert mine.tensors.keys() == theirs.tensors.keys()
    for key, value in mine.tensors.items():
        assert torch.equal(value, theirs.tensors[key]), key
    assert torch.equal(mine.tokens.roles, theirs.tokens.roles)
    assert (model(mine) - loaded(theirs)).abs().max() <= 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("llava")
    make_llava().save_pretrained(where)
    make_llava_processor().save_pretrained(where)
    return where


def prompt(model: HookedVLM) -> Any:
    return model.prepare(CASES["llava"].picture(), "<image> what color is it")


EDITS = [
    gl.knockout("query", "image"),
    gl.ablate(at="last", site="z", layers=[1], heads=[2]),
    gl.steer(torch.linspace(-1, 1, 32), at="gate", site="resid_pre", layers=[1], scale=2.0),
    gl.ablate(at="query", site="mlp_out", layers=[2], with_="mean"),
]


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map_gives_the_same_logits(folder: Path, device_map: Any) -> None:
    plain = HookedVLM.from_pretrained(str(folder))
    spread = HookedVLM.from_pretrained(str(folder), device_map=device_map)
    inputs = prompt(plain)
    got = prompt(spread)
    assert torch.equal(plain(inputs), spread(got).cpu())
    for edit in EDITS:
        assert torch.equal(plain.run(inputs, edit), spread.run(got, edit).cpu())


def test_weights_that_live_elsewhere_are_fetched_for_every_run(folder: Path, tmp_path: Path) -> None:
    """Part of the model on disk: accelerate's hooks carry weights in and out around each module."""
    everywhere: dict[str, Any] = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu"}
    everywhere |= {"model.language_model.embed_tokens": "disk", "model.language_model.norm": "disk"}
    everywhere |= {f"model.language_model.layers.{i}": "disk" if i else "cpu" for i in range(3)}
    everywhere |= {"model.language_model.rotary_emb": "cpu", "lm_head": "disk"}
    plain = HookedVLM.from_pretrained(str(folder))
    spread = HookedVLM.from_pretrained(str(folder), device_map=everywhere, offload_folder=str(tmp_path))
    assert spread.device == torch.device("cpu")
    assert any(p.device.type == "meta" for p in spread.hf.parameters())
    inputs = prompt(spread)
    torch.testing.assert_close(spread(inputs), plain(inputs), atol=1e-5, rtol=1e-5)
    for edit in EDITS:
        torch.testing.assert_close(spread.run(inputs, edit), plain.run(inputs, edit), atol=1e-5, rtol=1e-5)
    assert spread.generate(inputs, EDITS[0], max_new_tokens=4) == plain.generate(
        inputs, EDITS[0], max_new_tokens=4
    )


@pytest.mark.parametrize("i", range(3))  # "meta" cannot take the mean over chosen positions
def test_edits_go_to_where_the_activation_is(folder: Path, i: int) -> None:
    """A layer on another device: everything the hook holds must follow ("meta" refuses to meet the CPU)."""
    model = HookedVLM.from_pretrained(str(folder))
    inputs = prompt(model)
    names = [name for name, _ in EDITS[i].hooks(inputs.tokens, model.cfg)]
    _, cache = model.run_with_cache(inputs, names)
    for name, fn in EDITS[i].hooks(inputs.tokens, model.cfg):
        there: Tensor = cache[name].to("meta")
        assert fn(there, hook=None).device.type == "meta"


def test_device_map_without_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "is_accelerate_available", lambda: False)
    with pytest.raises(ModelError, match="device_map needs accelerate: pip install accelerate"):
        HookedVLM.from_pretrained(str(folder), device_map="auto")
    assert HookedVLM.from_pretrained(str(folder)).device.type == "cpu"


def test_a_device_that_is_not_there(folder: Path) -> None:
    wanted = "cuda:99"
    with pytest.raises(ModelError, match="device 'cuda:99' cannot be used"):
        HookedVLM.from_pretrained(str(folder), device=wanted)


RESPONSE = httpx2.Response(401, request=httpx2.Request("GET", "https://hub.example/some/model"))
FAILURES = {
    "gated": (
        hub_errors.GatedRepoError("gated", response=RESPONSE),
        r"'some/model' is gated: accept its licence at https?://\S+/some/model, then log in",
    ),
    "missing": (
        hub_errors.RepositoryNotFoundError("404", response=RESPONSE),
        r"'some/model' is not a repository on https?://\S+, or private",
    ),
    "revision": (
        hub_errors.RevisionNotFoundError("404", response=RESPONSE),
        "'some/model' has no revision 'v9'",
    ),
    "no network": (
        hub_errors.LocalEntryNotFoundError("no connection"),
        r"'some/model' is not in the cache \S+, and https?://\S+ cannot be reached",
    ),
}


@pytest.mark.parametrize("why", sorted(FAILURES))
def test_what_the_hub_refuses(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """The hub's own errors, as they leave the download transformers asks it for."""
    from transformers.utils import hub

    error, message = FAILURES[why]

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    monkeypatch.setattr(hub, "snapshot_download", refuse)
    options = {"revision": "v9"} if why == "revision" else {}
    with pytest.raises(ModelError, match=message) as caught:
        HookedVLM.from_pretrained("some/model", cache_dir=str(tmp_path), **options)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_offline_and_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"not in the cache \S+, and the hub is switched off: unset HF_HUB_OFFLINE"
    ):
        HookedVLM.from_pretrained("some/model", cache_dir=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match="the hub is switched off"):
        HookedVLM.from_pretrained("some/model", cache_dir=str(tmp_path), local_files_only=True)


def test_a_name_that_can_be_no_repository() -> None:
    with pytest.raises(ModelError, match=r"'bad--name\.\.x' is not a repository"):
        HookedVLM.from_pretrained("bad--name..x")


def test_a_damaged_folder(tmp_path: Path) -> None:
    make_llava().save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=f"cannot load the folder '{tmp_path}'") as caught:
        HookedVLM.from_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ModelError, match="cannot load the folder"):
        HookedVLM.from_pretrained(str(tmp_path))


def in_cache(folder: Path, cache: Path) -> None:
    """Lay a checkpoint out as the hub's client does."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = cache / "models--some--model"
    snapshot = repo / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)


def test_a_cached_checkpoint_needs_no_network(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    in_cache(folder, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = HookedVLM.from_pretrained("some/model", cache_dir=str(tmp_path))
    plain = HookedVLM.from_pretrained(str(folder))
    assert torch.equal(model(prompt(model)), plain(prompt(plain)))


def test_hf_home_and_offline_are_heeded(folder: Path, tmp_path: Path) -> None:
    in_cache(folder, tmp_path / "hub")
    program = """
from gatelens.model import HookedVLM
print(HookedVLM.from_pretrained("some/model"))
HookedVLM.from_pretrained("some/other")
"""
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    refused = done.stderr.splitlines()[-1]
    assert "HookedVLM(llava, 3 layers" in done.stdout, done.stderr
    assert "is not in the cache" in refused and str(tmp_path / "hub") in refused, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_processors_that_want_torchvision_are_taken_apart(tmp_path: Path) -> None:
    name = next(n for n, case in CASES.items() if isinstance(case.processor(), ImageTextParts))
    saved(CASES[name], tmp_path)
    loaded = HookedVLM.from_pretrained(str(tmp_path))
    assert isinstance(loaded.processor, ImageTextParts)
