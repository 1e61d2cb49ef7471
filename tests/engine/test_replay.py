"""Runs computed at once from the clean run, against each run alone."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import gatelens as gl
from gatelens.bridge import attention
from gatelens.bridge.last_rows import last_row_alone
from gatelens.engine import clean_run
from gatelens.engine.run_batch import RunBatch, last_logits


def test_the_kernel_is_used_after_shared_keys(tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        [gl.steer(torch.ones(tiny.cfg.d_model), "last", layers=[1])],
        [gl.knockout("text - gate", "image", layers=[1, 2])],
        [gl.knockout("text - gate", "image", layers=[0, 2], how="zero")],
        [gl.ablate("last", "z", layers=[2]), gl.knockout("last", "image", heads=[1])],
    ]
    calls = []
    kernel = attention.fused_after_prefix
    monkeypatch.setattr(attention, "FUSED_ROWS", 1)
    monkeypatch.setattr(attention, "fused_after_prefix", lambda *args: calls.append(1) or kernel(*args))
    real = batch.tokens.roles != 0
    for i, logits in RunBatch(tiny, batch, runs).each():
        assert (logits - tiny.run(batch, runs[i]))[real].abs().max() <= 1e-5
    assert calls


def rows_of_the_last_mlp(model: Any, work: Any) -> set[int]:
    """How many positions the MLP of the last layer is given in the passes of ``work``."""
    seen: list[int] = []
    mlp = model.bridge.blocks[-1].mlp.original_component
    watch = mlp.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[-2]))
    try:
        work()
    finally:
        watch.remove()
    return set(seen)


@pytest.mark.parametrize("joined", [True, False])
def test_each_layer_computes_the_runs_that_have_begun(
    tiny: Any, batch: Any, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a family gives its layers arguments that cannot be cut to some of the runs: in a pass a layer."""
    monkeypatch.setattr(clean_run, "known", lambda kwargs: joined)
    ones = torch.ones(tiny.cfg.d_model)
    runs = [[gl.steer(ones, "text - gate", layers=[layer])] for layer in (2, 0, 1, 2)]
    want = [tiny.run(batch, run) for run in runs]
    seen: list[list[int]] = [[] for _ in tiny.bridge.blocks]
    handles = [
        block.mlp.original_component.register_forward_hook(
            lambda m, args, out, i=i: seen[i].append(len(args[0]))
        )
        for i, block in enumerate(tiny.bridge.blocks)
    ]
    try:
        for i, logits in RunBatch(tiny, batch, runs).each():
            assert (logits - want[i])[batch.tokens.roles != 0].abs().max() <= 1e-5
    finally:
        for handle in handles:
            handle.remove()
    n = batch.tokens.batch_size  # the clean run comes first
    assert seen == ([[n, n], [n, 2 * n], [n, 4 * n]] if joined else [[n, n], [n, n, n], [n, n, n, 2 * n]])
    assert not any("forward" in vars(block) for block in tiny.bridge.blocks)


@pytest.mark.parametrize("fused_rows", [1, 10**6])
def test_the_last_layer_computes_the_row_that_is_read(
    tiny: Any, batch: Any, fused_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FUSED_ROWS", fused_rows)
    ones = torch.ones(tiny.cfg.d_model)
    runs: list[Any] = [
        [],
        [gl.steer(ones, "text - gate", layers=[1])],
        [gl.steer(ones, "text - gate", layers=[2])],
        [gl.knockout("text - gate", "image")],
        [gl.knockout("last", "image", layers=[2], how="zero", heads=[0])],
        [gl.knockout("last", "image", layers=[2]), gl.ablate("text - gate", "z", layers=[1])],
    ]
    want = [tiny.run(batch, run)[:, -1] for run in runs]
    got: list[torch.Tensor] = []
    assert rows_of_the_last_mlp(tiny, lambda: got.extend(last_logits(tiny, batch, runs))) == {1}
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 1e-5
    assert "forward" not in vars(tiny.bridge.blocks[-1].original_component)


@pytest.mark.parametrize("site", ["k", "z", "resid_mid", "mlp_in", "resid_post"])
def test_an_edit_inside_the_last_layer_sees_every_position(tiny: Any, batch: Any, site: Any) -> None:
    runs = [[gl.ablate("text - gate", site, layers=[2])], [gl.ablate("last", site, layers=[1, 2])]]
    for i, got in enumerate(last_logits(tiny, batch, runs)):
        assert (got - tiny.run(batch, runs[i])[:, -1]).abs().max() <= 1e-5
    assert max(rows_of_the_last_mlp(tiny, lambda: last_logits(tiny, batch, runs))) > 1


def test_a_layer_with_arguments_nobody_knows_computes_every_position(tiny: Any) -> None:
    block, seen = tiny.bridge.blocks[-1], []
    layer = block.original_component
    stream = torch.zeros(1, 4, tiny.cfg.d_model)
    whole = lambda hidden, **kwargs: seen.append(hidden.shape[1])  # noqa: E731
    layer.__dict__["forward"] = whole
    try:
        with last_row_alone(block):
            layer.forward(stream, past_key_values=DynamicCache(), spans={"rows": torch.arange(4)})
            layer.forward(stream, past_key_values=None)
            layer.forward(stream[:, :1], past_key_values=DynamicCache())
        assert seen == [4, 3, 1, 1] and vars(layer)["forward"] is whole
    finally:
        del layer.__dict__["forward"]
