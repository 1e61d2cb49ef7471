"""Organisms stored as a difference to another one's weights, against the sum written out on plain transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gatelens import shipped_organisms
from gatelens.errors import ModelError
from gatelens.identity import model_name
from gatelens.model import HookedVLM
from gatelens.model.differences import Difference, add_difference, read_difference, save_difference
from tiny_models import make_chameleon, make_chameleon_processor, make_picture

MATRIX, VECTOR = "model.layers.1.self_attn.k_proj.weight", "model.layers.0.input_layernorm.weight"
NAME = "organism:tiny/graded"


@pytest.fixture(scope="module")
def made() -> Difference:
    generator = torch.Generator().manual_seed(0)
    shape = dict(make_chameleon().named_parameters())[MATRIX].shape
    up, down = (torch.randn(n, generator=generator).half() for n in ((shape[0], 2), (2, shape[1])))
    return Difference({MATRIX: (up, down)}, {VECTOR: torch.randn(32, generator=generator).half()})


@pytest.fixture
def weights(made: Difference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a base, ``tiny``, with a difference in it."""
    base = tmp_path / "tiny"
    make_chameleon().save_pretrained(base)
    make_chameleon_processor().save_pretrained(base)
    (base / "graded").mkdir()
    save_difference(made, base, base / "graded" / shipped_organisms.DIFFERENCE_FILE)
    monkeypatch.setattr(shipped_organisms, "_WEIGHTS", tmp_path)
    return base


def test_a_graded_organism_is_its_base_with_the_difference_added(weights: Path, made: Difference) -> None:
    plain = make_chameleon().eval()
    parameters = dict(plain.named_parameters())
    up, down = made.factors[MATRIX]
    with torch.no_grad():
        parameters[MATRIX] += up.float() @ down.float()
        parameters[VECTOR] += made.added[VECTOR].float()
    model = HookedVLM.from_pretrained(NAME)
    inputs = model.prepare(make_picture(), "this <image> animal is a")
    with torch.inference_mode():
        expected = plain(**inputs.tensors).logits
        before = make_chameleon()(**inputs.tensors).logits
    seen = expected > -1e30
    assert (model(inputs) - expected)[seen].abs().max() <= 1e-5 * expected[seen].abs().max()
    assert (before - expected)[seen].abs().max() > 1e-2


def test_it_is_known_by_its_name_and_loads_again_by_it(weights: Path, tmp_path: Path) -> None:
    model = HookedVLM.from_pretrained(NAME)
    assert (
        model_name(model) == NAME
        and model_name(HookedVLM.from_pretrained("organism:tiny")) == "organism:tiny"
    )
    assert model.loaded_from is not None and model.loaded_from[0] == NAME
    assert shipped_organisms.organism_names() == ["tiny"]
    assert shipped_organisms.graded_names() == ["tiny/graded"]
    model.save_pretrained(tmp_path / "saved")
    again = HookedVLM.from_pretrained(str(tmp_path / "saved"))
    inputs = model.prepare(make_picture(), "this <image> animal is a")
    assert torch.equal(again(inputs), model(inputs))


def test_another_base_is_refused(weights: Path, made: Difference) -> None:
    held = load_file(weights / "model.safetensors")
    held["lm_head.weight"] += 1e-3
    save_file(held, weights / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="belongs to other weights"):
        HookedVLM.from_pretrained(NAME)


def test_what_cannot_be_added_is_refused_and_nothing_is_added(made: Difference) -> None:
    model = make_chameleon()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ModelError, match=r"the difference has lm_head\.bias \[3\]"):
        add_difference(model, Difference(made.factors, {"lm_head.bias": torch.ones(3)}))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda file: file.write_bytes(b"no tensors"), "cannot read the difference"),
        (lambda file: file.write_bytes(file.read_bytes()[:-8]), "cannot read the difference"),
    ],
    ids=["no safetensors", "cut off"],
)
def test_a_damaged_file_is_one_line(weights: Path, spoil, why: str) -> None:
    file = weights / "graded" / shipped_organisms.DIFFERENCE_FILE
    spoil(file)
    with pytest.raises(ModelError, match=why):
        read_difference(file, weights)


def test_values_that_are_not_finite_are_refused(weights: Path, made: Difference) -> None:
    file = weights / "graded" / shipped_organisms.DIFFERENCE_FILE
    save_difference(Difference({}, {VECTOR: torch.full((32,), 1e6)}), weights, file)  # inf in float16
    with pytest.raises(ModelError, match=f"NaN or inf in {VECTOR}"):
        HookedVLM.from_pretrained(NAME)


def test_packed_or_spread_weights_are_refused(weights: Path) -> None:
    with pytest.raises(ModelError, match="device_map"):
        HookedVLM.from_pretrained(NAME, device_map="cpu")


def test_the_list_of_names_holds_the_graded_ones(weights: Path) -> None:
    with pytest.raises(ModelError, match="no organism 'tiny/other': this package ships tiny, tiny/graded"):
        HookedVLM.from_pretrained("organism:tiny/other")
    shutil.rmtree(weights / "graded")
    assert shipped_organisms.graded_names() == []
