"""Each check can fail: a fault is planted in the wrapped model, and the check it belongs to finds it.

That the same model passes without a fault is in ``test_verify.py``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from gatelens.interventions.editing import FunctionEdit
from gatelens.interventions.knockouts import Knockout
from gatelens.interventions.steering import Steer
from gatelens.model import HookedVLM
from gatelens.tokens import Role
from gatelens.verification import edits
from gatelens.verification.bench import Bench, Outcome, outcome_of
from gatelens.verification.plain import Plain
from gatelens.verification.verify import CHECKS
from tiny_models import make_llava_processor, make_picture

BY_KEY = {check.key: check for check in CHECKS}
PICTURES = [make_picture(), make_picture(seed=1)]


@pytest.fixture(scope="module")
def bench(hf_llava: Any) -> Bench:
    """A model of this module alone, as faults are planted in it; the plain one has weights of its own."""
    return Bench(_wrapped(hf_llava), Plain(copy.deepcopy(hf_llava)), PICTURES)


def _wrapped(hf: Any) -> HookedVLM:
    return HookedVLM.from_module(copy.deepcopy(hf), make_llava_processor())


def found(bench: Bench, key: str) -> Outcome:
    return outcome_of(BY_KEY[key], bench)


@contextmanager
def called_with(bench: Bench, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """The wrapped model's call gets other tensors than it was given."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = dict(kwargs)
        change(kwargs)
        return args, kwargs

    handle = bench.model.hf.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_padding_that_is_read(bench: Bench) -> None:
    def all_real(kwargs: dict[str, Any]) -> None:
        kwargs["attention_mask"] = torch.ones_like(kwargs["attention_mask"])

    with called_with(bench, all_real):
        assert found(bench, "parity/logits, one prompt").status == "pass"
        assert found(bench, "parity/logits, padded batch").status == "fail"
        assert found(bench, "parity/residual stream").status == "fail"


def test_a_picture_that_is_not_read(bench: Bench) -> None:
    def blank(kwargs: dict[str, Any]) -> None:
        if kwargs.get("pixel_values") is not None:
            kwargs["pixel_values"] = torch.zeros_like(kwargs["pixel_values"])

    with called_with(bench, blank):
        outcome = found(bench, "traps/picture matters")
        assert outcome.status == "fail" and outcome.effect == 0
        assert found(bench, "parity/generation").status == "fail"


@pytest.mark.parametrize("key", ["knockout, mask", "knockout, zero", "drop", "sweep"])
def test_a_knockout_that_forgets_a_key(bench: Bench, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Knockout.selected

    def one_less(self: Any, tokens: Any) -> Any:
        queries, keys = whole(self, tokens)
        return queries, keys & ~tokens.mask("last_image")

    monkeypatch.setattr(Knockout, "selected", one_less)
    monkeypatch.setattr("gatelens.interventions.dropping.Drop.selected", lambda s, t: one_less_of_drop(s, t))

    def one_less_of_drop(self: Any, tokens: Any) -> Any:
        dropped = tokens.mask("image - last_image")
        return (tokens.roles != Role.PAD) & ~tokens.mask("image"), dropped

    assert found(bench, f"interventions/{key}").status == "fail"


def test_edits_that_are_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steer, "new_values", lambda self, old, *rest: old)
    monkeypatch.setattr(FunctionEdit, "new_values", lambda self, old, *rest: old)
    for key in ("interventions/steer", "interventions/edit", "interventions/sweep"):
        assert found(bench, key).status == "fail"
    lost = found(bench, "traps/edits arrive")
    assert lost.status == "fail" and lost.measured is not None and lost.measured > 40
    assert found(bench, "interventions/ablate").status == "pass"


def test_one_site_whose_edits_are_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    point = bench.model.hook_dict["blocks.1.hook_mlp_out"]
    monkeypatch.setattr(point, "forward", lambda x: (type(point).forward(point, x), x)[1])
    # hook points call their functions in torch's own hooks, whose result is what counts
    monkeypatch.setattr(point, "add_hook", lambda *args, **kwargs: None)
    outcome = found(bench, "traps/edits arrive")
    assert outcome.status == "fail"


def test_a_token_layout_that_is_shifted(bench: Bench) -> None:
    tokens, image = bench.one.tokens, bench.one.tokens.mask("image")
    box = tokens.box.clone()
    box[image] = box[image].roll(1, 0)
    shifted = dataclasses.replace(tokens, roles=tokens.roles.roll(1, 1))
    turned = dataclasses.replace(tokens, box=box)
    for wrong, key in ((shifted, "tokens/image positions"), (turned, "tokens/pixel boxes")):
        other = Bench(bench.model, bench.plain, PICTURES, bench.sums)
        other.__dict__["one"] = dataclasses.replace(bench.one, tokens=wrong)
        assert found(other, key).status == "fail"


def test_pixels_that_are_processed_otherwise(bench: Bench) -> None:
    other = Bench(bench.model, bench.plain, PICTURES, bench.sums)
    tensors = {**bench.one.tensors, "pixel_values": bench.one.tensors["pixel_values"] + 0.01}
    other.__dict__["one"] = dataclasses.replace(bench.one, tensors=tensors)
    outcome = found(other, "tokens/processor")
    assert outcome.status == "fail" and "pixel_values" in outcome.reason


def test_another_dtype(bench: Bench, hf_llava: Any) -> None:
    half = HookedVLM.from_module(copy.deepcopy(hf_llava).bfloat16(), make_llava_processor())
    other = Bench(half, bench.plain, PICTURES)
    outcome = found(other, "parity/dtype")
    assert outcome.status == "fail" and "bfloat16" in outcome.reason
    assert found(other, "parity/logits, two pictures").status == "fail"


def test_a_layer_that_computes_something_else(bench: Bench) -> None:
    scale = (
        bench.model.hf.get_decoder()
        .layers[1]
        .register_forward_pre_hook(lambda module, args: (1.01 * args[0], *args[1:]))
    )
    try:
        assert "blocks.1" in found(bench, "parity/residual stream").reason
        for key in ("parity/residual stream", "parity/attention patterns", "interventions/patch"):
            assert found(bench, key).status == "fail"
        assert found(bench, "traps/nothing is left").status == "fail"
    finally:
        scale.remove()


def test_a_hook_that_is_left(bench: Bench) -> None:
    def look(tensor: Tensor, hook: Any) -> None:
        return None

    bench.model.add_hook("blocks.1.hook_resid_pre", look)
    try:
        assert found(bench, "traps/nothing is left").status == "fail"
    finally:
        bench.model.reset_hooks()


def test_weights_that_change(bench: Bench) -> None:
    weight = next(bench.plain.hf.parameters()).data.view(-1)
    before = weight[:2].clone()
    weight[:2] = before.flip(0)
    try:
        assert found(bench, "traps/weights stay").status == "fail"
    finally:
        weight[:2] = before
    assert found(bench, "traps/weights stay").status == "pass"


def test_a_check_that_raises_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "steer", lambda *args, **kwargs: 1 / 0)
    outcome = found(bench, "interventions/steer")
    assert outcome.status == "fail" and "ZeroDivisionError" in outcome.reason


def test_an_edit_lost_in_rounding_is_not_applicable(bench: Bench) -> None:
    ways = bench.ways(bench.one)
    everywhere = torch.ones(bench.one.shape, dtype=torch.bool)
    with pytest.raises(Exception, match="within rounding"):
        bench.compare([ways[0]], ways, everywhere, clean=ways[0])
