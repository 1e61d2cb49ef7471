"""Arguments that mean nothing: one line each, before or instead of a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gatelens as gl
from gatelens.errors import GatelensError
from intervention_helpers import batch, prompts  # noqa: F401  (a fixture)

Call = Callable[[Any, Any], Any]
NAN = [lambda rows: rows * float("nan")] * 3
CALLS: dict[str, tuple[Call, str]] = {
    "no target": (lambda m, i: gl.attribute(m, i, None), "target None: give a token"),
    "NaN": (lambda m, i: gl.attribute(m, i, float("nan")), "target nan: give a token"),
    "floats": (lambda m, i: gl.attribute(m, i, torch.ones(3)), r"target tensor\(\[1., 1., 1.\]\)"),
    "a truth": (lambda m, i: gl.attribute(m, i, True), "target True"),
    "four of three": (lambda m, i: gl.attribute(m, i, (1, 2, 3, 4)), "one for each of the 3 examples"),
    "two dimensions": (lambda m, i: gl.attribute(m, i, torch.ones(3, 3).long()), "give a token"),
    "negative": (lambda m, i: gl.attribute(m, i, -1), "target -1 is outside the vocabulary"),
    "by a list": (lambda m, i: gl.attribute(m, i, 30, by=["head"]), r"by=\['head'\]: write one of"),
    "no positions": (lambda m, i: gl.attribute(m, i, 30, at=None), "selector of type NoneType"),
    "no batch": (lambda m, i: gl.attribute(m, 5, 30), "inputs is a int"),
    "layers in words": (lambda m, i: gl.logit_lens(m, i, layers="all"), "layers: 'a' is not one of 0"),
    "no layers": (lambda m, i: gl.logit_lens(m, i, layers=[]), "layers is empty"),
    "half a layer": (lambda m, i: gl.logit_lens(m, i, layers=1.5), "layers: 1.5 is not one of"),
    "targets by name": (lambda m, i: gl.logit_lens(m, i, targets={"a": 3}), "target {'a': 3}: give a token"),
    "a float": (lambda m, i: gl.logit_lens(m, i, targets=1.5), "target 1.5: give a token"),
    "top -1": (lambda m, i: gl.logit_lens(m, i, top=-1), "top=-1: give how many"),
    "top of all": (lambda m, i: gl.logit_lens(m, i, top=10**6), "top=1000000: give how many"),
    "few translators": (
        lambda m, i: gl.logit_lens(m, i, translators=[abs]),
        "1 translators: give one for each",
    ),
    "no translators": (lambda m, i: gl.logit_lens(m, i, translators=3), "translators: give a function"),
    "no layer of it": (
        lambda m, i: gl.logit_lens(m, i, translators={7: abs}),
        "translators: give a function",
    ),
    "no functions": (lambda m, i: gl.logit_lens(m, i, translators=[1, 2, 3]), "translators: give a function"),
    "other rows": (
        lambda m, i: gl.logit_lens(m, i, translators=[torch.nn.Linear(32, 16)] * 3),
        "a translator must make finite rows",
    ),
    "NaN rows": (lambda m, i: gl.logit_lens(m, i, translators=NAN), "a translator must make finite rows"),
}
OF_CACHE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "layer in words": (lambda c: c.decompose_resid("a"), "layer='a': the model has 3 layers"),
    "layer -3": (lambda c: c.decompose_resid(-3), "layer=-3: the model has"),
    "a mode": (lambda c: c.decompose_resid(mode="heads"), "mode='heads': write 'all', 'mlp' or 'attn'"),
    "MLP of the end": (lambda c: c.decompose_resid(3, mlp_input=True), "layer=3: the model has"),
    "neurons of the end": (lambda c: c.get_neuron_results(3), "layer=3: the model has"),
    "narrow": (
        lambda c: c.get_neuron_results(0, project_output_onto=torch.ones(5)),
        r"is \(5,\): give \[32\]",
    ),
    "an id": (lambda c: c.logit_attrs(c.decompose_resid(), 10**7), "give ids of the vocabulary, 0 … 43"),
    "half an id": (lambda c: c.logit_attrs(c.decompose_resid(), 1.5), "give ids of the vocabulary"),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls(tiny_llava: Any, name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(GatelensError, match=message) as raised:
        call(tiny_llava, prompts(tiny_llava))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", OF_CACHE)
def test_bad_questions_to_a_cache(tiny_llava: Any, name: str) -> None:
    call, message = OF_CACHE[name]
    _, cache = tiny_llava.run_with_cache(prompts(tiny_llava))
    with pytest.raises(GatelensError, match=message) as raised:
        call(cache)
    assert "\n" not in str(raised.value)


def test_arrays_and_numbers_of_numpy_are_taken(tiny: Any, batch: Any) -> None:  # noqa: F811
    one = gl.attribute(tiny, batch, np.int64(30)).total
    torch.testing.assert_close(gl.attribute(tiny, batch, np.array([30, 30, 30])).total, one)
    lens = gl.logit_lens(tiny, batch, layers=np.array([1, 2]), targets=[np.int64(30)])
    assert lens.sel(layer=torch.tensor(1)).tensor.shape[0] == lens.sel(layer=np.int64(2)).tensor.shape[0] == 1
