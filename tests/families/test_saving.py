"""A wrapped model of every family saved: the very files that plain transformers writes before wrapping."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from case import cases
from transformers import AutoModelForImageTextToText

from gatelens.errors import ModelError
from gatelens.model import HookedVLM
from gatelens.model.checkpoints import weights

CASES = cases()
OWN_CLASS = sorted(name for name, case in CASES.items() if case.wrap is None)


@pytest.mark.parametrize("name", OWN_CLASS)
def test_the_files_are_transformers_own(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    hf = case.model()
    plain = copy.deepcopy(hf)
    before = plain.state_dict()
    model = HookedVLM.from_module(hf, case.processor())
    now = weights(model)
    assert list(now) == list(before)
    assert all(torch.equal(now[key], value) for key, value in before.items())
    plain.save_pretrained(tmp_path / "plain")
    ours = model.save_pretrained(tmp_path / "ours")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (ours / file.name).read_bytes(), file.name
    picture, text = case.picture(0), case.texts[0]
    loaded = HookedVLM.from_pretrained(str(ours))
    inputs = model.prepare(picture, text)
    assert torch.equal(loaded(loaded.prepare(picture, text)), model(inputs))
    again = AutoModelForImageTextToText.from_pretrained(ours).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs.tensors).logits, model(inputs), atol=1e-5, rtol=0)


def test_a_model_of_parts_refuses_and_its_weights_can_be_had(tmp_path: Path) -> None:
    case = next(case for case in CASES.values() if case.wrap is not None)
    plain = case.model()
    before = {key: value.clone() for key, value in plain.language_model.state_dict().items()}
    model = case.wrap(plain, case.processor())
    with pytest.raises(ModelError, match="put together by from_parts"):
        model.save_pretrained(tmp_path / "parts")
    assert not list(tmp_path.iterdir())
    found = weights(model)
    assert all(torch.equal(found[f"language_model.{key}"], value) for key, value in before.items())


def test_weights_that_moving_parted_are_refused(tmp_path: Path) -> None:
    """The bridge splits GLM's gate-and-up matrix into halves, which share its memory until they are moved."""
    case = CASES["glm-4v"]
    model = HookedVLM.from_module(case.model(), case.processor())
    model.hf.double()
    with pytest.raises(ModelError, match="has no place for"):
        model.save_pretrained(tmp_path / "parted")
    assert not list(tmp_path.iterdir())
