"""Dropped tokens: the rest is what plain transformers gives for the shorter sequence from that layer on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens as gl
from gatelens.engine.run_batch import RunBatch
from intervention_helpers import plain, torch_hooks


@torch.no_grad()
def shortened(oracle: Any, blocks: Any, inputs: Any, kept: Tensor, layer: int) -> Tensor:
    """Logits of the kept positions of one prompt: blocks from ``layer`` on are given these alone."""
    index = kept.nonzero()[:, 0]

    def shorter(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if args and args[0].shape[1] == len(kept):
            args = (args[0][:, index], *args[1:])
        kwargs = dict(kwargs)
        kwargs["position_embeddings"] = tuple(x[:, index] for x in kwargs["position_embeddings"])
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, :, index][..., index]
        return args, kwargs

    handles = [block.register_forward_pre_hook(shorter, with_kwargs=True) for block in blocks[layer:]]
    with torch_hooks(handles):
        return oracle(**inputs.tensors, use_cache=False).logits


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("at", ["image", "random_image:6", "gate | image", "system"])
def test_the_rest_is_the_shorter_sequence(
    tiny: Any, oracle: Any, blocks: Any, batch: Any, at: str, layer: int
) -> None:
    for b in range(3):
        inputs = batch.select([b])
        dropped = inputs.tokens.mask(at)[0]
        kept = ~dropped & (inputs.tokens.roles[0] != 0)
        want = shortened(oracle, blocks, inputs, kept, layer)
        got = tiny.run(inputs, gl.drop(at, layer))[:, kept]
        torch.testing.assert_close(got, want, atol=5e-5, rtol=1e-4)
        assert (got - tiny(inputs)[:, kept]).abs().max() > 1e-3


def test_it_starts_where_the_first_row_misses_a_key_and_is_exact(tiny: Any, batch: Any) -> None:
    runs = [[gl.drop("image", 1)], [gl.drop("gate", 2), gl.steer(torch.ones(32), "last", layers=[2])]]
    first = int(batch.tokens.mask("image").any(0).nonzero()[0])
    reach = runs[0][0].reach(batch.tokens, tiny.cfg)
    assert reach.layer == 1 and reach.position > first
    many = RunBatch(tiny, batch, runs)
    assert many.plan.parts and not many.plan.full
    for i, logits in many.each():
        real = (batch.tokens.roles != 0) & ~batch.tokens.mask("image")
        torch.testing.assert_close(logits[real], plain(tiny, batch, runs[i])[real], atol=2e-5, rtol=1e-4)


def test_dropped_tokens_stay_away_while_decoding(tiny: Any, batch: Any) -> None:
    cut = gl.knockout("all - image", "image", layers=[1, 2])
    made, same = (
        tiny.generate(batch, spec, max_new_tokens=5, stop_at_eos=False, return_type="ids").token_ids
        for spec in (gl.drop("image", 1), cut)
    )
    assert torch.equal(made, same)
    assert (
        repr(gl.drop("image", 1))
        == "drop(queries='all', keys='image', how='mask', layers=slice(1, None, None))"
    )
